"""The seccomp program, run step by step by an interpreter of our own, and its numbers against the kernel's headers."""

from __future__ import annotations

import errno
import re
import struct
from pathlib import Path

import pytest

from sandbox import kernel, landlock, seccomp

ALLOW, KILL = 0x7FFF0000, 0x80000000
EPERM, ENOSYS = 0x50000 | errno.EPERM, 0x50000 | errno.ENOSYS
X86, ARM = 0xC000003E, 0xC00000B7
HEADERS = {
    "x86_64": Path("/usr/include/x86_64-linux-gnu/asm/unistd_64.h"),
    "aarch64": Path("/usr/include/asm-generic/unistd.h"),
}


def decide(code: bytes, number: int, arch: int, *arguments: int) -> int:
    """Classic BPF as bpf(4) of BSD defines it, as far as the program uses it."""
    data = struct.pack("=iIQ6Q", number, arch, 0, *(*arguments, 0, 0, 0, 0, 0, 0)[:6])
    steps = list(struct.iter_unpack("=HBBI", code))
    at = value = 0
    while True:
        operation, if_true, if_false, k = steps[at]
        at += 1
        match operation:
            case 0x20:  # ld word
                (value,) = struct.unpack_from("=I", data, k)
            case 0x54:  # and
                value &= k
            case 0x15:  # jeq
                at += if_true if value == k else if_false
            case 0x25:  # jgt
                at += if_true if value > k else if_false
            case 0x45:  # jset
                at += if_true if value & k else if_false
            case 0x06:  # ret
                return k
            case _:
                raise AssertionError(f"operation {operation:#x}")


@pytest.mark.parametrize(("arch", "column", "audit"), [("x86_64", 0, X86), ("aarch64", 1, ARM)])
def test_every_listed_call_is_refused_and_every_other_allowed(arch: str, column: int, audit: int) -> None:
    code = seccomp.program(arch)
    assert len(code) // 8 < 4096  # what the kernel takes
    denied = {numbers[column] for numbers in seccomp.DENIED.values()} - {None}
    special = {seccomp.CLONE3[column]}
    for number in range(seccomp.NEWEST + 1):
        expected = EPERM if number in denied else ENOSYS if number in special else ALLOW
        if number != seccomp.SOCKETPAIR[column]:
            assert decide(code, number, audit) == expected, number
    assert {decide(code, number, audit) for number in (451, 462, 1000, 0x3FFFFFFF)} == {ENOSYS}


@pytest.mark.parametrize(
    ("name", "arguments", "expected"),
    [
        ("CLONE", (0x01200011,), ALLOW),  # fork
        ("CLONE", (0x3D0F00,), ALLOW),  # a thread
        *[("CLONE", (17 | flag,), EPERM) for flag in (0x20000, 0x2000000, 0x4000000, 0x8000000)],
        *[("CLONE", (17 | flag,), EPERM) for flag in (0x10000000, 0x20000000, 0x40000000)],
        ("SOCKETPAIR", (1, 1), ALLOW),
        ("SOCKETPAIR", (1, 1 | 0o2000000 | 0o4000), ALLOW),  # close-on-exec, non-blocking
        ("SOCKETPAIR", (1, 5), ALLOW),
        ("SOCKETPAIR", (1, 2), EPERM),
        ("SOCKETPAIR", (1, 2 | 0o2000000), EPERM),
        ("IOCTL", (0, 0x5413), ALLOW),
        ("IOCTL", (0, 0x5412), EPERM),
        ("prlimit64", (0, 7), ALLOW),
        ("prlimit64", (1, 7), EPERM),
        ("sched_setaffinity", (0,), ALLOW),
        ("sched_setaffinity", (4242,), EPERM),
    ],
)
def test_calls_that_depend_on_their_arguments(name: str, arguments: tuple[int, ...], expected: int) -> None:
    numbers = seccomp.OWN_PROCESS_ONLY.get(name) or vars(seccomp)[name]
    for arch, number, audit in (("x86_64", numbers[0], X86), ("aarch64", numbers[1], ARM)):
        assert decide(seccomp.program(arch), number, audit, *arguments) == expected


def test_other_calling_conventions_end_the_process() -> None:
    assert decide(seccomp.program("x86_64"), 1, 0x40000003) == KILL  # i386
    assert decide(seccomp.program("x86_64"), 0x40000001, X86) == KILL  # x32
    assert decide(seccomp.program("aarch64"), 1, 0x40000028) == KILL  # arm
    with pytest.raises(OSError, match="no system call table for riscv64"):
        seccomp.program("riscv64")


@pytest.mark.parametrize("arch", HEADERS)
def test_the_numbers_are_those_of_the_kernels_headers(arch: str) -> None:
    if not HEADERS[arch].exists():
        pytest.skip(f"{HEADERS[arch]} is not installed")
    pattern = r"^#define __NR(?:3264)?_(\w+)\s+(\d+)$"
    header = {name: int(number) for name, number in re.findall(pattern, HEADERS[arch].read_text(), re.MULTILINE)}
    column = list(HEADERS).index(arch)
    ours = {**seccomp.DENIED, **seccomp.OWN_PROCESS_ONLY}
    ours |= {"clone": seccomp.CLONE, "clone3": seccomp.CLONE3, "socketpair": seccomp.SOCKETPAIR, "ioctl": seccomp.IOCTL}
    assert {name: numbers[column] for name, numbers in ours.items() if numbers[column] is not None} == {
        name: header[name] for name, numbers in ours.items() if numbers[column] is not None
    }
    known = {**kernel._NUMBERS, **kernel._LANDLOCK} if arch == kernel.ARCH else {}
    assert {name: header[name] for name in known} == known
    assert {"execve", "ptrace", "mount", "bpf", "socket", "unshare"} <= header.keys()


def test_landlock_says_which_version_it_is() -> None:
    assert landlock.abi() == kernel.syscall("landlock_create_ruleset", None, 0, 1)
    assert len(landlock.ALL_FILES) == 6
    assert all(newer & older == older for older, newer in zip(landlock.ALL_FILES, landlock.ALL_FILES[1:], strict=False))
    with pytest.raises(OSError, match="landlock_create_ruleset"):
        kernel.syscall("landlock_create_ruleset", None, 7, 99)
    with pytest.raises(OSError, match="no_such_call: no number known"):
        kernel.syscall("no_such_call")
