"""Which of the user's files a file of Python imports, read from its code.

What a process happens to have loaded says nothing of it: an earlier stage of a pipeline may have loaded other files of
the same folder. A name that is made while the code runs is not seen.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from importlib.machinery import PathFinder
from pathlib import Path


def files_imported(file: Path, root: Path) -> list[Path]:
    """Returns the files below `root`, the folder of top-level names, that a file imports, and those that they import.

    A file that cannot be read imports nothing.
    """
    packages = [folder / "__init__.py" for folder in file.parents if root in folder.parents]
    found = list(dict.fromkeys([file, *(package for package in packages if package.is_file())]))
    for one in found:  # grows as it is read
        found += dict.fromkeys(other for other in _named(one, root) if other not in found)
    return [one for one in found if one != file]


def _named(file: Path, root: Path) -> Iterator[Path]:
    try:
        tree = ast.parse(file.read_bytes())
    except (OSError, SyntaxError, ValueError):
        return
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for one in node.names:
                yield from _own(root, one.name)
        elif isinstance(node, ast.ImportFrom):
            names = [".".join(filter(None, (node.module, one.name))) for one in node.names]
            for name in names:
                yield from _files(file.parents[node.level - 1], name) if node.level else _own(root, name)


def _own(root: Path, name: str) -> list[Path]:
    """Returns the files of an absolute name, unless something that is installed has it, which is found first."""
    files = list(_files(root, name))
    top = name.partition(".")[0]
    if not files or top in sys.stdlib_module_names:
        return []
    spec = PathFinder.find_spec(top)
    installed = spec is not None and spec.origin is not None and root not in Path(spec.origin).resolve().parents
    return [] if installed else files


def _files(folder: Path, name: str) -> Iterator[Path]:
    """Yields the files that importing a name runs: of every package on the way, and of the module."""
    parts = name.split(".")
    for length in range(1, len(parts) + 1):
        place = folder.joinpath(*parts[:length])
        yield from (file for file in (place / "__init__.py", place.with_name(f"{place.name}.py")) if file.is_file())
