"""What comes back from whoever is asked: an answer, or why there is none."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from rewards.judge.ballots import Question


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What the judge wrote."""

    text: str
    whole: bool = True
    """False for one that was cut off: what looks like a verdict there may be a quotation."""
    version: int | None = None
    """The version of the weights that wrote it, where the policy judges itself."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """Why there is no answer, as a reason of `Reward`: what stands before the colon is counted."""

    reason: str


class Source(Protocol):
    """Whoever answers: an endpoint, or the policy itself."""

    async def answers(self, asked: Sequence[Question], deadline: float) -> list[Answer | Failure]:
        """Answers the questions, in their order, by `deadline` of `time.monotonic()`; raises nothing for one of
        them."""
        ...

    def check(self) -> None:
        """Raises RewardError if nobody is there to answer."""
        ...
