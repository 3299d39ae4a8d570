"""Which numbers of processes can hold a slice of every layer each (tensor parallelism, arXiv:1909.08053, section 3)."""

from __future__ import annotations

from collections.abc import Mapping

VOCABULARY_MULTIPLE = 64
"""vLLM pads the rows of embedding and head to a multiple of it before it divides them."""


def padded_vocabulary(vocab_size: int) -> int:
    """Returns the rows that vLLM gives embedding and head."""
    return -(-vocab_size // VOCABULARY_MULTIPLE) * VOCABULARY_MULTIPLE


def split_problem(sizes: Mapping[str, int], num_workers: int, where: str, unit: Mapping[str, int]) -> str | None:
    """Says which size cannot be divided among the workers, and which numbers of workers all sizes can.

    `unit` gives the numbers that must stay together, by the name of the size; 1 where it has none.
    """

    def divides(name: str, workers: int) -> bool:
        return sizes[name] % (workers * unit.get(name, 1)) == 0

    wrong = next((name for name in sizes if not divides(name, num_workers)), None)
    if wrong is None:
        return None
    most = min(sizes.values())
    good = [str(k) for k in range(1, most + 1) if all(divides(name, k) for name in sizes)]
    numbers = f"{', '.join(good[:-1])} or {good[-1]}" if len(good) > 1 else "".join(good) or "1"
    together = f" in multiples of {unit[wrong]}" if unit.get(wrong, 1) > 1 else ""
    return f"{where}{wrong}={sizes[wrong]} cannot be divided by it{together}; use {numbers}"
