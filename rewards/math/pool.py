"""Worker processes that give verdicts and can be killed: the caller holds the deadline of every request.

Computer algebra can hang for hours on a short text, and no timeout inside its own process stops it for sure. So it runs
in a process of its own, which is killed when the time is up (`rewards.process`). Workers are started when first needed
and are shared by all threads. No signal handler, no event loop and no executor of the caller is touched.
"""

from __future__ import annotations

import os
import queue
import signal
import time
from contextlib import suppress
from typing import Any

from rewards.math.decide import Outcome
from rewards.process import Gone, Overdue, Process

SERVE = "rewards.math.worker:serve"
"""What a worker runs."""
START_SECONDS = 60.0
"""Importing takes 0.2 s on an idle machine; on a busy one it must not count against a verdict."""
MAX_REQUESTS = 1_000
MAX_MEMORY_MB = 300
"""A worker that has answered more or grown larger is replaced, because the caches of sympy only grow."""
_OUT_OF_TIME = (-signal.SIGALRM, -signal.SIGXCPU)
"""Exit codes of a worker that has ended itself, because its own clock ran faster than ours."""


class Lost(Exception):
    """The worker is gone without a verdict."""


class Worker:
    """Holds one process, which no two threads may use at the same time."""

    def __init__(self) -> None:
        """Starts it and waits until it is ready; raises Lost."""
        self.num_requests, self.memory_mb, self.has_algebra = 0, 0, False
        try:
            self.process = Process(SERVE, prints=False)
        except OSError as error:
            raise Lost(f"no worker can be started: {error}") from error
        try:
            self.process.receive(START_SECONDS)  # it says that it is ready
        except (Gone, Overdue) as error:
            self.close()
            raise Lost("the worker did not get ready") from error

    def ask(self, request: dict[str, Any], seconds: float) -> Outcome:
        """Returns the outcome, "timeout" after `seconds`; raises Lost.

        After either of these the worker must be closed.
        """
        self.num_requests += 1
        start = time.monotonic()
        try:
            self.process.send({**request, "seconds": seconds}, seconds)
            outcome, self.memory_mb = self.process.receive(seconds - (time.monotonic() - start))
        except Overdue:  # by the caller's own clock, in case the worker cannot end itself
            return "timeout"
        except Gone:
            if self.process.kill() in _OUT_OF_TIME:
                return "timeout"
            raise Lost("the worker ended without a verdict") from None
        return outcome

    def load_algebra(self) -> None:
        """Imports sympy and warms it up, which takes longer than a verdict may; raises Lost."""
        if not self.has_algebra and self.ask({"load": True}, START_SECONDS) != "undecided":
            raise Lost("computer algebra cannot be loaded")
        self.has_algebra = True

    @property
    def is_worn(self) -> bool:
        """Returns whether it has answered or grown enough to be replaced."""
        return self.num_requests >= MAX_REQUESTS or self.memory_mb > MAX_MEMORY_MB

    def close(self) -> None:
        """Kills it, and waits for its end."""
        self.process.end(patience=0)


class Pool:
    """Holds up to `num_workers` workers; a thread that finds none idle waits for one."""

    def __init__(self, num_workers: int) -> None:
        """Starts nothing yet."""
        self.num_workers = num_workers
        self._idle = self._slots()

    def _slots(self) -> queue.LifoQueue[Worker | None]:
        self._owner = os.getpid()
        slots: queue.LifoQueue[Worker | None] = queue.LifoQueue()  # the last one used is the one that is warm
        for _ in range(self.num_workers):
            slots.put(None)
        return slots

    def ask(self, request: dict[str, Any], seconds: float, algebra: bool = False) -> Outcome:
        """Returns the outcome of a request after `seconds` at the latest; where digits cannot tell, algebra does.

        A worker that is lost is replaced once; then the outcome is "worker_lost".
        """
        if self._owner != os.getpid():  # the caller forked: the workers belong to its parent
            self._idle = self._slots()
        slots = self._idle
        worker = slots.get()
        outcome: Outcome = "worker_lost"
        try:
            for _ in range(2):
                try:
                    worker = worker or Worker()
                    outcome = _asked(worker, request, seconds, algebra)
                    break
                except Lost:
                    worker = _closed(worker)
            if worker and (outcome == "timeout" or worker.is_worn):
                worker = _closed(worker)
        except BaseException:  # Ctrl-C between question and answer: the next one would read this answer
            worker = _closed(worker)
            raise
        finally:
            slots.put(worker)
        return outcome

    def close(self) -> None:
        """Ends the workers, once each has answered; a later request starts them again."""
        if self._owner != os.getpid():
            return
        taken: list[Worker | None] = []
        with suppress(queue.Empty):  # a request that takes this long is in a thread that has died
            taken += (self._idle.get(timeout=START_SECONDS) for _ in range(self.num_workers))
        for worker in taken:
            self._idle.put(_closed(worker))


def _asked(worker: Worker, request: dict[str, Any], seconds: float, algebra: bool) -> Outcome:
    """Returns the outcome by digits and, if they cannot tell, by computer algebra in the time that they left."""
    if not algebra:
        start = time.monotonic()
        outcome = worker.ask(request, seconds)
        if outcome != "undecided":
            return outcome
        seconds = max(0.0, seconds - (time.monotonic() - start))
    worker.load_algebra()
    return worker.ask({**request, "algebra": True}, seconds)


def _closed(worker: Worker | None) -> None:
    if worker is not None:
        worker.close()
