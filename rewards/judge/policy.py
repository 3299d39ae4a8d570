"""The policy as its own judge: the run that started this process answers, with the weights that it samples with.

A process that judges cannot reach the engine, so it asks the process that started it. Whoever runs one calls `connect`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from rewards.base import RewardError
from rewards.judge.answer import Answer, Failure
from rewards.judge.ballots import Question

POLICY = "policy"
"""What stands in place of an address."""
DEFAULT_MAX_TOKENS = 1024
"""Tokens of an answer, whoever gives it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """What the policy is asked, and how it should draw its answers."""

    questions: tuple[Question, ...]
    temperature: float
    max_tokens: int


Ask = Callable[[Asked], list[Answer | Failure]]
_asks: list[Ask] = []
"""The way to the policy; a process has one, or none."""


def connect(ask: Ask) -> None:
    """Says how this process asks the policy."""
    _asks[:] = [ask]


class Policy:
    """The run's own engine, as whoever answers."""

    def __init__(self, *, temperature: float, max_tokens: int) -> None:
        self._temperature, self._max_tokens = temperature, max_tokens

    async def answers(self, asked: Sequence[Question], deadline: float) -> list[Answer | Failure]:
        """Asks all questions at once, and waits however long the engine is busy; raises RewardError without a run."""
        if not _asks:
            raise RewardError(
                "judge: endpoint=policy asks the model of the run, and here is no run that trains one; give the "
                "address of a server that serves it"
            )
        questions = Asked(questions=tuple(asked), temperature=self._temperature, max_tokens=self._max_tokens)
        return _asks[0](questions)

    def check(self) -> None:
        """Does nothing: the engine is started later, and by the run itself."""
