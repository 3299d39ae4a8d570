"""Landlock (landlock(7)), by which a process gives up rights to files, TCP and other processes without a privilege.

A ruleset names the rights that it takes away everywhere, and its rules give some of them back below certain folders.
What was given up once is gone for the process and for all that it starts.
"""

from __future__ import annotations

import ctypes
import os
import stat
import struct
from collections.abc import Iterable

from sandbox import kernel

READ = 1 << 2 | 1 << 3  # read_file, read_dir
ALL_FILES = (0, 0x1FFF, 0x3FFF, 0x7FFF, 0x7FFF, 0xFFFF)
"""All rights to files that version 0 (no Landlock), 1, 2, 3, 4 and 5 know; later versions add none."""
ON_A_FILE = 1 << 0 | 1 << 1 | 1 << 2 | 1 << 14 | 1 << 15
"""The rights that a rule for a single file may grant: execute, write_file, read_file, truncate, ioctl_dev."""
EXECUTE, IOCTL_DEV = 1 << 0, 1 << 15


def abi() -> int:
    """Returns the version of the running kernel's Landlock, or 0 if it has none."""
    try:
        return kernel.syscall("landlock_create_ruleset", None, 0, 1)
    except OSError:
        return 0


def restrict(read: Iterable[str], write: Iterable[str], version: int) -> None:
    """Keeps only the rights to read below `read`, and to do all but execute below `write`; needs no_new_privs.

    Version 4 also takes away TCP, version 6 signals to processes outside and their abstract sockets. Raises OSError.
    """
    # A kernel refuses rights that it does not know, and a struct with more than it knows. So what is asked for, and how
    # much of the struct is given, has to fit its version.
    rights = ALL_FILES[min(version, 5)]
    network, scopes = (0b11 if version >= 4 else 0), (0b11 if version >= 6 else 0)
    attributes = struct.pack("=QQQ", rights, network, scopes)[: 8 if version < 4 else 16 if version < 6 else 24]
    ruleset = kernel.syscall("landlock_create_ruleset", attributes, len(attributes), 0)
    try:
        for paths, granted in ((read, READ), (write, rights & ~(EXECUTE | IOCTL_DEV))):
            for path in paths:
                _allow(ruleset, path, granted)
        kernel.syscall("landlock_restrict_self", ruleset, 0)
    finally:
        os.close(ruleset)


def _allow(ruleset: int, path: str, rights: int) -> None:
    fd = os.open(path, os.O_PATH | os.O_CLOEXEC)
    try:
        if not stat.S_ISDIR(os.fstat(fd).st_mode):
            rights &= ON_A_FILE
        kernel.syscall("landlock_add_rule", ruleset, 1, ctypes.create_string_buffer(struct.pack("=Qi", rights, fd)), 0)
    finally:
        os.close(fd)
