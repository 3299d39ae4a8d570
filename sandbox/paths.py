"""Finds the files of the host that a job gets to see, for the interpreter and `imports`, and removes its own."""

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
"""C libraries and time zones, but no programs, home folders or configuration."""

FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW


def executable() -> str:
    """Returns the interpreter itself, not the link to it in an environment; raises SandboxError if there is none."""
    if not sys.executable:
        raise SandboxError("sys.executable is empty: run from a Python interpreter, not from a program that embeds one")
    return os.path.realpath(sys.executable)


def interpreter_paths() -> list[str]:
    """Returns what exists of the C libraries and of this interpreter's own libraries, and nothing twice."""
    library = os.path.dirname(os.__file__)
    own = [] if sys.base_prefix == "/usr" else [os.path.join(sys.base_prefix, "lib")]
    return outermost([*SHARED, *own, library, os.path.join(library, "lib-dynload")])


def import_paths(imports: Iterable[str]) -> tuple[list[str], list[str]]:
    """Returns folders for sys.path in which these modules are found, and what of them jobs may read.

    Of an environment (site-packages) they may read everything, because its packages need each other; elsewhere they may
    read only what is named. A name may have dots.
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
    """Returns those of the paths that exist and lie in no other of them."""
    kept: list[str] = []
    for path in sorted({os.path.normpath(path) for path in paths if os.path.exists(path)}):
        if not any(path == above or path.startswith(f"{above}/") for above in kept):
            kept.append(path)
    return kept


def remove(folder: str) -> None:
    """Deletes a folder and all below it, as far as the rights reach; it never raises or follows a link out of it.

    A job may have nested folders deeper than a path can be long. So what a subfolder holds moves up into `folder`
    before the subfolder goes, and nothing recurs. Nobody else may be writing there any more.
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
    """Removes one entry of the folder `top`; what a folder holds moves to `top` and gets the `fresh` names."""
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
