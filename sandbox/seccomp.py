"""The system calls that a candidate may not make, as a classic BPF program (seccomp(2), Documentation/userspace-api).

The kernel runs the program at each system call. It loads words of `struct seccomp_data`, jumps forward by what they
are, and returns what is to be done: allow the call, let it fail with an error number, or end the process.

It is a list of what is denied, with an upper end: what is not listed is ordinary computing, and calls that are newer
than the list answer as if the kernel did not have them.
"""

from __future__ import annotations

import ctypes
import errno
import struct

from sandbox import kernel

AUDIT_ARCH = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
NEWEST = 450
"""Higher numbers, which came after Linux 5.17, answer ENOSYS as on a kernel that lacks them, on all architectures."""
X32_BIT = 0x40000000

# name: (x86_64, aarch64), None where the architecture has no such call.
DENIED: dict[str, tuple[int | None, int | None]] = {
    # programs, and other processes
    "execve": (59, 221), "execveat": (322, 281), "ptrace": (101, 117), "process_vm_readv": (310, 270),
    "process_vm_writev": (311, 271), "process_madvise": (440, 440), "process_mrelease": (448, 448), "kcmp": (312, 272),
    "pidfd_getfd": (438, 438), "setpriority": (141, 140), "ioprio_set": (251, 30),
    # networks; socketpair has a rule of its own
    "socket": (41, 198), "connect": (42, 203), "bind": (49, 200), "listen": (50, 201), "accept": (43, 202),
    "accept4": (288, 242),
    # mounts and namespaces
    "mount": (165, 40), "umount2": (166, 39), "pivot_root": (155, 41), "chroot": (161, 51), "move_mount": (429, 429),
    "open_tree": (428, 428), "fsopen": (430, 430), "fsconfig": (431, 431), "fsmount": (432, 432), "fspick": (433, 433),
    "mount_setattr": (442, 442), "unshare": (272, 97), "setns": (308, 268), "name_to_handle_at": (303, 264),
    "open_by_handle_at": (304, 265),
    # memory and state that no limit counts, or that outlives a job in the IPC namespace
    "memfd_create": (319, 279), "memfd_secret": (447, 447), "shmget": (29, 194), "shmat": (30, 196),
    "shmctl": (31, 195), "semget": (64, 190), "semop": (65, 193), "semctl": (66, 191), "semtimedop": (220, 192),
    "msgget": (68, 186), "msgsnd": (69, 189), "msgrcv": (70, 188), "msgctl": (71, 187), "mq_open": (240, 180),
    "mq_unlink": (241, 181), "add_key": (248, 217), "request_key": (249, 218), "keyctl": (250, 219),
    # parts of the kernel with a history of holes, or for administrators
    "bpf": (321, 280), "perf_event_open": (298, 241), "io_uring_setup": (425, 425), "io_uring_enter": (426, 426),
    "io_uring_register": (427, 427), "userfaultfd": (323, 282), "seccomp": (317, 277), "modify_ldt": (154, None),
    "personality": (135, 92), "vmsplice": (278, 75), "fanotify_init": (300, 262), "fanotify_mark": (301, 263),
    "init_module": (175, 105), "finit_module": (313, 273), "delete_module": (176, 106), "kexec_load": (246, 104),
    "kexec_file_load": (320, 294), "reboot": (169, 142), "swapon": (167, 224), "swapoff": (168, 225), "acct": (163, 89),
    "quotactl": (179, 60), "quotactl_fd": (443, 443), "iopl": (172, None), "ioperm": (173, None), "syslog": (103, 116),
    "settimeofday": (164, 170), "clock_settime": (227, 112), "clock_adjtime": (305, 266), "adjtimex": (159, 171),
    "sethostname": (170, 161), "setdomainname": (171, 162), "vhangup": (153, 58), "lookup_dcookie": (212, 18),
    "nfsservctl": (180, 42), "uselib": (134, None), "migrate_pages": (256, 238), "move_pages": (279, 239),
}  # fmt: skip
OWN_PROCESS_ONLY = {
    "prlimit64": (302, 261), "sched_setaffinity": (203, 122), "sched_setparam": (142, 118),
    "sched_setscheduler": (144, 119), "sched_setattr": (314, 274),
}  # fmt: skip
"""Their first argument, a process, must be 0: with others a job could starve every process of its user."""
CLONE, CLONE3, SOCKETPAIR, IOCTL = (56, 220), (435, 435), (53, 199), (16, 29)
NEW_NAMESPACE = 0x7E020000
"""All the CLONE_NEW* flags that clone(2) takes."""
TIOCSTI = 0x5412
STREAM, SEQPACKET = 1, 5
"""Datagram pairs could still send to a named socket, and BPF cannot see the name."""

