"""The sandbox as its user sees it: a few fork servers behind one queue, which were attacked before they are used."""

from __future__ import annotations

import os
import queue
import socket
import threading
import warnings
import weakref
from collections.abc import Sequence
from contextlib import suppress
from types import TracebackType

from sandbox import levels
from sandbox.job import Running, infra
from sandbox.remote import Client
from sandbox.result import ExecResult, Limits, SandboxError, SandboxUnusable, SandboxWarning
from sandbox.session import Session
from sandbox.worker import Worker, plan

DEFAULT_LIMITS = Limits()


class Sandbox:
    """Runs programs that nobody has read, from any thread, `workers` of them at a time; further ones wait their turn.

    Example: `with Sandbox() as box: box.run("print(input())", "hello").stdout == "hello\\n"`
    """

    def __init__(
        self,
        level: str = "auto",
        workers: int = 2,
        imports: Sequence[str] = (),
        limits: Limits = DEFAULT_LIMITS,
        *,
        url: str = "",
        allow_unsafe: bool = False,
    ) -> None:
        """Starts the fork servers and attacks the first one from inside; the sandbox opens only if that fails.

        `level`: "namespaces", "bwrap", "landlock", "none" (with `allow_unsafe`), "remote" (with `url`), or "auto" for
        the strongest of the first three that works. `imports`: modules to load once for all programs. Of what is not in
        the standard library, programs see these, and what is installed in the same environment (site-packages).
        Raises SandboxError naming what fails and the fix.
        """
        if level not in ("auto", *levels.LEVELS):
            raise SandboxError(f"level={level!r}: must be 'auto' or one of {', '.join(levels.LEVELS)}")
        if level == "none" and not allow_unsafe:
            raise SandboxError(f"level='none': {levels.OPEN['none']}. Pass allow_unsafe=True if that is what you want")
        if isinstance(workers, bool) or not isinstance(workers, int) or not 1 <= workers <= 256:
            raise SandboxError(f"workers={workers!r}: must be a whole number from 1 to 256")
        if isinstance(imports, str):
            raise SandboxError(f"imports={imports!r}: must be a list of module names, such as [{imports!r}]")
        if imports and level == "remote":
            raise SandboxError(f"imports={list(imports)}: level 'remote' has what its service has; leave it out")
        if bool(url) != (level == "remote"):
            raise SandboxError(
                f"level={level!r} with url={url!r}: level 'remote' needs a url, no other level takes one"
            )
        self.limits = limits
        self._owner = os.getpid()
        self._closed, self._lock = False, threading.Lock()
        self._remote = Client(url) if url else None
        self._turns = threading.BoundedSemaphore(workers)
        """At level `remote` it bounds how many requests are at the service at once."""
        self._workers: list[Worker] = []
        if self._remote is None:
            self.level, self._workers = _open(level, workers, tuple(imports))
        else:
            self.level = level
        self._free: queue.SimpleQueue[Worker | None] = queue.SimpleQueue()
        """The workers that have no job; None in it says that the sandbox is closed."""
        self._seconds: list[Worker] = []
        """Further workers that have no job, for sessions on which another session waits."""
        for worker in self._workers:
            self._free.put(worker)
        # A user who forgets to close leaves no process behind: this runs when the object goes, or when the interpreter
        # ends. It must not refer to the object, which would then never go.
        weakref.finalize(self, _stop, self._workers, self._owner)
        if self.level != "namespaces":
            warnings.warn(f"sandbox level {self.level!r}: {levels.OPEN[self.level]}", SandboxWarning, stacklevel=2)

    def run(self, code: str, stdin: str = "", *, limits: Limits | None = None) -> ExecResult:
        """Runs `code` as a program of its own and says how it ended; nothing that the program does raises.

        If the sandbox itself fails, the program is run once more on another worker before its status is "infra". Raises
        SandboxError if the sandbox is closed, or was made by another process.
        """
        self._check_owner()
        if self._remote is not None:
            with self._turns:
                return self._remote.run(code, stdin, limits or self.limits)
        # A job may end because its fork server was killed, by somebody who wanted memory, say. That says nothing about
        # the program, so it gets another try, and only then is there no result.
        result = None
        for _ in range(2):
            worker = self._take()
            try:
                worker.await_ready()
                result = Running(worker, limits or self.limits, code, stdin).result()
            except SandboxError as error:  # the fork server was lost and cannot be started again
                result = infra(str(error))
            finally:
                self._give(worker)
            if result.status != "infra" or self._closed:
                break
        assert result is not None
        return result

    def session(self, code: str, *, limits: Limits | None = None, second: bool = False) -> Session:
        """Starts `code` as a program that answers messages (`sandbox.calls.serve`); it holds a worker until closed.

        With `second` the caller holds a session already, and gets a worker beside the `workers`: if sessions took these
        while they wait for each other, none might be left. Raises SandboxError as `run` does, and if no fork server can
        be started.
        """
        self._check_owner()
        if self._remote is not None:
            raise SandboxUnusable(
                "level='remote' runs whole programs only: judge by stdin and stdout, or use another level"
            )
        worker = self._take_second() if second else self._take()
        try:
            worker.await_ready()
            ours, theirs = socket.socketpair()
            try:
                with theirs:
                    running = Running(worker, limits or self.limits, code, "", theirs)
            except BaseException:
                ours.close()
                raise
        except BaseException:
            self._give(worker, second)
            raise
        return Session(running, ours, lambda: self._give(worker, second))

    def prepare_second(self) -> None:
        """Have a worker ready for a session with `second`, so that its start is not on the time of that session.

        Raises SandboxError as `session` does.
        """
        self._check_owner()
        if self._remote is not None:
            return
        worker = self._take_second()
        try:
            worker.await_ready()
        finally:
            self._give(worker, second=True, used=False)

    def close(self) -> None:
        """Ends all fork servers and what runs in them; programs that other threads run get the status "infra"."""
        with self._lock:
            self._closed = True
        for worker in self._workers:
            worker.hang_up()
        for worker in self._seconds:
            worker.stop()
        self._free.put(None)
        while (idle := self._free.get()) is not None:
            idle.stop()
        self._free.put(None)  # for those who still wait for a worker

    def __enter__(self) -> Sandbox:
        """Returns the sandbox itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Closes the sandbox."""
        self.close()

    def _check_owner(self) -> None:
        if os.getpid() != self._owner:
            raise SandboxUnusable("this sandbox belongs to the process that made it: make one after the fork")

    def _take(self) -> Worker:
        """Waits until a worker is free, and takes it out of the queue."""
        worker = self._free.get()
        if worker is None:
            self._free.put(None)
            raise SandboxUnusable("this sandbox is closed: make a new one")
        return worker

    def _take_second(self) -> Worker:
        """Takes a worker beside the others, which is kept for the next time."""
        with self._lock:
            if self._closed:
                raise SandboxUnusable("this sandbox is closed: make a new one")
            if self._seconds:
                return self._seconds.pop()
            self._workers.append(Worker(self._workers[0].plan))
            return self._workers[-1]

    def _give(self, worker: Worker, second: bool = False, used: bool = True) -> None:
        """Puts a worker back where it came from or, if the sandbox is closed, ends it."""
        is_spent = used and worker.single_use
        if is_spent:
            worker.stop()
        with self._lock:
            if not self._closed:
                if is_spent:
                    with suppress(SandboxError):  # the next container is ready by the time it is wanted
                        worker.spawn()
                (self._seconds.append if second else self._free.put)(worker)
                return
        worker.stop()


def _open(level: str, num_workers: int, imports: tuple[str, ...]) -> tuple[str, list[Worker]]:
    """Returns the level to use and its workers, ready; raises SandboxError with what was tried."""
    failures = []
    for name in levels.AUTOMATIC if level == "auto" else (level,):
        common = plan(name, imports)
        workers = [Worker(common) for _ in range(num_workers)]
        try:
            for worker in workers:
                worker.spawn()
            for worker in workers:
                worker.await_ready()
            if name != "none":
                levels.attack(workers[0])
        except BaseException as error:
            _stop(workers, os.getpid())
            if not isinstance(error, SandboxError):
                raise
            failures.append(str(error))
        else:
            return name, workers
    fix = "`python -m sandbox doctor` shows what this machine allows"
    raise SandboxError("; ".join([*failures, fix]))


def _stop(workers: list[Worker], owner: int) -> None:
    for worker in workers:
        if os.getpid() == owner:
            worker.stop()
        else:  # a fork of the caller: they are not ours to end
            worker.abandon()
