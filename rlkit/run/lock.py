"""One run at a time in a folder: two would take their checkpoints from each other."""

from __future__ import annotations

import errno
import fcntl
import os
import shlex
import socket
import sys
from datetime import datetime
from pathlib import Path

from rlkit.errors import UserError

LOCK_FILE = "run.lock"
NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)
"""What a file system answers that has no locks, as some network folders; a run there is on its own word."""


class Lock:
    """Holds a folder until `release`, or until the process ends in whatever way.

    The operating system keeps the lock (flock), not the file: a run that was killed leaves the file behind, and the
    next one takes the lock all the same. The file says in words who has it.
    """

    def __init__(self, folder: Path) -> None:
        """Makes the folder if it is missing; raises UserError with the holder's name if another run is in it."""
        folder.mkdir(parents=True, exist_ok=True)
        self._descriptor = os.open(folder / LOCK_FILE, os.O_RDWR | os.O_CREAT, 0o644)
        if not _take(self._descriptor):
            error = _in_use(folder, self._descriptor)
            self.release()
            raise error
        command = shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]])
        now = datetime.now().strftime("%Y-%m-%d %H:%M:%S")
        os.ftruncate(self._descriptor, 0)
        words = f"process {os.getpid()} on {socket.gethostname()}, since {now}: {command}\n"
        os.pwrite(self._descriptor, words.encode(errors="replace")[:2000], 0)

    def release(self) -> None:
        """Lets go of the folder; harmless when repeated."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1


def check_free(folder: Path) -> None:
    """Raises UserError if a run is at work in the folder; makes and keeps nothing."""
    if not (folder / LOCK_FILE).exists():
        return
    descriptor = os.open(folder / LOCK_FILE, os.O_RDONLY)
    try:
        if not _take(descriptor, fcntl.LOCK_SH):
            raise _in_use(folder, descriptor)
    finally:
        os.close(descriptor)


def _in_use(folder: Path, descriptor: int) -> UserError:
    holder = os.pread(descriptor, 2000, 0).decode(errors="replace").strip()
    return UserError(
        f"output_dir={folder} is in use by another run ({holder or 'which has just started'}); wait for it, end it, "
        "or set another output_dir"
    )


def _take(descriptor: int, kind: int = fcntl.LOCK_EX) -> bool:
    try:
        fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno not in NO_LOCKS:
            return False
    return True
