"""Numbers over all ranks of a trainer: every rank calls these at the same place and gets the same answer.

With one rank there is nobody to ask, and the number comes back as it is.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, distributed


def rank() -> int:
    """The number of this process among the ranks, counted from 0."""
    return distributed.get_rank() if distributed.is_initialized() else 0


def size() -> int:
    """How many ranks there are."""
    return distributed.get_world_size() if distributed.is_initialized() else 1


def total(values: Tensor) -> Tensor:
    """Adds up a tensor over the ranks, in place."""
    if _several():
        distributed.all_reduce(values)
    return values


def totals(numbers: Mapping[str, float], device: torch.device) -> dict[str, float]:
    """Adds up named numbers over the ranks in float64; all ranks must have the same names in the same order."""
    summed = total(torch.tensor(list(numbers.values()), dtype=torch.float64, device=device))
    return dict(zip(numbers, summed.tolist(), strict=True))


def from_first(names: list[str]) -> list[str]:
    """Returns the names that rank 0 has, on every rank."""
    found = [names]
    if _several():
        distributed.broadcast_object_list(found, src=0)
    return found[0]


def largest(value: float, device: torch.device) -> float:
    """Finds the largest of one number over the ranks; NaN, which no comparison finds, wins over every number."""
    if not _several():
        return value
    found = torch.tensor([float("inf") if value != value else value, float(value != value)], device=device).double()
    distributed.all_reduce(found, op=distributed.ReduceOp.MAX)
    return float("nan") if found[1] else float(found[0])


def _several() -> bool:
    return size() > 1
