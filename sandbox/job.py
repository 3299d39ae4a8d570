"""A job as its caller sees it, with its output so far, its one deadline, and its end."""

from __future__ import annotations

import fcntl
import math
import os
import select
import signal
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager

from sandbox import wire
from sandbox.protocol import COMPILE_ERROR, NOT_RUN, OUT_OF_MEMORY, OUT_OF_TIME, UNKNOWN, Job, Reply
from sandbox.result import ExecResult, Limits, Status
from sandbox.worker import Worker, WorkerLost

CHUNK = 1 << 16
LOOK_SECONDS = 0.25
"""How often we look at what the memory cgroup counts, while nothing else happens."""
KILL_SECONDS = 5.0
"""How long the fork server may take to end a job that was killed, before it is ended itself."""
_SEALS = fcntl.F_SEAL_WRITE | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_SEAL


def sealed(text: str) -> int:
    """Returns a descriptor from which `text` can be read, as UTF-8, and to which nobody can write."""
    # A file in memory without a name. Unlike a pipe it needs nobody who writes while the program reads, and the program
    # can seek in it; the seals keep it as it is, though the program holds a descriptor of it.
    fd = os.memfd_create("sandbox", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    left = memoryview(text.encode("utf-8", "surrogatepass"))
    while left:
        left = left[os.write(fd, left) :]
    os.lseek(fd, 0, os.SEEK_SET)
    fcntl.fcntl(fd, fcntl.F_ADD_SEALS, _SEALS)
    return fd


class Running:
    """One job on one worker, from its start to its result; only the thread of the caller touches it."""

    def __init__(
        self, worker: Worker, limits: Limits, code: str, stdin: str, channel: socket.socket | None = None
    ) -> None:
        """Starts it; `channel` is the program's end of a session's socket. If the worker is lost, `result` says so."""
        self.worker, self.limits = worker, limits
        self.verdict: Status | None = None
        self.reply: Reply | None = None
        self.ended = False
        self.output: dict[int, bytearray] = {}
        """What has come so far on stdout and on stderr, by our end of each pipe."""
        self._room = limits.output_kb * 1024
        self._poll = select.poll()
        try:
            self._submit(code, stdin, channel)
            for fd in (worker.control.fileno(), *self.output):
                self._poll.register(fd, select.POLLIN)
        except BaseException:
            self._close()
            raise

    def _submit(self, code: str, stdin: str, channel: socket.socket | None) -> None:
        given: list[int] = []
        try:
            given += [sealed(code)]
            given += [sealed(stdin)]
            for _ in range(2):
                read, write = os.pipe()
                given.append(write)
                # To open /dev/stdout is to open this pipe anew, which the job's own user may do only if all may write.
                # Nobody else has a path to it: it is found through /proc/PID/fd of the job's processes alone.
                os.fchmod(write, 0o622)
                self.output[read] = bytearray()
                os.set_blocking(read, False)
            self._kills_before = self.worker.memory_kills()
            self.started = time.monotonic()
            self.deadline = self.started + self.limits.wall
            job = _job(self.limits, channel is not None)
            self.worker.submit(job, given + ([] if channel is None else [channel.fileno()]))
        except WorkerLost:
            self._end(None)
        finally:
            for fd in given:
                os.close(fd)

    def _close(self) -> None:
        """Lets go of the output. If the job has not ended, because the caller was interrupted, ends its fork server.

        Its reply would otherwise be taken for that of the next job.
        """
        for fd in self.output:
            os.close(fd)
        if not self.ended:
            self.worker.stop()

    def wait(self, other: int | None = None, events: int = 0) -> bool:
        """Attends to the job until it ends (returns False) or until `other` is ready for `events` (returns True)."""
        if other is not None:
            self._poll.register(other, events)
        try:
            while not self.ended:
                if other in self._attend():
                    return True
            return False
        finally:
            if other is not None:
                self._poll.unregister(other)

    @contextmanager
    def within(self, seconds: float) -> Iterator[None]:
        """Brings the deadline forward for a while; an exception ends the job, so that nothing has to be put back."""
        last = self.deadline
        self.deadline = min(last, time.monotonic() + seconds)
        yield
        self.deadline = last

    def kill(self, verdict: Status | None) -> None:
        """Ends the job now; unless it was over already, its result will say `verdict`."""
        if self.ended:
            return
        self.verdict = self.verdict or verdict
        self.worker.kill_job()
        self.deadline = time.monotonic() + KILL_SECONDS

    def _attend(self) -> set[int]:
        """Looks once at everything, for as long as nothing happens; returns the descriptors that are ready."""
        # All that can happen shows on a descriptor of this poll: output, the end of the job, which the fork server says
        # on its control socket, an answer on a session's channel. Only the deadline and the cgroup's counter do not.
        left = min(self.deadline - time.monotonic(), LOOK_SECONDS)
        ready = {fd for fd, _ in self._poll.poll(max(0.0, math.ceil(left * 1000)))}
        if not ready and self.verdict is None and self.worker.memory_kills() > self._kills_before:
            self.kill("memory")  # the kernel killed one process, and others may wait for it
        for fd in self.output.keys() & ready:
            self._read(fd)
        if self.worker.control.fileno() in ready:
            try:
                self._end(self.worker.reply())
            except WorkerLost:
                self._end(None)
        elif time.monotonic() >= self.deadline:
            if self.verdict is None:
                self.kill("timeout")
            else:
                self._end(None)  # the fork server does not answer
        return ready

    def _read(self, fd: int) -> None:
        """Takes what there is on one of the output pipes, up to the limit."""
        try:
            data = os.read(fd, CHUNK)
        except BlockingIOError:
            return
        self.output[fd] += data[: max(0, self._room)]
        self._room -= len(data)
        if not data or self._room < 0:
            self._poll.unregister(fd)
        if self._room < 0:
            self.kill("output_limit")

    def _end(self, reply: Reply | None) -> None:
        """Note that the program is over. Nothing writes any more, so what is in the pipes is all there will be."""
        self.wall = time.monotonic() - self.started
        self.reply, self.ended = reply, True
        for fd, text in self.output.items():
            try:
                while self._room >= 0 and (data := os.read(fd, CHUNK)):
                    text += data[: self._room]
                    self._room -= len(data)
            except BlockingIOError:  # the fork server is lost, and something still lives
                pass
        if self._room < 0:
            self.verdict = self.verdict or "output_limit"

    def result(self) -> ExecResult:
        """Waits for the end, and says how it was."""
        try:
            self.wait()
            out_of_memory = self.worker.memory_kills() > self._kills_before
        finally:
            self._close()
        texts = [bytes(data).decode("utf-8", "replace") for data in self.output.values()]
        if self.reply is None:
            self.worker.stop()
            reply = Reply(wait_status=UNKNOWN, cpu=0.0, peak_kb=0, flags=OUT_OF_MEMORY if out_of_memory else NOT_RUN)
        else:
            reply = self.reply
        status, code, number = self._judge(reply, out_of_memory, texts[1])
        return ExecResult(
            status=status, exit_code=code, signal=number, stdout=texts[0], stderr=texts[1] or reply.problem,
            wall=self.wall, cpu=reply.cpu, memory_mb=reply.peak_kb / 1024,
        )  # fmt: skip

    def _judge(self, reply: Reply, out_of_memory: bool, stderr: str) -> tuple[Status, int | None, int | None]:
        if self.verdict is not None:  # how the program took it does not matter
            return self.verdict, None, None
        code, number = None, None
        if reply.wait_status != UNKNOWN and os.WIFSIGNALED(reply.wait_status):
            number = os.WTERMSIG(reply.wait_status)
        elif reply.wait_status != UNKNOWN:
            code = os.WEXITSTATUS(reply.wait_status)
        out_of_cpu = number == signal.SIGXCPU or (number == signal.SIGKILL and reply.cpu >= self.limits.cpu)
        # Python's own last words; a program that forges them has failed all the same.
        out_of_memory |= code not in (0, None) and stderr.rstrip().rpartition("\n")[2].startswith("MemoryError")
        causes: list[tuple[object, Status]] = [
            (reply.flags & COMPILE_ERROR, "compile_error"),
            (out_of_memory or reply.flags & OUT_OF_MEMORY, "memory"),
            (out_of_cpu or reply.flags & OUT_OF_TIME, "timeout"),
            (reply.flags & NOT_RUN or reply.wait_status == UNKNOWN, "infra"),
            (number, "crashed"),
            (code, "exited"),
        ]
        found: list[Status] = [status for cause, status in causes if cause]
        return found[0] if found else "ok", code, number


def infra(problem: str) -> ExecResult:
    """Returns the result of a program that could not be started."""
    return ExecResult(
        status="infra", exit_code=None, signal=None, stdout="", stderr=problem, wall=0.0, cpu=0.0, memory_mb=0.0
    )  # fmt: skip


def _job(limits: Limits, session: bool) -> Job:
    return Job(
        wall=limits.wall, cpu_seconds=math.ceil(limits.cpu), memory_bytes=limits.memory_mb << 20,
        processes=limits.processes, disk_bytes=limits.disk_mb << 20,
        answer_bytes=wire.MAX_BYTES + limits.output_kb * 1024 if session else 0,
    )  # fmt: skip
