"""The fork server, a clean interpreter that loads modules once, locks itself up once, and then forks for every job.

A fork is a copy of the process: it has all modules at once, and whatever it does to them stays its own. But it is a
copy of everything. So the fork server is exec'ed without the environment and the descriptors of the caller, and holds
nothing that a job might not have. It also has one thread only: a fork copies no other, and a lock that one of those had
taken would stay taken in the copy for ever.

It runs one job at a time, and `sandbox.protocol` is what it hears and says. When the caller is gone, so is this.
"""

from __future__ import annotations

import ctypes
import gc
import os
import resource
import select
import signal
import site
import socket
import sys
import time
from contextlib import suppress
from functools import partial
from importlib import import_module
from types import ModuleType
from typing import NoReturn

FOLDER = os.path.dirname(os.path.abspath(__file__))
# The modules of the package that are needed here, without its __init__, which is for the caller: every fork pays for
# what is in this process.
sys.modules["sandbox"] = ModuleType("sandbox")
sys.modules["sandbox"].__path__ = [FOLDER]
from sandbox import calls, isolate, program, protocol  # noqa: E402
from sandbox.protocol import Job, Reply, Settings  # noqa: E402

PRELOADED = (
    "array", "bisect", "collections", "copy", "dataclasses", "datetime", "decimal", "enum", "fractions", "functools",
    "heapq", "io", "itertools", "json", "math", "operator", "random", "re", "statistics", "string", "traceback",
    "typing", "multiprocessing.resource_tracker",
)  # fmt: skip
"""Modules of the standard library that many programs import, and one that `_candidate` has to change."""
ENVIRONMENT = {
    "HOME": "/box", "LANG": "C.UTF-8", "PATH": "", "TMPDIR": "/tmp", "USER": "user",
    # Threads of a library in the fork server would not be there after a fork; in a job they would count as processes.
    "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "NUMEXPR_NUM_THREADS": "1",
}  # fmt: skip
CHANNEL, LAST_UNUSED = 3, 64
"""In the candidate's process the socket of a session has the first number; from there to the other all are closed."""
POLL_MS = 50
"""How often the memory of a job's processes is added up, where no cgroup does that."""
GRACE_SECONDS = 2.0
"""So long after its wall limit a job ends even if the caller, who holds the deadline, is stuck."""
M_ARENA_MAX = -8
COMPILE, FAILURE = b"C", b"F"
"""What the report begins with that the candidate's process may send before any code of the candidate runs in it."""


def load(settings: Settings) -> None:
    """Imports what jobs are to find loaded, and makes this process look like one that starts a program."""
    sys.path[:0] = settings.search
    os.environ.clear()
    os.environ.update(ENVIRONMENT)
    for name in (*PRELOADED, *settings.imports):
        import_module(name)
    calls.load_assumed()
    if len(os.listdir("/proc/self/task")) > 1:
        raise ImportError(f"imports={list(settings.imports)}: one of these starts threads, which a fork does not copy")
    for name in [name for name in sys.modules if name.partition(".")[0] == "sandbox"]:
        del sys.modules[name]
    site.setquit()  # what `python -S` leaves out: exit() and quit()
    sys.argv[:] = [program.FILE]
    # Each thread that allocates would reserve 64 MiB of the address space limit.
    ctypes.CDLL(None).mallopt(M_ARENA_MAX, 2)


