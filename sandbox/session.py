"""A conversation with a program in the sandbox, in which each message gets one answer, within one deadline."""

from __future__ import annotations

import math
import select
import socket
from collections.abc import Callable
from contextlib import suppress
from types import TracebackType
from typing import NoReturn

from sandbox.job import Running
from sandbox.program import HEADER
from sandbox.result import ExecResult, JobEnded


class Session:
    """A running program that answers messages; `Sandbox.session` makes it, and `close` or the end of a `with` ends it.

    What it answers is the program's word for it, of which nothing but the length is checked.
    """

    def __init__(self, running: Running, channel: socket.socket, release: Callable[[], None]) -> None:
        """Keeps the job and our end of its channel; `release` gives the worker back."""
        self._running, self._channel, self._release = running, channel, release
        self._result: ExecResult | None = None
        channel.setblocking(False)

    def exchange(self, message: bytes, seconds: float = math.inf) -> bytes:
        """Sends `message` and waits for its answer; raises JobEnded when the program ends or exceeds a limit.

        `seconds` is a limit for this answer alone, which cannot extend the one of the whole session.
        """
        with self._running.within(seconds):
            return self._exchange(message)

    def _exchange(self, message: bytes) -> bytes:
        left = memoryview(len(message).to_bytes(HEADER, "big") + message)
        while left:
            self._await(select.POLLOUT)
            try:
                left = left[self._channel.send(left, socket.MSG_NOSIGNAL) :]
            except BlockingIOError:
                continue
            except OSError:  # the program closed its end
                self._over()
        size = int.from_bytes(self._receive(HEADER), "big")
        if size > self._running.limits.output_kb * 1024:
            self._running.kill("output_limit")
            self._over()
        return self._receive(size)

    def close(self) -> ExecResult:
        """Tells the program that nothing more will come, waits for its end, and says how it was."""
        if self._result is None:
            try:
                with suppress(OSError):  # it closed its end first
                    self._channel.shutdown(socket.SHUT_WR)
                self._result = self._running.result()
            finally:
                self._channel.close()
                self._release()
        return self._result

    def __enter__(self) -> Session:
        """Returns the session itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Closes the session; after an exception, without waiting for the program to end by itself."""
        if self._result is None and kind is not None:
            self._running.kill("infra")
        self.close()

    def _receive(self, size: int) -> bytes:
        data = bytearray()
        while len(data) < size:
            self._await(select.POLLIN)
            try:
                part = self._channel.recv(min(size - len(data), 1 << 20))
            except BlockingIOError:
                continue
            except OSError:
                part = b""
            if not part:
                self._over()
            data += part
        return bytes(data)

    def _await(self, events: int) -> None:
        if self._result is not None or not self._running.wait(self._channel.fileno(), events):
            self._over()

    def _over(self) -> NoReturn:
        """Raises JobEnded with the result of the job, which is over or has to be."""
        raise JobEnded(self.close())
