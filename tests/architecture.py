"""The ratchets: limits that keep the project readable, written down on day 1 and never loosened.

An exception is listed below by name with its reason, and the list may only shrink.
"""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

from rlkit.config.compose import grpo_keys

ROOT = Path(__file__).resolve().parents[1]
SOURCES = ("rlkit", "rewards", "sandbox", "recipes", "configs")

MAX_FILE_LINES = 400
MAX_FUNCTION_LINES = 60
MAX_LOOP_LINES = 200
MAX_PAGE_WIDTH = 140
MAX_GRPO_KEYS = 88
MAX_SHAPE_KEYS = 40
MAX_IMPORT_SECONDS = 0.3

EXCEPTIONS: dict[str, str] = {}
"""`path` or `path:function` -> why it may break a limit."""
MAX_EXCEPTIONS = 0
"""Lower it whenever an exception goes; it never rises."""

ONE_PLACE = {"ray": "rlkit/cluster/", "vllm": "rlkit/engine/vllm/", "deepspeed": "rlkit/train/steppers/deepspeed"}
"""Library -> the only place, a package or a module, whose files may import it."""
GRPO_KEYS = ROOT / "tests" / "golden" / "grpo_keys.txt"

# Written in two halves so that this file does not name them either.
REGISTRIES = ("files.python" + "hosted", "py" + "pi.org", "registry.npm" + "js", "deb.debian" + ".org")
MACHINE_PATHS = r"(?<![\w.}])/(?:home|root|Users|work|opt)/"
BANNED = re.compile("|".join([*map(re.escape, REGISTRIES), MACHINE_PATHS]))

Function = ast.FunctionDef | ast.AsyncFunctionDef


def python_files(*folders: str) -> list[Path]:
    return sorted(path for folder in folders for path in (ROOT / folder).rglob("*.py"))


def short(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


@cache
def parse(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), filename=str(path))


def line_count(path: Path) -> int:
    return len(path.read_text(encoding="utf-8").splitlines())


def functions(tree: ast.Module) -> Iterator[Function]:
    return (node for node in ast.walk(tree) if isinstance(node, Function))


def public_functions(node: ast.Module | ast.ClassDef) -> Iterator[Function]:
    """Functions and methods that other files may call: no part of their dotted name starts with one underscore."""
    for child in node.body:
        hidden = isinstance(child, ast.ClassDef | Function) and re.match(r"_(?!_)", child.name)
        if isinstance(child, ast.ClassDef) and not hidden:
            yield from public_functions(child)
        elif isinstance(child, Function) and not hidden:
            yield child


def untyped(function: Function) -> list[str]:
    args = function.args
    given = [*args.posonlyargs, *args.args, *args.kwonlyargs, *filter(None, (args.vararg, args.kwarg))]
    missing = [arg.arg for arg in given if arg.annotation is None and arg.arg not in ("self", "cls")]
    return missing + (["return"] if function.returns is None else [])


def undocumented(function: Function) -> bool:
    return not function.name.startswith("__") and not (ast.get_docstring(function) or "").strip()


def imports(tree: ast.Module) -> set[str]:
    """Top-level names of every package imported anywhere in a file, also inside functions and by `import_module`."""
    found = []
    for node in ast.walk(tree):
        match node:
            case ast.Import(names=names):
                found += [alias.name for alias in names]
            case ast.ImportFrom(module=str(name), level=0):
                found.append(name)
            case ast.Call(
                func=ast.Name(id="import_module") | ast.Attribute(attr="import_module"),
                args=[ast.Constant(value=str(name)), *_],
            ):
                found.append(name)
    return {name.split(".")[0] for name in found}


def allowed(offence: str) -> bool:
    return any(offence == name or offence.startswith(f"{name} ") for name in EXCEPTIONS)


def check(offences: list[str], rule: str) -> None:
    found = [offence for offence in offences if not allowed(offence)]
    assert not found, "\n  ".join([rule, *found])


def test_files_are_short() -> None:
    sizes = {short(path): line_count(path) for path in python_files(*SOURCES, "tests")}
    check([f"{path} has {n}" for path, n in sizes.items() if n > MAX_FILE_LINES], f"files over {MAX_FILE_LINES} lines")


def test_functions_are_short() -> None:
    offences = []
    for path in python_files(*SOURCES, "tests"):
        for function in functions(parse(path)):
            lines = (function.end_lineno or function.lineno) - function.lineno + 1
            if lines > MAX_FUNCTION_LINES:
                offences.append(f"{short(path)}:{function.name} has {lines}")
    check(offences, f"functions over {MAX_FUNCTION_LINES} lines")


def test_public_functions_are_typed_and_documented() -> None:
    offences = []
    for path in python_files(*SOURCES):
        for function in public_functions(parse(path)):
            if missing := untyped(function):
                offences.append(f"{short(path)}:{function.name} (line {function.lineno}) lacks types: {missing}")
            if undocumented(function):
                offences.append(f"{short(path)}:{function.name} (line {function.lineno}) has no docstring")
    check(offences, "public functions without types or docstring")


