"""`python -m sandbox doctor` tries one by one which walls this machine can build, and says which level comes of it."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Sequence

from sandbox import kernel, landlock, levels, seccomp
from sandbox.cgroup import MemoryGroup
from sandbox.result import SandboxError
from sandbox.worker import Worker, plan

KINDS = {
    "user": 0, "mount": kernel.CLONE_NEWNS, "process": kernel.CLONE_NEWPID, "network": kernel.CLONE_NEWNET,
    "IPC": kernel.CLONE_NEWIPC, "host name": kernel.CLONE_NEWUTS,
}  # fmt: skip
_FAILED = 255


def report() -> int:
    """Prints the tables, and returns 0 if a program can be run at one of the automatic levels, else 1."""
    print(f"Linux {os.uname().release} {os.uname().machine}, user {os.getuid()}\n")
    _table(("part", "works", ""), primitives())
    found = [(name, attempt(name)) for name in levels.AUTOMATIC]
    print()
    _table(("level", "works", ""), [(name, not problem, problem or levels.OPEN[name]) for name, problem in found])
    chosen = next((name for name, problem in found if not problem), None)
    if chosen is None:
        print("\nNo level works. Allow user namespaces (kernel.unprivileged_userns_clone=1, or in Docker")
        print("--security-opt seccomp=unconfined), install bubblewrap, or use a kernel with Landlock (5.13 or newer).")
        return 1
    print(f"\nlevel='auto' is {chosen!r}. These attacks were tried in it, and all of them failed:")
    print("  " + ", ".join(levels.ATTACK_NAMES))
    print(f"What it leaves open: {levels.OPEN[chosen]}")
    return 0


def attempt(level: str) -> str:
    """Opens a level and attacks it from inside; returns what is wrong with it, or an empty text."""
    worker = Worker(plan(level, ()))
    try:
        worker.await_ready()
        levels.attack(worker)
    except SandboxError as error:
        return str(error).removeprefix(f"level {level!r} ")
    finally:
        worker.stop()
    return ""


def primitives() -> list[tuple[str, bool, str]]:
    """Returns for each part that a level is built of its name, whether it works, and a remark."""
    rows = []
    for name, flag in KINDS.items():
        problem = _in_a_child(lambda flag=flag: kernel.unshare(kernel.CLONE_NEWUSER | flag))
        rows.append((f"{name} namespace", not problem, problem))
    problem = _in_a_child(_install_filter)
    rows.append(("seccomp filter", not problem, problem))
    version = landlock.abi()
    rows.append(("Landlock", version > 0, f"ABI {version}" + ("" if version >= 6 else ", signals are held from 6 on")))
    group = MemoryGroup.create("doctor")
    rows.append(("memory cgroup", group is not None, f"version {group.version}" if group else "memory use is polled"))
    if group is not None:
        group.remove()
    program = shutil.which("bwrap")
    rows.append(("bubblewrap", program is not None, program or "not installed"))
    return rows


def _install_filter() -> None:
    kernel.prctl(kernel.PR_SET_NO_NEW_PRIVS, 1)
    seccomp.Filter().install()


def _in_a_child(action: Callable[[], None]) -> str:
    """Runs `action` in a process of its own, which may then lose rights; returns its error, or an empty text."""
    pid = os.fork()
    if not pid:
        try:
            action()
        except OSError as error:
            os._exit(error.errno or _FAILED)
        except BaseException:
            os._exit(_FAILED)
        os._exit(0)
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    return "" if code == 0 else os.strerror(code) if 0 < code < _FAILED else "failed"


def _table(head: Sequence[str], rows: Sequence[tuple[str, bool, str]]) -> None:
    width = max(len(name) for name, _, _ in rows)
    print(f"{head[0]:{width}}  {head[1]}")
    for name, works, remark in rows:
        print(f"{name:{width}}  {'yes' if works else 'no ':5}  {remark}".rstrip())
