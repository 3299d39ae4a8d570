"""Verdicts of a job: groups go to the reward while others are sampled, and verdicts into the journal as they come."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Future
from queue import SimpleQueue

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
        self._rows: dict[Future[Sequence[Score]], int] = {}
        """Of all groups without a verdict."""
        self._done = SimpleQueue[Future[Sequence[Score]]]()
        """Filled by the reward's threads; nobody has to look through what still waits."""

    def submit(self, row: int, prompt: Prompt) -> None:
        """Hands over the answers to one question, all of which are in the journal."""
        group = Group(prompt=prompt, rollouts=tuple(self._journal.rollouts(row)))
        verdicts = self._reward(group)
        self._rows[verdicts] = row
        verdicts.add_done_callback(self._done.put)
        self.settle(MOST_WAITING)

    def settle(self, most: int) -> None:
        """Writes the verdicts that are there, and waits until at most so many groups are without."""
        while not self._done.empty() or len(self._rows) > most:
            verdicts = self._done.get()
            self._journal.judge(self._rows.pop(verdicts), verdicts.result())