def test_heavy_libraries_are_imported_in_one_place() -> None:
    offences = [
        f"{short(path)} imports {library}: only {place} may"
        for path in python_files(*SOURCES)
        for library, place in ONE_PLACE.items()
        if library in imports(parse(path)) and not short(path).startswith(place)
    ]
    check(offences, "imports outside their one place")


def test_the_loop_is_one_page() -> None:
    lines = line_count(ROOT / "rlkit" / "loop.py")
    assert lines <= MAX_LOOP_LINES, f"rlkit/loop.py has {lines} lines; a newcomer reads {MAX_LOOP_LINES} at most"


def test_there_are_at_least_as_many_test_lines_as_source_lines() -> None:
    source = sum(map(line_count, python_files("rlkit", "rewards", "sandbox", "recipes")))
    tests = sum(map(line_count, python_files("tests")))
    assert tests >= source, f"{tests} lines of tests for {source} lines of source"


def test_pages_have_lines_that_can_be_read() -> None:
    """A row of a table has to stand on one line."""
    offences = []
    for path in sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")]):
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
            if len(line) > MAX_PAGE_WIDTH and not line.startswith("|"):
                offences.append(f"{short(path)}:{number} has {len(line)} characters")
    check(offences, f"lines over {MAX_PAGE_WIDTH} characters")


def test_names_say_what_a_thing_is() -> None:
    vague = re.compile(r"^(utils?|misc)$|manager|helper", re.IGNORECASE)
    offences = []
    for path in python_files(*SOURCES, "tests"):
        parts = path.relative_to(ROOT).with_suffix("").parts
        classes = [node.name for node in ast.walk(parse(path)) if isinstance(node, ast.ClassDef)]
        offences += [f"{short(path)} names {name!r}" for name in (*parts, *classes) if vague.search(name)]
    check(offences, "names that say nothing")


def test_a_grpo_run_has_few_keys() -> None:
    """All that can be set is counted, also what the files leave at its default; the model's shape on its own."""
    keys = grpo_keys()
    golden = GRPO_KEYS.read_text(encoding="utf-8").split()
    assert keys == golden, f"the keys of a GRPO run changed; explain it in the change and update {short(GRPO_KEYS)}"
    shape = [key for key in keys if key.startswith("model.architecture.")]
    assert len(shape) <= MAX_SHAPE_KEYS
    assert len(keys) - len(shape) <= MAX_GRPO_KEYS


@pytest.mark.parametrize("package", ["rewards", "sandbox"])
def test_packages_that_stand_alone_import_fast(package: str) -> None:
    """In CPU time, which is the time where nothing else runs."""
    script = (
        f"import sys, time; start = time.process_time(); import {package}; seconds = time.process_time() - start\n"
        "heavy = {'torch', 'ray', 'transformers', 'rlkit', 'numpy', 'sympy'} & set(sys.modules)\n"
        f"sys.exit(f'import {package} loads {{heavy}}') if heavy else print(seconds)"
    )
    runs = [
        subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, timeout=60)
        for _ in range(3)
    ]
    assert all(run.returncode == 0 for run in runs), runs[0].stderr
    fastest = min(float(run.stdout) for run in runs)
    assert fastest < MAX_IMPORT_SECONDS, f"import {package} takes {fastest:.2f} s"


def test_no_registry_host_and_no_machine_path_in_tracked_files() -> None:
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"]
    listing = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if listing.returncode:
        pytest.skip("not a git checkout")
    offences = []
    for name in filter(None, listing.stdout.split("\0")):
        path = ROOT / name
        text = path.read_bytes().decode("utf-8", errors="ignore") if path.is_file() else ""
        for number, line in enumerate(text.splitlines(), start=1):
            if found := BANNED.search(line):
                offences.append(f"{name}:{number} says {found.group()!r}")
    check(offences, "words that belong to one machine")


def test_exceptions_only_shrink() -> None:
    assert len(EXCEPTIONS) == MAX_EXCEPTIONS, "lower MAX_EXCEPTIONS with the list; it never rises"
    assert all(reason.strip() for reason in EXCEPTIONS.values())
    gone = [name for name in EXCEPTIONS if not (ROOT / name.split(":")[0]).exists()]
    assert not gone, f"exceptions for files that are gone: {gone}"


def test_the_ratchets_see_what_they_forbid() -> None:
    tree = ast.parse(
        "class Box:\n"
        "    def open(self, key, *rest: int): ...\n"
        "    def _hidden(self, key): ...\n"
        "def load(path: str) -> None:\n"
        "    'Read it.'\n"
        "    import ray.util\n"
        "    from vllm import LLM\n"
        "    importlib.import_module('deepspeed.comm')\n"
    )
    found = list(public_functions(tree))
    assert [function.name for function in found] == ["open", "load"]
    assert [untyped(function) for function in found] == [["key", "return"], []]
    assert [undocumented(function) for function in found] == [True, False]
    assert imports(tree) == {"ray", "vllm", "deepspeed"}
    assert BANNED.search("see /ho" + "me/me/run") and not BANNED.search("https://a.org/ho" + "me/x")
