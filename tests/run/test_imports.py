"""Which files belong to a reward: read from its code, whatever is loaded."""

from __future__ import annotations

from pathlib import Path

import pytest

from rlkit.run.imports import files_imported


@pytest.mark.parametrize(
    ("file", "code", "expected"),
    [
        ("mine.py", "import one", ["one.py", "two.py"]),  # which imports two
        ("mine.py", "from one import value as v", ["one.py", "two.py"]),
        ("mine.py", "def f():\n    from two import value", ["two.py"]),
        ("mine.py", "import json, one.thing", ["one.py", "two.py"]),
        ("mine.py", "import json", []),  # of Python, though a file beside has its name
        ("mine.py", "import tokenizers", []),  # installed
        ("mine.py", "import pack.deep", ["pack/__init__.py", "pack/deep.py", "pack/side.py"]),
        ("mine.py", "from pack import deep", ["pack/__init__.py", "pack/deep.py", "pack/side.py"]),
        ("mine.py", "import nothing, mine", []),
        ("mine.py", "no code (", []),
        ("pack/mine.py", "from . import side", ["pack/__init__.py", "pack/side.py"]),
        ("pack/mine.py", "from .side import *", ["pack/__init__.py", "pack/side.py"]),
        ("pack/mine.py", "from pack.side import value", ["pack/__init__.py", "pack/side.py"]),
        ("pack/mine.py", "from .. import two", ["pack/__init__.py", "two.py"]),
        ("pack/__init__.py", "from .side import value", ["pack/side.py"]),
    ],
)
def test_what_a_file_imports(file: str, code: str, expected: list[str], tmp_path: Path) -> None:
    (tmp_path / "pack").mkdir()
    for name, content in {
        "one.py": "import two, mine",
        "two.py": "",
        "json.py": "",
        "tokenizers.py": "",
        "unused.py": "",
        "pack/__init__.py": "",
        "pack/deep.py": "from .side import value",
        "pack/side.py": "value = 1",
    }.items():
        (tmp_path / name).write_text(content)
    (tmp_path / file).write_text(code)
    found = [str(one.relative_to(tmp_path)) for one in files_imported(tmp_path / file, tmp_path)]
    assert sorted(found) == sorted(set(found)) == sorted(expected)
