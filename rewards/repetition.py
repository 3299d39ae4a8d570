"""Punish completions that say the same again and again."""

from __future__ import annotations

import math
from collections.abc import Sequence

from rewards.base import Reward, Sample


class Repetition:
    """`max_penalty` times the share of n-grams that occurred before.

    R(y) = (1 - #distinct n-grams / #n-grams) * max_penalty, 0 for fewer than n tokens ("Demystifying Long
    Chain-of-Thought Reasoning", arXiv:2502.03373, appendix C.2). An n-gram is a run of n token ids, or of n lower-case
    words where a sample has no ids.
    """

    independent = True

    def __init__(self, ngram_size: int = 3, max_penalty: float = -1.0) -> None:
        """Raises ValueError for n < 1 and for a penalty that rewards or is not finite."""
        if ngram_size < 1:
            raise ValueError(f"ngram_size={ngram_size} must be at least 1")
        if not math.isfinite(max_penalty):
            raise ValueError(f"max_penalty={max_penalty} must be a finite number; use 0 or less")
        if max_penalty > 0:
            raise ValueError(f"max_penalty={max_penalty} would reward repetition; use 0 or less")
        self.size, self.penalty = ngram_size, max_penalty

    def __call__(self, samples: Sequence[Sample]) -> list[Reward]:
        """Judges each sample. Reasons: distinct, repeated, too_short."""
        return [self._one(sample) for sample in samples]

    def _one(self, sample: Sample) -> Reward:
        units = sample.completion_ids or sample.completion.lower().split()
        num_grams = len(units) - self.size + 1
        if num_grams < 1:
            return Reward(0.0, "too_short")
        distinct = len(set(zip(*(units[start:] for start in range(self.size)), strict=False)))
        if distinct == num_grams:
            return Reward(0.0, "distinct")
        return Reward((1 - distinct / num_grams) * self.penalty, "repeated")
