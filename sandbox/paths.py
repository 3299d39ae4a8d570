"""Which files of the host a job gets to see (the interpreter and `imports`), and how its own are removed."""

from __future__ import annotations

import importlib.machinery
import itertools
import os
import stat
import sys
from collections.abc import Iterable, Iterator
from contextlib import suppress

from sandbox.result import SandboxError

SHARED = ("/lib", "/lib64", "/usr/lib", "/usr/lib64", "/usr/share/zoneinfo", "/etc/ld.so.cache", "/etc/localtime")
"""C libraries and time zones. No programs, no home folders, no configuration."""

FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW


def executable() -> str:
    """The interpreter itself, not the link to it in a virtual environment; raises SandboxError if there is none."""
    if not sys.executable:
        raise SandboxError("sys.executable is empty: run from a Python interpreter, not from a program that embeds one")
    return os.path.realpath(sys.executable)


def interpreter_paths() -> list[str]:
    """What exists of the C libraries and of this interpreter's own ones; nothing twice."""
    library = os.path.dirname(os.__file__)
    own = [] if sys.base_prefix == "/usr" else [os.path.join(sys.base_prefix, "lib")]
    return outermost([*SHARED, *own, library, os.path.join(library, "lib-dynload")])


def import_paths(imports: Iterable[str]) -> tuple[list[str], list[str]]:
    """For top-level or dotted module names: folders for sys.path, and what of them jobs may read.

    Of an environment (site-packages) that is all, for its packages need each other; elsewhere only what is named.
    Raises SandboxError naming a module that is not found.
    """
    search, visible = [], []
    for name in imports:
        top = name.partition(".")[0]
        if top in sys.stdlib_module_names:
            continue
        spec = importlib.machinery.PathFinder.find_spec(top)
        if spec is None:
            raise SandboxError(f"imports={name!r}: {sys.executable} has no module {top!r}; install it or leave it out")
        if spec.submodule_search_locations:
            found = os.path.realpath(next(iter(spec.submodule_search_locations)))
        else:
            found = os.path.realpath(spec.origin or "")
        folder = os.path.dirname(found)
        whole = os.path.basename(folder) in ("site-packages", "dist-packages")
        search.append(folder)
        visible.append(folder if whole else found)
    return list(dict.fromkeys(search)), outermost(visible)


def outermost(paths: Iterable[str]) -> list[str]:
    """The paths that exist and lie in no other of them."""
    kept: list[str] = []
    for path in sorted({os.path.normpath(path) for path in paths if os.path.exists(path)}):
        if not any(path == above or path.startswith(f"{above}/") for above in kept):
            kept.append(path)
    return kept


def remove(folder: str) -> None:
    """Delete a folder and all below it, as far as the rights reach; never raises, never follows a link out of it.

    However deep it is: what a subfolder holds moves up into `folder` before the subfolder goes, so no path gets long
    and nothing recurs. Nobody else may be writing there any more.
    """
    with suppress(OSError):
        if not os.path.islink(folder):
            os.chmod(folder, 0o700)  # its owner may have locked itself out
        top = os.open(folder, FOLDER)
        fresh = (f"{os.urandom(8).hex()}.{number}" for number in itertools.count())
        stuck = set[str]()
        try:
            while names := set(os.listdir(top)) - stuck:
                stuck |= {name for name in names if not _dissolve(name, top, fresh)}
        finally:
            os.close(top)
        os.rmdir(folder)


def _dissolve(name: str, top: int, fresh: Iterator[str]) -> bool:
    """Remove one entry of the folder `top`; if it is a folder, what it holds moves to `top` under `fresh` names."""
    try:
        if not stat.S_ISDIR(os.lstat(name, dir_fd=top).st_mode):
            os.unlink(name, dir_fd=top)
            return True
        os.chmod(name, 0o700, dir_fd=top)
        inner = os.open(name, FOLDER, dir_fd=top)
        try:
            for entry in os.listdir(inner):
                os.rename(entry, next(fresh), src_dir_fd=inner, dst_dir_fd=top)
        finally:
            os.close(inner)
        os.rmdir(name, dir_fd=top)
    except OSError:
        return False
    return True
