"""End every process of a run when its driver is gone, however it went; standard library only.

A driver that gets SIGKILL cannot clean up, and some of Ray's helpers outlive it by minutes. So the driver starts this
file as a process of its own and holds a pipe to it; the pipe closes with the driver, whatever happened. Processes of
the run are known in two ways, because Ray's helpers overwrite their environment and orphans lose their parent: they
were seen below the driver, or they carry a mark. What is not covered: systems without /proc, other machines.
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
LOOK_EVERY_S = 0.5
PATIENCE_S = 10.0
"""How long to look for processes that others were still starting."""

_inside = False
"""Whether this process is inside a block of `reaped`."""
Birth = tuple[int, str]
"""Process id and start time: an id alone may be given to somebody else."""


@contextmanager
def reaped() -> Iterator[None]:
    """Every process started inside the block ends with it, at the latest when this process does.

    Blocks may stand inside each other: the outermost one does the work.
    """
    global _inside
    if _inside:
        yield
        return
    mark, _inside = uuid4().hex, True
    older = ",".join(str(pid) for pid, _ in below({os.getpid()}))
    os.environ[VARIABLE] = mark
    # -I -S: it must start fast and need nothing. A session of its own: Ctrl-C in the terminal is for the driver.
    command = [sys.executable, "-I", "-S", __file__, str(os.getpid()), mark, older]
    reaper = subprocess.Popen(command, stdin=subprocess.PIPE, start_new_session=True)
    try:
        yield
    finally:
        _inside = False
        del os.environ[VARIABLE]
        reaper.communicate()


def below(roots: set[int]) -> set[Birth]:
    """All living descendants of some processes."""
    alive = {int(folder.name): _parent_and_birth(int(folder.name)) for folder in Path("/proc").glob("[0-9]*")}
    found = set(roots)
    while more := {pid for pid, (parent, birth) in alive.items() if parent in found and birth} - found:
        found |= more
    return {(pid, alive[pid][1]) for pid in found - roots}


def marked(mark: str) -> set[Birth]:
    """All living processes that were started with a mark in their environment, this one left out."""
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
    """Follow the driver's descendants until its end of the pipe closes, then kill until none is left."""
    seen: set[Birth] = set()
    spared = {os.getpid(), *older}
    while not select.select([sys.stdin], [], [], LOOK_EVERY_S)[0]:
        seen |= below({driver})
    deadline = time.monotonic() + PATIENCE_S
    while time.monotonic() < deadline:
        seen |= below({pid for pid, _ in seen}) | marked(mark)
        left = [(pid, birth) for pid, birth in seen if pid not in spared and _parent_and_birth(pid)[1] == birth]
        if not left:
            return
        for pid, _ in left:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
        time.sleep(0.05)


def _parent_and_birth(pid: int) -> tuple[int, str]:
    """Parent and start time of a process; (0, "") when it has ended."""
    try:
        after_name = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0, ""
    return (0, "") if after_name[0] == "Z" else (int(after_name[1]), after_name[19])


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2], {int(pid) for pid in sys.argv[3].split(",") if pid})
