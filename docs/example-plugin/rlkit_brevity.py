"""Two rewards for short answers: a function, and a class for settings that want checking."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rewards import Reward, Sample


def brevity(completion: str, answer: str, limit: int = 200, **columns: Any) -> Reward:
    """Give 1 for a right answer of up to `limit` characters, less when it is longer, and 0 for a wrong one.

    Without a gold answer there is no verdict, because that is not a failure of the model.
    """
    if not answer:
        return Reward(None, "no_gold")
    if not completion.rstrip().endswith(f"</think><answer>{answer}</answer>") or completion.count("<answer>") > 1:
        return Reward(0.0, "wrong")
    return Reward(min(1.0, limit / len(completion)), "correct")


class FewWords:
    """Give -1 for more than `most` words, and for a completion that was cut off, else 0."""

    def __init__(self, most: int) -> None:
        """Raises ValueError before the run starts."""
        if most < 1:
            raise ValueError(f"most={most} must be at least 1 word")
        self.most = most

    def __call__(self, samples: Sequence[Sample]) -> list[Reward]:
        """Return one verdict for each sample, in their order."""
        return [self._one(sample) for sample in samples]

    def _one(self, sample: Sample) -> Reward:
        if sample.finish_reason == "length":
            return Reward(-1.0, "cut_off")  # the model's failure, so a value and not None
        num_words = len(sample.completion.split())
        return Reward(-1.0, "wordy") if num_words > self.most else Reward(0.0, "brief")