_LOAD, _JUMP_IF, _JUMP_ABOVE, _JUMP_BITS, _AND, _RETURN = 0x20, 0x15, 0x25, 0x45, 0x54, 0x06
_ALLOW, _KILL, _ERRNO = 0x7FFF0000, 0x80000000, 0x00050000
_NUMBER, _ARCH, _ARGUMENTS = 0, 4, 16  # offsets in struct seccomp_data; the arguments are 8 bytes each, low half first


def _step(code: int, value: int, if_true: int = 0, if_false: int = 0) -> bytes:
    return struct.pack("=HBBI", code, if_true, if_false, value)


def _deny(number: int, error: int = errno.EPERM) -> bytes:
    return _step(_JUMP_IF, number, 0, 1) + _step(_RETURN, _ERRNO | error)


def _only(number: int, *test: bytes) -> bytes:
    """Applies `test` to call `number`: its last step goes on to a refusal, or jumps past it to be allowed."""
    body = b"".join(test) + _step(_RETURN, _ERRNO | errno.EPERM) + _step(_RETURN, _ALLOW)
    return _step(_JUMP_IF, number, 0, len(body) // 8) + body


def _argument(index: int) -> bytes:
    return _step(_LOAD, _ARGUMENTS + 8 * index)


def program(arch: str = kernel.ARCH) -> bytes:
    """Returns the filter for `arch` as struct sock_filter[]; raises OSError (ENOSYS) where no table exists."""
    if arch not in AUDIT_ARCH:
        raise OSError(errno.ENOSYS, f"no system call table for {arch}, only for {', '.join(AUDIT_ARCH)}")
    column = list(AUDIT_ARCH).index(arch)
    # The number of a call means something else for programs of another architecture, which the same kernel may run (32
    # bits beside 64, and x32, which sets a bit in the number). So these are ended before any number is looked at.
    steps = [_step(_LOAD, _ARCH), _step(_JUMP_IF, AUDIT_ARCH[arch], 1, 0), _step(_RETURN, _KILL), _step(_LOAD, _NUMBER)]
    if arch == "x86_64":
        steps += [_step(_JUMP_BITS, X32_BIT, 0, 1), _step(_RETURN, _KILL)]
    steps += [_step(_JUMP_ABOVE, NEWEST, 0, 1), _step(_RETURN, _ERRNO | errno.ENOSYS)]
    steps += [_deny(number) for numbers in DENIED.values() if (number := numbers[column]) is not None]
    # glibc falls back to clone, whose flags are in a register; those of clone3 are in memory that BPF cannot read.
    steps.append(_deny(CLONE3[column], errno.ENOSYS))
    steps.append(_only(CLONE[column], _argument(0), _step(_JUMP_BITS, NEW_NAMESPACE, 0, 1)))
    steps += [_only(numbers[column], _argument(0), _step(_JUMP_IF, 0, 1, 0)) for numbers in OWN_PROCESS_ONLY.values()]
    # The type of a socket has flags in its upper bits; only the lower four say what kind it is.
    kind = (_argument(1), _step(_AND, 0xF), _step(_JUMP_IF, STREAM, 2, 0), _step(_JUMP_IF, SEQPACKET, 1, 0))
    steps.append(_only(SOCKETPAIR[column], *kind))
    steps.append(_only(IOCTL[column], _argument(1), _step(_JUMP_IF, TIOCSTI, 0, 1)))
    steps.append(_step(_RETURN, _ALLOW))
    return b"".join(steps)


class Filter:
    """Holds the program, which the fork server makes once and each job installs."""

    def __init__(self) -> None:
        """Lays the program out in memory; raises OSError where no table exists."""
        code = program()
        self._code = ctypes.create_string_buffer(code, len(code))
        # struct sock_fprog: the length, padding, the address.
        self._header = ctypes.create_string_buffer(struct.pack("@HP", len(code) // 8, ctypes.addressof(self._code)))

    def install(self) -> None:
        """Binds the calling thread and all that it starts, for good; needs no_new_privs. Raises OSError."""
        kernel.prctl(kernel.PR_SET_SECCOMP, 2, ctypes.addressof(self._header))
