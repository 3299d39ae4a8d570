"""Verdicts of a job: groups go to the reward while others are sampled, and verdicts into the journal as they come."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait

from rlkit.distill.journal import Journal
from rlkit.rollout.judging import RewardFn
from rlkit.types import Group, Prompt, Score

MOST_WAITING = 512
"""Groups that wait for their verdict; then sampling waits, so that memory does not grow when a reward is slow."""


class Verification:
    """Hands groups to a reward and writes what comes back.

    A whole group goes, because a reward may compare its answers; an answer keeps the first verdict it gets. One that
    gets none (value None: a deadline, a sandbox that failed) is asked about again at the next start.
    """

    def __init__(self, journal: Journal, reward: RewardFn) -> None:
        self._journal, self._reward = journal, reward
        self._waiting: dict[Future[Sequence[Score]], int] = {}

    def submit(self, row: int, prompt: Prompt) -> None:
        """Hands over the answers to one question, all of which are in the journal."""
        group = Group(prompt=prompt, rollouts=tuple(self._journal.rollouts(row)))
        self._waiting[self._reward(group)] = row
        self.settle(MOST_WAITING)

    def settle(self, most: int) -> None:
        """Writes the verdicts that are there, and waits until at most so many groups are without."""
        done, _ = wait(self._waiting, timeout=0)
        while True:
            if done:
                with self._journal.whole():
                    for future in done:
                        self._journal.judge(self._waiting.pop(future), future.result())
            if len(self._waiting) <= most:
                return
            done, _ = wait(self._waiting, return_when=FIRST_COMPLETED)
