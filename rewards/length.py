"""Rewards for the length of a completion, in tokens; one that was cut off counts as too long."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from rewards.base import Reward, Sample


class SoftOverlong:
    """Punish completions near and beyond the longest that is wanted; nothing is gained by being short.

    R(y) = 0 for |y| <= L_max - L_cache, (L_max - L_cache - |y|) / L_cache up to L_max, and -1 beyond
    (DAPO, arXiv:2503.14476, equation 13). L_max = `max_completion_len` and L_cache = `soft_punish_cache`, in tokens.
    """

    independent = True

    def __init__(self, max_completion_len: int, soft_punish_cache: int) -> None:
        """Raises ValueError for lengths that leave no room."""
        if not 0 <= soft_punish_cache <= max_completion_len or max_completion_len < 1:
            raise ValueError(
                f"max_completion_len={max_completion_len} must be at least 1 and soft_punish_cache={soft_punish_cache} "
                "between 0 and it"
            )
        self.longest, self.cache = max_completion_len, soft_punish_cache

    def __call__(self, samples: Sequence[Sample]) -> list[Reward]:
        """Judges each sample. Reasons: short, long, overlong, truncated; no_token_ids has no value."""
        return [self._one(sample) for sample in samples]

    def _one(self, sample: Sample) -> Reward:
        if sample.finish_reason == "length":
            return Reward(-1.0, "truncated")  # it would have gone on, so its true length is beyond L_max
        length = num_tokens(sample)
        if length is None:
            return Reward(None, "no_token_ids")
        if length <= self.longest - self.cache:
            return Reward(0.0, "short")
        if length > self.longest:
            return Reward(-1.0, "overlong")
        return Reward((self.longest - self.cache - length) / self.cache, "long")


class Cosine:
    """Scale another reward by length: a right answer is worth more when it is short, a wrong one when it is long.

    R = low + (high - low) (1 + cos(pi min(|y| / `max_len`, 1))) / 2, from `high` at length 0 to `low` at `max_len`;
    (high, low) is (max_value_correct, min_value_correct) where `fn` gives 1 or more, else (min_value_wrong,
    max_value_wrong) ("Demystifying Long Chain-of-Thought Reasoning", arXiv:2502.03373, section 4).
    """

    def __init__(
        self,
        fn: str | Callable[..., Any],
        max_len: int,
        min_value_wrong: float = -1.0,
        max_value_wrong: float = -0.5,
        min_value_correct: float = 0.5,
        max_value_correct: float = 1.0,
        kwargs: dict[str, Any] | None = None,
    ) -> None:
        """`fn` and its `kwargs` name the reward that says what is right; raises ValueError for numbers out of range."""
        from rewards.registry import load  # it lists this module

        if max_len < 1:
            raise ValueError(f"max_len={max_len} must be at least 1 token")
        bounds = {
            "min_value_wrong": min_value_wrong,
            "max_value_wrong": max_value_wrong,
            "min_value_correct": min_value_correct,
            "max_value_correct": max_value_correct,
        }
        for key, bound in bounds.items():
            if not math.isfinite(bound):
                raise ValueError(f"{key}={bound} must be a finite number")
        self.judge, self.longest = load(fn, **(kwargs or {})), max_len
        self.correct, self.wrong = (max_value_correct, min_value_correct), (min_value_wrong, max_value_wrong)

    def __call__(self, samples: Sequence[Sample]) -> list[Reward]:
        """Gives the other reward's verdicts and reasons new values; a truncated sample has the greatest length."""
        return [self._scale(sample, verdict) for sample, verdict in zip(samples, self.judge(samples), strict=True)]

    @property
    def independent(self) -> bool:
        """Says whether the other reward judges each sample on its own."""
        return self.judge.independent

    @property
    def longest_s(self) -> float:
        """The seconds after which the other reward gives up on a sample."""
        return self.judge.longest_s

    def check_samples(self, samples: Sequence[Sample]) -> None:
        """Raises RewardError for rows that the other reward cannot judge."""
        self.judge.check_samples(samples)

    def close(self) -> None:
        """Lets go of the other reward."""
        self.judge.close()

    def _scale(self, sample: Sample, verdict: Reward) -> Reward:
        length = self.longest if sample.finish_reason == "length" else num_tokens(sample)
        if verdict.value is None:
            return verdict
        if length is None:
            return Reward(None, "no_token_ids")
        high, low = self.correct if verdict.value >= 1 else self.wrong
        share = (1 + math.cos(math.pi * min(length / self.longest, 1))) / 2
        return replace(verdict, value=low + (high - low) * share, parts={**verdict.parts, "unscaled": verdict.value})


def num_tokens(sample: Sample) -> int | None:
    """Counts the tokens of the completion; None where there is text but no token ids."""
    return len(sample.completion_ids) if sample.completion_ids or not sample.completion else None
