"""Linux calls for which Python has no function, through ctypes; each failure is an OSError that names the call."""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import signal
from ctypes import c_char_p, c_int, c_long, c_ulong, c_void_p

CLONE_VM = 0x00000100
CLONE_NEWNS = 0x00020000
CLONE_NEWUTS = 0x04000000
CLONE_NEWIPC = 0x08000000
CLONE_NEWUSER = 0x10000000
CLONE_NEWPID = 0x20000000
CLONE_NEWNET = 0x40000000

MS_RDONLY, MS_NOSUID, MS_NODEV, MS_NOEXEC, MS_REMOUNT = 1, 2, 4, 8, 32
MS_BIND, MS_REC, MS_PRIVATE = 0x1000, 0x4000, 0x40000
MNT_DETACH = 2

PR_SET_PDEATHSIG, PR_SET_DUMPABLE, PR_SET_SECCOMP, PR_CAPBSET_DROP = 1, 4, 22, 24
PR_SET_CHILD_SUBREAPER, PR_SET_NO_NEW_PRIVS = 36, 38
CAP_LAST = 63
"""The largest number that a capability may have; the kernel answers EINVAL from the first that it does not know."""

ARCH = platform.machine()
_NUMBERS = {
    "x86_64": {"capset": 126, "pivot_root": 155, "mount_setattr": 442},
    "aarch64": {"capset": 91, "pivot_root": 41, "mount_setattr": 442},
}.get(ARCH, {})
_LANDLOCK = {"landlock_create_ruleset": 444, "landlock_add_rule": 445, "landlock_restrict_self": 446}

libc = ctypes.CDLL(None, use_errno=True)
libc.mount.argtypes = [c_char_p, c_char_p, c_char_p, c_ulong, c_char_p]
libc.umount2.argtypes = [c_char_p, c_int]
libc.unshare.argtypes = [c_int]
libc.setns.argtypes = [c_int, c_int]
libc.prctl.argtypes = [c_int, c_ulong, c_ulong, c_ulong, c_ulong]
libc.syscall.restype = c_long


def _checked(result: int, call: str) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{call}: {os.strerror(number)}")
    return result


def syscall(name: str, *arguments: object) -> int:
    """Makes a system call by its name; integers are passed as C longs.

    Raises OSError, with ENOSYS on an architecture whose numbers are not listed here.
    """
    number = _LANDLOCK.get(name) or _NUMBERS.get(name)
    if number is None:
        raise OSError(errno.ENOSYS, f"{name}: no number known for {ARCH}")
    given = [c_long(argument) if isinstance(argument, int) else argument for argument in arguments]
    return _checked(libc.syscall(c_long(number), *given), name)


def prctl(option: int, first: int = 0, second: int = 0) -> int:
    """Calls prctl(2), with 0 for the arguments that it does not use."""
    return _checked(libc.prctl(option, first, second, 0, 0), f"prctl({option})")


def unshare(flags: int) -> None:
    """Calls unshare(2): the process leaves its namespaces of these kinds for new ones."""
    _checked(libc.unshare(flags), f"unshare({flags:#x})")


def setns(fd: int, kind: int) -> None:
    """Calls setns(2): the process enters the namespace on which `fd` is open."""
    _checked(libc.setns(fd, kind), "setns")


def mount(source: str | None, target: str, kind: str | None, flags: int, options: str = "") -> None:
    """Calls mount(2)."""
    given = [None if text is None else os.fsencode(text) for text in (source, target, kind)]
    _checked(libc.mount(*given, flags, options.encode() or None), f"mount({source} on {target})")


def umount(target: str) -> None:
    """Calls umount2(2): what is mounted leaves the tree now, and is freed when nobody uses it any more."""
    _checked(libc.umount2(os.fsencode(target), MNT_DETACH), f"umount({target})")


def pivot_root(new: str) -> None:
    """Makes `new`, a mount point, the root directory, and lets go of the old one."""
    os.chdir(new)
    # With "." for both, the old root ends up on top of the new one, and is taken off there. It needs no folder.
    syscall("pivot_root", b".", b".")
    umount(".")
    os.chdir("/")


def stack() -> ctypes.Array[ctypes.c_char]:
    """Returns memory for the stack of `clone_sleeper`."""
    return ctypes.create_string_buffer(1 << 16)


def clone_sleeper(stack: ctypes.Array[ctypes.c_char]) -> int:
    """Starts a child process that sleeps in pause(2) until it is killed, and returns its id.

    It shares our memory, so that the kernel has no page tables to copy, and it runs on `stack`.
    """
    top = (ctypes.addressof(stack) + len(stack)) & ~0xF
    sleep = ctypes.cast(libc.pause, c_void_p)
    return _checked(libc.clone(sleep, c_void_p(top), CLONE_VM | signal.SIGCHLD, None), "clone")


class _MountAttributes(ctypes.Structure):
    _fields_ = [("attr_set", ctypes.c_uint64), ("attr_clr", ctypes.c_uint64)]
    _fields_ += [("propagation", ctypes.c_uint64), ("userns_fd", ctypes.c_uint64)]


def bind_read_only(source: str, target: str) -> None:
    """Shows `source` at `target` as well, with all that is mounted below it, and read-only there."""
    mount(source, target, None, MS_BIND | MS_REC)
    attributes = _MountAttributes(MS_RDONLY | MS_NOSUID | MS_NODEV)
    try:  # recursive: AT_FDCWD, AT_RECURSIVE; same bits as MS_*
        syscall("mount_setattr", -100, os.fsencode(target), 0x8000, ctypes.byref(attributes), ctypes.sizeof(attributes))
    except OSError:  # Linux before 5.12: the top mount only. Flags that it has must be named again in a user namespace.
        kept = os.statvfs(target).f_flag & (os.ST_NOSUID | os.ST_NODEV | os.ST_NOEXEC | os.ST_NOATIME | os.ST_RELATIME)
        relatime = 0x200000 if kept & os.ST_RELATIME else 0
        flags = MS_RDONLY | MS_NOSUID | MS_NODEV | (kept & ~os.ST_RELATIME) | relatime
        mount(None, target, None, MS_BIND | MS_REMOUNT | flags)


def drop_bounding_set() -> None:
    """Takes every capability out of the bounding set, so that no later exec can give one."""
    for capability in range(CAP_LAST + 1):
        try:
            prctl(PR_CAPBSET_DROP, capability)
        except OSError as error:
            if error.errno in (errno.EINVAL, errno.EPERM):  # past the last one; or nothing to give up either
                return
            raise


def set_capabilities(mask: int) -> None:
    """Makes `mask` the permitted and effective capabilities, and none of them inheritable."""
    header = (ctypes.c_uint32 * 2)(0x20080522, 0)
    low, high = mask & 0xFFFFFFFF, mask >> 32
    syscall("capset", header, (ctypes.c_uint32 * 6)(low, low, 0, high, high, 0))
