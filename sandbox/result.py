"""What a program may use, and what is known of how it ended."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Literal

Status = Literal["ok", "timeout", "memory", "output_limit", "crashed", "exited", "compile_error", "infra"]


class SandboxError(Exception):
    """The sandbox cannot do what was asked; the message names the fix."""


class SandboxUnusable(SandboxError):
    """The sandbox is closed, belongs to another process, or cannot hold sessions, which is the caller's mistake."""


class SandboxWarning(UserWarning):
    """The level in use protects less than `namespaces`; the message says what it leaves open."""


@dataclass(frozen=True, slots=True)
class Limits:
    """What one job may use; unless said otherwise that is for all of its processes together.

    Example: `Limits(wall=2.0, memory_mb=256)`
    """

    wall: float = 10.0
    """Seconds from the start of the program to its end."""
    cpu: float = 10.0
    """CPU seconds that each process may take, rounded up to a whole second."""
    memory_mb: int = 1024
    """MiB of memory; also of address space for each process, on top of what the fork server has mapped."""
    processes: int = 32
    """How many processes and threads may live at once, the first one included."""
    output_kb: int = 1024
    """KiB of stdout and stderr together; in a session each answer may have as many, too."""
    disk_mb: int = 64
    """MiB of files in /box, /tmp and /dev/shm together; none of them outlives the job."""

    def __post_init__(self) -> None:
        """Raises ValueError for a limit that is not a positive number, or not a whole one where it counts things."""
        for name, value in asdict(self).items():
            whole = name not in ("wall", "cpu")
            kind = "a whole number" if whole else "a number"
            fits = isinstance(value, int) or (isinstance(value, float) and not whole and math.isfinite(value))
            if isinstance(value, bool) or not fits or not 0 < value < 2**31:
                raise ValueError(f"Limits.{name}={value!r}: must be {kind} above 0 (and below 2**31)")


@dataclass(frozen=True, slots=True, kw_only=True)
class ExecResult:
    """How a program ended.

    Example: `Sandbox().run("print(6 * 7)")` gives `status="ok", exit_code=0, stdout="42\\n"`.
    """

    status: Status
    """`exited` stands for a nonzero exit code, `crashed` for a signal; with `infra` nothing is known of the program."""
    exit_code: int | None
    """The exit code; None unless the program ended by itself and not by a signal."""
    signal: int | None
    """The number of the signal that ended it, if that was not sent from out here."""
    stdout: str
    """What it printed, at most `output_kb` together with stderr; bytes that are not UTF-8 become U+FFFD."""
    stderr: str
    wall: float
    """Seconds from its start to its end."""
    cpu: float
    """User and system seconds of the first process and of those that it waited for; 0.0 at level `remote`."""
    memory_mb: float
    """The most MiB that the largest process had in memory."""


class JobEnded(Exception):
    """The program of a session is over; `result` says how it ended."""

    def __init__(self, result: ExecResult) -> None:
        """Keeps `result`."""
        super().__init__(result.status)
        self.result = result
