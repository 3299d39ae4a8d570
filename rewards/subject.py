"""The reward under audit, in a process of its own: one that hangs or dies is found out, and not suffered."""

from __future__ import annotations

import pickle
import time
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from typing import Any

from rewards.base import Reward, RewardError, Sample
from rewards.failure import described
from rewards.function import RewardFunction
from rewards.process import Channel, Gone, Overdue, Process
from rewards.registry import load

LOAD_S = 120.0
"""Seconds that the process has to import the reward and what it needs."""
LEAVE_S = 5.0
"""Seconds that it has to close its reward (a sandbox, a pool) before it is killed."""


class AuditError(RewardError):
    """The reward cannot be loaded, raises, hangs, or ends its process."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What the process says: its shape once loaded, then verdicts and the seconds they took, or what went wrong."""

    shape: str = ""
    rewards: tuple[Reward, ...] = ()
    seconds: float = 0.0
    error: str = ""


class Subject:
    """The reward under audit, in a process that starts when first needed, and again after it has hung or died."""

    def __init__(self, name: str, kwargs: Mapping[str, Any], seconds: float) -> None:
        self.shape = ""
        self._given, self._seconds = (name, dict(kwargs)), seconds
        self._process: Process | None = None

    def start(self) -> None:
        """Starts anew; raises AuditError if the reward cannot be loaded."""
        self.end()
        self._process = Process("rewards.subject:serve", prints=False)  # what it prints would tear the table apart
        self.shape = self._ask(self._given, LOAD_S).shape

    def judge(self, samples: Sequence[Sample], copy: str = "loaded") -> Answer:
        """Returns the verdicts of the reward, or of its "unpickled" copy; raises AuditError if it gives none."""
        if self._process is None:
            self.start()
        return self._ask((copy, samples), self._seconds)

    def end(self, patience: float = LEAVE_S) -> int:
        """Lets the process close its reward within `patience` seconds, then kills it; returns its exit code."""
        if self._process is None:
            return 0
        process, self._process = self._process, None
        return process.end(patience)

    def _ask(self, message: object, seconds: float) -> Answer:
        assert self._process is not None
        try:
            self._process.send(message, seconds)
            answer: Answer = self._process.receive(seconds)
        except Overdue:
            self.end(patience=0)
            raise AuditError(f"hangs: no answer within {seconds:g} s") from None
        except Gone:
            raise AuditError(f"ends its process (exit code {self.end()})") from None
        if answer.error:
            raise AuditError(answer.error)
        return answer


def serve(channel: Channel) -> None:
    """Loads `(name, kwargs)`, then judges a list of samples for each message: what the process runs."""
    name, kwargs = channel.receive()
    try:
        judge = load(name, **kwargs)
    except BaseException as error:  # sys.exit() in a module included
        channel.send(Answer(error=_message(error)))
        return
    settings = ", ".join(f"{key}={value!r}" for key, value in kwargs.items()) or "no settings"
    calls = "called for each sample" if judge.shape.per_sample else "called for a batch"
    channel.send(Answer(shape=f"{judge.shape.name} signature, {calls}; {settings}"))
    copies = {"loaded": judge}
    with closing(judge):
        while True:
            copy, samples = channel.receive()
            channel.send(_answer(copies, copy, samples))


def _answer(copies: dict[str, RewardFunction], copy: str, samples: Sequence[Sample]) -> Answer:
    try:
        if copy not in copies:
            copies[copy] = pickle.loads(pickle.dumps(copies["loaded"]))
        start = time.perf_counter()
        verdicts = copies[copy](samples)
        seconds = time.perf_counter() - start
    except BaseException as error:
        return Answer(error=_message(error))
    # Logs may hold anything, and nothing here reads them.
    return Answer(rewards=tuple(replace(verdict, logs={}) for verdict in verdicts), seconds=seconds)


def _message(error: BaseException) -> str:
    return str(error) if isinstance(error, RewardError) else described(error)
