"""What the caller and the fork server say to each other over the control socket, one message at a time.

Fork server: "unshared" (only level `namespaces`; the caller answers "mapped"), then "ready" or "error <text>".
Caller, for each job: a `JOB` with the descriptors of program, stdin, stdout, stderr and, for a session, its channel;
perhaps `KILL` while it runs. Fork server: a `REPLY`.
"""

from __future__ import annotations

import json
import struct
from dataclasses import asdict, dataclass
from typing import Any

JOB = struct.Struct("=dqqqqq")
REPLY = struct.Struct("=idqB")
KILL = b"K"
MESSAGE_BYTES = 1 << 16
COMPILE_ERROR, OUT_OF_MEMORY, OUT_OF_TIME, NOT_RUN = 1, 2, 4, 8
"""The flags that a reply may have."""
UNKNOWN = -1
"""This stands for a wait status where the job was killed before its first process ended."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """What the caller tells the fork server at its start."""

    level: str
    imports: tuple[str, ...]
    search: tuple[str, ...]
    """Folders for sys.path besides those of the standard library."""
    visible: tuple[str, ...]
    """Files and folders that jobs may read."""
    scratch: str
    """A folder that the caller has made for the files of jobs, at levels without a root of their own."""
    uid: int | None
    """The user that each job becomes; with None it stays who it is."""
    counted: bool
    """Whether a memory cgroup bounds the job; if not, the fork server adds up what its processes use."""

    def encode(self) -> bytes:
        """Returns it as JSON."""
        return json.dumps(asdict(self)).encode()

    @classmethod
    def decode(cls, message: bytes) -> Settings:
        """Reads it from JSON."""
        given: dict[str, Any] = json.loads(message)
        given |= {key: tuple(value) for key, value in given.items() if isinstance(value, list)}
        return cls(**given)


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """The limits of one program, in the units of the kernel."""

    wall: float
    cpu_seconds: int
    memory_bytes: int
    processes: int
    disk_bytes: int
    answer_bytes: int
    """The longest answer of a session; 0 for a program without a channel to answer on."""

    def encode(self) -> bytes:
        """Returns it as a `JOB`."""
        return JOB.pack(
            self.wall, self.cpu_seconds, self.memory_bytes, self.processes, self.disk_bytes, self.answer_bytes
        )  # fmt: skip

    @classmethod
    def decode(cls, message: bytes) -> Job:
        """Reads it from a `JOB`."""
        wall, cpu_seconds, memory_bytes, processes, disk_bytes, answer_bytes = JOB.unpack(message)
        return cls(
            wall=wall, cpu_seconds=cpu_seconds, memory_bytes=memory_bytes, processes=processes,
            disk_bytes=disk_bytes, answer_bytes=answer_bytes,
        )  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Reply:
    """How a job ended, as the fork server saw it."""

    wait_status: int
    """The wait status of the program's first process, or `UNKNOWN`."""
    cpu: float
    """User and system seconds of all processes that were waited for."""
    peak_kb: int
    """The resident KiB of the largest process."""
    flags: int
    problem: str = ""
    """What the fork server could not do, if the flags say NOT_RUN."""

    def encode(self) -> bytes:
        """Returns it as a `REPLY`, followed by the text of the problem."""
        return REPLY.pack(self.wait_status, self.cpu, self.peak_kb, self.flags) + self.problem.encode()

    @classmethod
    def decode(cls, message: bytes) -> Reply:
        """Reads it from a `REPLY` and what follows."""
        wait_status, cpu, peak_kb, flags = REPLY.unpack_from(message)
        problem = message[REPLY.size :].decode("utf-8", "replace")
        return cls(wait_status=wait_status, cpu=cpu, peak_kb=peak_kb, flags=flags, problem=problem)