class Server:
    """Serves one job after another."""

    def __init__(self, control: socket.socket, parent: int, settings: Settings, walls: isolate.Walls) -> None:
        """Keeps what all jobs need; `parent` is a pidfd of the caller."""
        self.control, self.parent, self.settings, self.walls = control, parent, settings, walls
        self.own_bytes, _ = self._pages("self")
        self.idle = select.poll()
        self.idle.register(control, select.POLLIN)
        self.idle.register(parent, select.POLLIN)

    def serve_one(self) -> bool:
        """Runs the next job to its end; returns False when the caller is gone."""
        if any(fd == self.parent for fd, _ in self.idle.poll()):
            return False
        message, fds, _, _ = socket.recv_fds(self.control, protocol.MESSAGE_BYTES, 8)
        if not message:
            return False
        if message == protocol.KILL:  # of a job that had just ended
            return True
        job = Job.decode(message)
        report_read, report_write = os.pipe()
        try:
            pid = self.walls.fork()
        except OSError as error:  # EAGAIN, ENOMEM: the host's trouble, not the program's
            reply, alive = (
                Reply(wait_status=protocol.UNKNOWN, cpu=0.0, peak_kb=0, flags=protocol.NOT_RUN, problem=str(error)),
                True,
            )
        else:
            if not pid:
                self._candidate(job, fds, report_write)
            os.close(report_write)
            report_write = -1
            for fd in fds:
                os.close(fd)
            fds = []
            flags, alive = self._watch(pid, job)
            # `_watch` has killed what there is of the job, but its id stays taken until we wait for it here, and only
            # then is known what it used. All else of the job goes in `sweep`, before the next one may start.
            _, status, usage = os.wait4(pid, 0)
            self.walls.sweep()
            reply = _reply(os.read(report_read, protocol.MESSAGE_BYTES), status, flags, usage)
        for fd in (*fds, report_read, report_write):
            if fd >= 0:
                os.close(fd)
        if alive:
            self.control.send(reply.encode())
        return alive

    def _watch(self, pid: int, job: Job) -> tuple[int, bool]:
        """Waits for the end of a job, or for a reason to end it; returns flags, and whether the caller still lives.

        A pidfd is a descriptor of a process that becomes readable when the process ends. So one poll waits for the end
        of the job, a word of the caller, and the end of the caller, without signals or a thread.
        """
        ended = os.pidfd_open(pid)
        poll = select.poll()
        for fd in (ended, self.control, self.parent):
            poll.register(fd, select.POLLIN)
        flags, alive, deadline = 0, True, time.monotonic() + job.wall + GRACE_SECONDS
        while True:
            left_ms = max(0, int((deadline - time.monotonic()) * 1000) + 1)
            ready = [fd for fd, _ in poll.poll(left_ms if self.settings.counted else min(POLL_MS, left_ms))]
            if ended in ready:
                break
            if self.parent in ready or (self.control.fileno() in ready and self.control.recv(8) != protocol.KILL):
                alive = False
            elif not ready and left_ms <= 1:
                flags |= protocol.OUT_OF_TIME
            elif not ready:
                if not self._uses_more_than(job.memory_bytes):
                    continue
                flags |= protocol.OUT_OF_MEMORY
            break
        self.walls.kill(pid)
        os.close(ended)
        return flags, alive

    def _candidate(self, job: Job, fds: list[int], report: int) -> NoReturn:
        """Lives as the process of the program; when its code starts, nothing is left that it could use against us."""
        try:
            signal.signal(signal.SIGINT, signal.default_int_handler)
            self.walls.prepare(job)
            source = os.pread(fds[0], os.fstat(fds[0]).st_size, 0)
            # Now every descriptor gets the number at which a program expects it, and all others are closed. The report
            # is the last way to the fork server; it goes out of the way, and is closed before the code starts.
            report = os.dup2(report, LAST_UNUSED, inheritable=False)
            for target, fd in enumerate(fds[1:]):
                os.dup2(fd, target)
            os.closerange(CHANNEL + (job.answer_bytes > 0), LAST_UNUSED)
            os.closerange(LAST_UNUSED + 1, isolate.OPEN_FILES)
            with open(program.FILE, "wb") as file:  # tracebacks and inspect show its lines
                file.write(source)
            sys.path.insert(0, os.getcwd())
            self.walls.confine(job, self.own_bytes + job.memory_bytes)
            code = program.compile_program(source, lambda: os.write(report, COMPILE))
        except BaseException as error:
            os.write(report, FAILURE + f"{type(error).__name__}: {error}".encode()[:1000])
            os._exit(1)
        os.close(report)
        # multiprocessing's shared memory wants a tracker, another program, which may not start here: a job's files go
        # with the job. What it would be told goes nowhere.
        sys.modules["multiprocessing.resource_tracker"]._resource_tracker._fd = os.open("/dev/null", os.O_WRONLY)
        if job.answer_bytes:
            serve = partial(calls.serve, answer_bytes=job.answer_bytes)
            program.answer(source.decode("utf-8", "surrogatepass"), CHANNEL, serve)
        program.run(code)

    def _uses_more_than(self, limit: int) -> bool:
        """Whether the processes of the job hold more memory together.

        What is resident is quickly read, but counts pages that are shared with us or each other several times. Only if
        that is too much are the proportional shares added up, which takes the kernel longer.
        """
        pids = list(isolate.descendants(os.getpid()))
        if sum(self._pages(pid)[1] for pid in pids) <= limit:
            return False
        total = 0
        for pid in pids:
            with suppress(OSError), open(f"/proc/{pid}/smaps_rollup", "rb") as file:
                lines = [line.split() for line in file]
                total += sum(int(line[1]) * 1024 for line in lines if line[0] in (b"Pss_Anon:", b"Pss_Shmem:"))
        return total > limit

    @staticmethod
    def _pages(pid: int | str) -> tuple[int, int]:
        """Returns how many bytes of a process are mapped and how many resident, 0 if it is gone."""
        with suppress(OSError), open(f"/proc/{pid}/statm", "rb") as file:
            size, resident, *_ = map(int, file.read().split())
            return size * resource.getpagesize(), resident * resource.getpagesize()
        return 0, 0


def _reply(report: bytes, status: int, flags: int, usage: resource.struct_rusage) -> Reply:
    problem = ""
    if report.startswith(COMPILE):
        flags |= protocol.COMPILE_ERROR
    elif report.startswith(FAILURE):
        flags, problem = flags | protocol.NOT_RUN, report[1:].decode("utf-8", "replace")
    cpu = usage.ru_utime + usage.ru_stime
    return Reply(wait_status=status, cpu=cpu, peak_kb=usage.ru_maxrss, flags=flags, problem=problem)


def main() -> NoReturn:
    """Serves until the caller closes the control socket or ends."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # also the init's, which shares our memory and must run no handler
    control = socket.socket(fileno=int(sys.argv[1]))
    parent = os.pidfd_open(os.getppid())
    settings = Settings.decode(control.recv(protocol.MESSAGE_BYTES))
    try:
        load(settings)
        walls = isolate.walls(settings)
        walls.enter(control)
    except (OSError, ImportError) as error:
        control.send(f"error {type(error).__name__}: {error}".encode())
        os._exit(1)
    # What is loaded now will not be garbage. Without `freeze` the first collection in each job would write to the
    # header of every object, and so copy every page that the job shares with us.
    gc.collect()
    gc.freeze()
    server = Server(control, parent, settings, walls)
    control.send(b"ready")
    while server.serve_one():
        pass
    walls.leave()
    os._exit(0)


if __name__ == "__main__":
    main()
