"""Level `bwrap` has the same private root, made by bubblewrap (bwrap(1)) where only that may make namespaces."""

from __future__ import annotations

import shutil
from collections.abc import Iterable
from pathlib import Path

from sandbox import isolate, paths
from sandbox.result import SandboxError

DISK_BYTES = 256 << 20
"""The size of each writable folder, which bubblewrap makes before a job and its limits are known."""


def command(visible: Iterable[str]) -> list[str]:
    """Returns what the command of the fork server starts with; raises SandboxError if bwrap is not installed."""
    program = shutil.which("bwrap")
    if program is None:
        raise SandboxError("level 'bwrap' needs the program bwrap: install bubblewrap")
    arguments = [
        program,
        *["--unshare-all", "--die-with-parent", "--new-session", "--cap-drop", "ALL", "--hostname", "box"],
    ]
    own = Path(__file__).parent
    readable = paths.outermost([*visible, *paths.interpreter_paths(), paths.executable(), str(own)])
    for path in isolate.WRITABLE:
        arguments += ["--size", str(DISK_BYTES), "--tmpfs", path]
    for path in isolate.DEVICES:
        arguments += ["--dev-bind-try", path, path]
    for path, target in isolate.STREAMS.items():
        arguments += ["--symlink", target, path]
    for path in readable:
        arguments += ["--ro-bind", path, path]
    return [*arguments, "--proc", "/proc", "--chdir", "/box", "--"]
