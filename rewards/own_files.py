"""Import the user's own files by their path, so that the folder they lie in hides nothing.

Python's usual way is to put that folder in front of `sys.path`. Then a file `tokenizers.py` in it is imported in place
of the installed package, by libraries that know nothing of it, and `rewards.py`, the most natural name for a file of
rewards, in place of ours. Here a file is loaded by its path, and what it imports from beside it is found by a finder
that Python asks last, when nothing that is installed has the name.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from types import ModuleType


def import_file(path: Path, prefix: str) -> ModuleType:
    """Runs a file as a module, named after its full path; its imports may name files that lie beside it.

    Raises what the file raises, and FileNotFoundError if it is not there.
    """
    path = path.resolve()
    name = prefix + "".join(letter if letter.isalnum() else "_" for letter in str(path))
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None, "a path ending in .py always has a loader"
    module = importlib.util.module_from_spec(spec)
    _beside.look_in(path.parent)
    _beside.names.add(name)
    sys.modules[name] = module  # dataclasses and pickle look their module up here
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module


def import_name(name: str) -> ModuleType:
    """Imports `package.module`: the installed one, or else that of the current folder.

    Raises what the module raises, and ModuleNotFoundError if neither is there.
    """
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        top, here = name.partition(".")[0], Path.cwd()
        if error.name != top or not ((here / f"{top}.py").is_file() or (here / top).is_dir()):
            raise
        _beside.look_in(here)
        _beside.packages.add(top)
        return importlib.import_module(name)


def own_modules() -> list[ModuleType]:
    """Returns the user's modules that were loaded here: a process that has only their names cannot import them."""
    return [module for name, module in sys.modules.items() if name.partition(".")[0] in _beside.names]


class _Beside(MetaPathFinder):
    """Finds a module in the folders of the user's files; the last of all finders, so it hides nothing."""

    def __init__(self) -> None:
        self.folders: list[str] = []
        self.names: set[str] = set()
        """Top-level modules that were found here or loaded by path."""
        self.packages: set[str] = set()
        """Folders without an __init__.py that the user named; any other such folder is no package, whatever its name
        (`wandb`, `data`), or an import that only asks whether something is installed would succeed."""

    def look_in(self, folder: Path) -> None:
        """Adds a folder to those that are searched."""
        if self not in sys.meta_path:
            sys.meta_path.append(self)
        if str(folder) not in self.folders:
            self.folders.append(str(folder))

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Returns where a top-level module lies; a package knows by itself where its own modules are."""
        if path is not None:
            return None
        spec = PathFinder.find_spec(fullname, self.folders)
        if spec is None or (spec.loader is None and fullname not in self.packages):
            return None
        self.names.add(fullname)
        return spec


_beside = _Beside()
