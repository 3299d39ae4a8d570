"""Runs a script that uses `sandbox` as an ordinary user, as which the tests often do not run."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
UID = 12345


def interpreter() -> str:
    """One that everybody may read; root's own may be in its home folder."""
    for name in (sys.executable, "/usr/bin/python3", "/usr/local/bin/python3"):
        path = os.path.realpath(name)
        command = [path, "-c", "import encodings, ctypes, sys; sys.exit(sys.version_info < (3, 11))"]
        with suppress(OSError):  # not there, or not for this user
            if not subprocess.run(command, user=user(), capture_output=True).returncode:
                return path
    pytest.skip(f"no Python that user {UID} can run")


def user() -> int | None:
    return UID if os.getuid() == 0 else None


@contextmanager
def readable_copy() -> Iterator[Path]:
    """The package in a folder that everybody may read."""
    folder = tempfile.mkdtemp(prefix="sandbox-copy-", dir="/var/tmp")
    try:
        os.chmod(folder, 0o755)
        shutil.copytree(ROOT / "sandbox", Path(folder, "sandbox"), ignore=shutil.ignore_patterns("__pycache__"))
        yield Path(folder)
    finally:
        shutil.rmtree(folder)


def run(script: str, *arguments: str) -> str:
    """What `script` prints as an ordinary user; it fails the test unless it ends well."""
    with readable_copy() as folder:
        done = subprocess.run(
            [interpreter(), "-B", "-c", script, *arguments], cwd=folder, user=user(), group=user(), text=True,
            extra_groups=[] if user() else None, env={"PATH": os.environ["PATH"]}, capture_output=True, timeout=120,
        )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout
