"""What the loop asks of anything that samples."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from hashlib import blake2b
from typing import Protocol

from torch import Tensor

from rlkit.engine.examination import Examination
from rlkit.types import Group, Prompt, Sampling, Weights


class Engine(Protocol):
    """Samples completions, token ids in and token ids out, with the log-prob of every sampled token."""

    def generate(self, prompts: Sequence[Prompt], n: int, sampling: Sampling) -> Iterable[Group]:
        """Draws `n` completions for each prompt; groups may come as they are finished, in any order."""
        ...

    def finished(self) -> int:
        """Counts the rollouts that the running `generate` has finished; another thread may ask."""
        ...

    def drafts(self) -> tuple[int, int]:
        """Counts the tokens that the last `generate` drafted, and those it accepted; (0, 0) if it does not draft."""
        ...

    def load(self, weights: Weights, version: int) -> None:
        """Replaces all weights, or the adapter that the engine serves; rollouts made from now on carry `version`.

        After a load that broke off the engine answers nothing but HalfLoadedError until one succeeds (`engine.whole`).
        """
        ...

    def logprobs(self, sequences: Sequence[Sequence[int]]) -> list[list[float]]:
        """Computes log p(token_t | tokens before t) at temperature 1, for t = 1..len-1 of each sequence, in nats."""
        ...

    def trace(self, tokens: Sequence[int]) -> Mapping[str, Tensor]:
        """Runs one sequence; returns every block's output in order, `{"model.layers.0.self_attn": [T, D], ...}`."""
        ...

    def examine(self, sequences: Sequence[Sequence[int]]) -> Examination:
        """Fingerprints all tensors that it computes with, and repeats the products that it makes for the sequences."""
        ...

    def replicas(self) -> Sequence[Engine]:
        """Returns every copy of the model that samples, as an engine of its own: the parity gate asks each of them."""
        ...


def completion_text(tokens: Sequence[int], end_tokens: Collection[int], decode: Callable[[Sequence[int]], str]) -> str:
    """Decodes a completion without the end token that it stopped at.

    Engines share it, so that a reward reads the same text from each. Most end tokens are special, and decoding leaves
    them out anyway; one that is not would stand behind the answer, where no reward expects anything.
    """
    return decode(tokens[:-1] if tokens and tokens[-1] in end_tokens else tokens)


def rollout_seed(seed: int, prompt_id: str, index: int) -> int:
    """Returns the seed of rollout `index` of a prompt, the same whichever engine, batch or place in the queue draws it.

    seed_i = first 63 bits of blake2b(seed / prompt_id / i)
    """
    digest = blake2b(f"{seed}/{prompt_id}/{index}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1
