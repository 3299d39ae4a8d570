"""End every process of a run when its driver is gone, however it went; standard library only.

A driver that gets SIGKILL cannot clean up, and some of Ray's helpers outlive it by minutes. So the driver starts this
file as a process of its own, the reaper, and holds a pipe to it. When the driver ends, in whatever way, the kernel
closes the pipe, and the reaper reads that and kills what is left.

How does it know what belongs to the run? A process that is orphaned loses its parent, so the tree of processes does not
tell; Ray's helpers overwrite their environment, so a mark in there does not tell either. Both together do: the reaper
looks twice a second at what is below the driver and remembers it, and every process inherits the mark. What is not
covered: systems without /proc, and other machines.
"""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from uuid import uuid4

VARIABLE = "RLKIT_RUN"
"""The environment variable that holds the mark."""
LOOK_EVERY_S = 0.5
PATIENCE_S = 10.0
"""Seconds to go on looking for processes that others were still starting."""

_inside = False
"""Says whether this process is inside a block of `reaped`."""
Birth = tuple[int, str]
"""The id of a process and its start time: when a process has ended, its id may be given to another one."""


@contextmanager
def reaped() -> Iterator[None]:
    """Ends every process that is started inside the block with it, at the latest when this process ends.

    Blocks may stand inside each other: the outermost one does the work.
    """
    global _inside
    if _inside:
        yield
        return
    mark, _inside = uuid4().hex, True
    older = ",".join(str(pid) for pid, _ in below({os.getpid()}))
    os.environ[VARIABLE] = mark
    # With -I -S it starts fast and needs nothing but this file. In a session of its own it hears no Ctrl-C from the
    # terminal, which is for the driver.
    command = [sys.executable, "-I", "-S", __file__, str(os.getpid()), mark, older]
    reaper = subprocess.Popen(command, stdin=subprocess.PIPE, start_new_session=True)
    try:
        yield
    finally:
        _inside = False
        del os.environ[VARIABLE]
        reaper.communicate()


def below(roots: set[int]) -> set[Birth]:
    """Finds all living descendants of some processes."""
    alive = {int(folder.name): _parent_and_birth(int(folder.name)) for folder in Path("/proc").glob("[0-9]*")}
    found = set(roots)
    # Every round adds the children of those that are known, until a round finds no new ones. A process without a birth
    # has ended: it is a zombie, or it went away while we were reading.
    while more := {pid for pid, (parent, birth) in alive.items() if parent in found and birth} - found:
        found |= more
    return {(pid, alive[pid][1]) for pid in found - roots}


def marked(mark: str) -> set[Birth]:
    """Finds all living processes that were started with a mark in their environment, except this one."""
    word = f"{VARIABLE}={mark}".encode()
    found = set()
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if word in (folder / "environ").read_bytes().split(b"\0") and int(folder.name) != os.getpid():
                found.add((int(folder.name), _parent_and_birth(int(folder.name))[1]))
        except OSError:  # it ended meanwhile, or belongs to another user
            continue
    return found


def main(driver: int, mark: str, older: set[int]) -> None:
    """Follows the driver's descendants until its end of the pipe closes, then kills until none is left."""
    seen: set[Birth] = set()
    spared = {os.getpid(), *older}  # the driver's children from before the block belong to somebody else
    while not select.select([sys.stdin], [], [], LOOK_EVERY_S)[0]:
        seen |= below({driver})
    # One blow is not enough: while we kill, a process that we have not reached yet may start another one. We look and
    # kill again until a look finds nobody.
    deadline = time.monotonic() + PATIENCE_S
    while time.monotonic() < deadline:
        seen |= below({pid for pid, _ in seen}) | marked(mark)
        left = [(pid, birth) for pid, birth in seen if pid not in spared and _parent_and_birth(pid)[1] == birth]
        if not left:
            return
        for pid, _ in left:
            try:
                os.kill(pid, signal.SIGKILL)
            except (ProcessLookupError, PermissionError):  # it has ended, or runs as another user
                continue
        time.sleep(0.05)


def _parent_and_birth(pid: int) -> tuple[int, str]:
    """Returns parent and start time of a process; (0, "") when it has ended.

    The second field of `stat` is the name in brackets, which may hold blanks and brackets: we read behind the last one.
    """
    try:
        after_name = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0, ""
    return (0, "") if after_name[0] == "Z" else (int(after_name[1]), after_name[19])


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2], {int(pid) for pid in sys.argv[3].split(",") if pid})
