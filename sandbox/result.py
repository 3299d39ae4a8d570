"""What a program may use and how it ended."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Literal

Status = Literal["ok", "timeout", "memory", "output_limit", "crashed", "exited", "compile_error", "infra"]


class SandboxError(Exception):
    """The sandbox cannot do what was asked; the message names the fix."""


class SandboxUnusable(SandboxError):
    """It is closed, belongs to another process, or cannot hold sessions: the caller's mistake, not a failure."""


class SandboxWarning(UserWarning):
    """The level in use protects less than `namespaces`; the message says what it leaves open."""


@dataclass(frozen=True, slots=True)
class Limits:
    """What one job may use, all of its processes together unless said otherwise.

    Example: `Limits(wall=2.0, memory_mb=256)`
    """

    wall: float = 10.0
    """Seconds from the start of the program to its end."""
    cpu: float = 10.0
    """CPU seconds of each process, rounded up to a whole second."""
    memory_mb: int = 1024
    """MiB. Also the address space of each process, on top of what the fork server has mapped."""
    processes: int = 32
    """Processes and threads alive at once, the program's first one included."""
    output_kb: int = 1024
    """KiB of stdout and stderr together; in a session also of each answer."""
    disk_mb: int = 64
    """MiB of files in /box, /tmp and /dev/shm together; none of them outlives the job."""

    def __post_init__(self) -> None:
        """Raise ValueError for a limit that is not a finite positive number, or not whole where it counts things."""
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
    """`exited` is a nonzero exit code, `crashed` a signal; `infra` means that no verdict on the program was reached."""
    exit_code: int | None
    """None unless the program ended by itself and not by a signal."""
    signal: int | None
    """The number, if one ended it that was not sent from out here."""
    stdout: str
    """At most `output_kb` together with stderr; bytes that are not UTF-8 become U+FFFD."""
    stderr: str
    wall: float
    """Seconds."""
    cpu: float
    """Seconds, user and system, of the first process and those that it waited for; 0.0 at level `remote`."""
    memory_mb: float
    """Peak resident MiB of the largest process."""


class JobEnded(Exception):
    """The program of a session is over; `result` says how."""

    def __init__(self, result: ExecResult) -> None:
        """Keep `result`."""
        super().__init__(result.status)
        self.result = result
