"""The same private root through the bubblewrap program (bwrap(1)), where only that may make namespaces."""

from __future__ import annotations

import shutil
from collections.abc import Iterable
from pathlib import Path

from sandbox import isolate, paths
from sandbox.result import SandboxError

DISK_BYTES = 256 << 20
"""Of each writable folder: bubblewrap makes them before a job and its limits are known."""


def command(visible: Iterable[str]) -> list[str]:
    """The arguments before those of the fork server; raises SandboxError without the program."""
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
