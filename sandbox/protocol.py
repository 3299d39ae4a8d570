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
"""Flags of a reply."""
UNKNOWN = -1
"""In place of a wait status when the job was killed before its first process ended."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """What the caller tells the fork server at its start."""

    level: str
    imports: tuple[str, ...]
    search: tuple[str, ...]
    """Folders for sys.path besides the standard library's."""
    visible: tuple[str, ...]
    """Files and folders that jobs may read."""
    scratch: str
    """A folder of the caller's for the files of jobs, at levels without a private root."""
    uid: int | None
    """The user to become for each job; None stays."""
    counted: bool
    """A memory cgroup bounds the job; else the fork server adds up what its processes use."""

    def encode(self) -> bytes:
        """As JSON."""
        return json.dumps(asdict(self)).encode()

    @classmethod
    def decode(cls, message: bytes) -> Settings:
        """From JSON."""
        given: dict[str, Any] = json.loads(message)
        given |= {key: tuple(value) for key, value in given.items() if isinstance(value, list)}
        return cls(**given)


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """One program's limits as the kernel takes them."""

    wall: float
    cpu_seconds: int
    memory_bytes: int
    processes: int
    disk_bytes: int
    answer_bytes: int
    """The longest answer of a session; 0 for a program without a channel to answer on."""

    def encode(self) -> bytes:
        """As a `JOB`."""
        return JOB.pack(
            self.wall, self.cpu_seconds, self.memory_bytes, self.processes, self.disk_bytes, self.answer_bytes
        )  # fmt: skip

    @classmethod
    def decode(cls, message: bytes) -> Job:
        """From a `JOB`."""
        wall, cpu_seconds, memory_bytes, processes, disk_bytes, answer_bytes = JOB.unpack(message)
        return cls(
            wall=wall, cpu_seconds=cpu_seconds, memory_bytes=memory_bytes, processes=processes,
            disk_bytes=disk_bytes, answer_bytes=answer_bytes,
        )  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Reply:
    """How a job ended, as the fork server saw it."""

    wait_status: int
    """Of the program's first process, or `UNKNOWN`."""
    cpu: float
    """Seconds, user and system, of all processes that were waited for."""
    peak_kb: int
    """Resident KiB of the largest process."""
    flags: int
    problem: str = ""
    """With NOT_RUN: what the fork server could not do."""

    def encode(self) -> bytes:
        """As a `REPLY` and the problem's text."""
        return REPLY.pack(self.wait_status, self.cpu, self.peak_kb, self.flags) + self.problem.encode()

    @classmethod
    def decode(cls, message: bytes) -> Reply:
        """From a `REPLY`."""
        wait_status, cpu, peak_kb, flags = REPLY.unpack_from(message)
        problem = message[REPLY.size :].decode("utf-8", "replace")
        return cls(wait_status=wait_status, cpu=cpu, peak_kb=peak_kb, flags=flags, problem=problem)
