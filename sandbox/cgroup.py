"""A memory cgroup of version 1 or 2 around one fork server and its jobs, where this user may make one.

A cgroup is a folder of a kernel's file system. Processes whose ids are written into it share one limit, and so do all
processes that they start later. Nothing else bounds what many processes use together: rlimits count each by itself.

The fork server is put in once, because to move a process takes milliseconds, which no job then pays. It runs one job at
a time, so what is allowed to the group is what it uses itself and the limit of the job.
"""

from __future__ import annotations

import os
import re
from contextlib import suppress
from pathlib import Path

PREFIX = "sandbox-job-"


class MemoryGroup:
    """One group, which can be removed when no process is left in it."""

    def __init__(self, folder: Path, version: int) -> None:
        """Takes a group that exists."""
        self.folder, self.version = folder, version
        self._base = 0
        self._limit = 0

    @classmethod
    def create(cls, name: str) -> MemoryGroup | None:
        """Makes a group below the caller's own or beside it; returns None where that is not allowed."""
        for parent, version in _candidates():
            _remove_stale(parent)
            folder = parent / f"{PREFIX}{os.getpid()}-{name}"
            try:
                folder.mkdir(exist_ok=True)
            except OSError:
                continue
            group = cls(folder, version)
            try:
                group._write(group._limit_file, 1 << 40)
            except OSError:  # version 2 without the memory controller
                with suppress(OSError):
                    folder.rmdir()
                continue
            return group
        return None

    def add(self, pid: int) -> bool:
        """Moves a process in, and with it all children that it will have; returns False if that is not allowed."""
        try:
            self._write("cgroup.procs", pid)
        except OSError:
            return False
        return True

    def note_base(self) -> None:
        """Remembers what the idle fork server uses, which comes on top of every job's limit."""
        self._base = self.used()

    def limit(self, size: int) -> None:
        """Bounds the jobs to `size` bytes, swap included."""
        if size == self._limit:
            return
        # Pages that the fork server has touched are counted in this group already, whoever uses them.
        total = size + self._base
        if self.version == 2:
            self._write("memory.max", total)
            with suppress(OSError):  # no swap accounting
                self._write("memory.swap.max", 0)
        else:
            # Of the two limits of version 1 the second may never be below the first.
            with suppress(OSError):
                self._write("memory.memsw.limit_in_bytes", 1 << 50)
            self._write("memory.limit_in_bytes", total)
            with suppress(OSError):
                self._write("memory.memsw.limit_in_bytes", total)
        self._limit = size

    def used(self) -> int:
        """Returns the bytes that all processes of the group use."""
        return int((self.folder / ("memory.current" if self.version == 2 else "memory.usage_in_bytes")).read_text())

    def kills(self) -> int:
        """Returns how many processes the kernel has killed so far because the limit was reached."""
        text = (self.folder / ("memory.events" if self.version == 2 else "memory.oom_control")).read_text()
        found = re.search(r"^oom_kill (\d+)", text, re.MULTILINE)
        return int(found.group(1)) if found else 0

    def remove(self) -> None:
        """Removes the group, whose processes have ended."""
        with suppress(OSError):
            self.folder.rmdir()

    @property
    def _limit_file(self) -> str:
        return "memory.max" if self.version == 2 else "memory.limit_in_bytes"

    def _write(self, name: str, value: int) -> None:
        # No O_CREAT: in a group without the controller the file must not appear to work.
        with open(os.open(self.folder / name, os.O_WRONLY), "wb", buffering=0) as file:
            file.write(str(value).encode())


def _candidates() -> list[tuple[Path, int]]:
    """Returns folders to make a group in, with their version: the caller's own group, then in version 2 the one above.

    In version 2 a group that has processes of its own cannot limit the memory of groups below it. There the new group
    has to stand beside that of the caller, which needs the right to write in the one above.
    """
    found: list[tuple[Path, int]] = []
    with suppress(OSError):
        mounts = [line.split() for line in Path("/proc/self/mounts").read_text().splitlines()]
        for line in Path("/proc/self/cgroup").read_text().splitlines():
            _, controllers, own = line.split(":", 2)
            for _, where, kind, options, *_ in mounts:
                folder = Path(where + own)
                if kind == "cgroup" and "memory" in controllers.split(",") and "memory" in options.split(","):
                    found.append((folder if folder.is_dir() else Path(where), 1))
                elif kind == "cgroup2" and not controllers and folder.is_dir():
                    found += [(folder, 2)] if own == "/" else [(folder, 2), (folder.parent, 2)]
    return found


def _remove_stale(parent: Path) -> None:
    """Removes the groups of callers that were killed and could not do so themselves."""
    with suppress(OSError):
        for folder in parent.glob(f"{PREFIX}*"):
            pid = folder.name.removeprefix(PREFIX).partition("-")[0]
            if pid.isdigit() and not Path(f"/proc/{pid}").exists():
                with suppress(OSError):
                    folder.rmdir()
