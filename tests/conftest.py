"""No process that the tests start may outlive them; one that does fails the session and is killed."""

from __future__ import annotations

import gc
import os
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from hypothesis import HealthCheck, settings

PROC = Path("/proc")
VARIABLE = "RLKIT_TEST_SESSION"
MARK = uuid4().hex
"""Every process started from here inherits it in that variable, so that orphans are found too."""
GRACE_SECONDS = 10.0
"""A process that was told to end may need a moment for it."""
ENDS_WITH_US = b"multiprocessing.resource_tracker"
"""Python's own bookkeeper of shared memory lives as long as its parent."""

LONGEST = (
    *("e2e/test_kill.py", "train/test_ranks.py", "e2e/test_layouts.py", "train/test_checkpoint.py", "e2e/test_hf.py"),
    *("train/test_pipeline.py", "e2e/test_skipped.py", "engine/test_vllm_parallel.py", "e2e/test_two_machines.py"),
)
"""Begun first: a long file that one process begins last leaves the other one idle."""

# The same seed on every machine, however slow; to look for new ones: pytest --hypothesis-profile=default.
settings.register_profile(
    "suite", derandomize=True, database=None, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("suite")


def pytest_configure() -> None:
    # Hundreds of processes import the same files: whoever forbids compiled ones would have each compile them all again.
    sys.dont_write_bytecode = False
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    # The models of the tests are too small to share: with two threads most of the time goes into waiting.
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    os.environ[VARIABLE] = f"{os.environ.get(VARIABLE, '')} {MARK}"  # a session inside a session has both marks


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    places = {Path(__file__).parent / file: place for place, file in enumerate(LONGEST)}
    items.sort(key=lambda item: places.get(item.path, len(LONGEST)))


def pytest_collection_finish() -> None:
    # Thousands of tests and all libraries are loaded now, and stay: no later collection of garbage looks at them.
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="module", autouse=True)
def libraries_stay() -> Iterator[None]:
    """vLLM, which the first file that needs it loads, has a million objects, and collects six times for each engine."""
    yield
    gc.collect()
    gc.freeze()


@pytest.hookimpl(optionalhook=True)  # of pytest-xdist
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """For `--dist loadfile`: a file to one process, as its tests share engines, and all of the sandbox's, as they see
    each other's processes.

    Marks cannot say this: pytest-xdist 3.8 silently passes over its `xdist_group` under pytest 9.2.
    """
    if config.getvalue("dist") != "loadfile":
        return None
    from xdist.scheduler import LoadFileScheduling

    class ByFile(LoadFileScheduling):
        def _split_scope(self, nodeid: str) -> str:
            file = super()._split_scope(nodeid)
            return "sandbox" if Path(file).parent.name == "sandbox" else file

    return ByFile(config, log)


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """A run inside this process takes all cores, and would leave torch with them for the tests that follow."""
    yield
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(1)


def leftover_processes() -> dict[int, str]:
    """Running processes, by id, that carry the mark or descend from this one, with their command lines."""
    parents, marked, commands = {}, set(), {}
    for folder in PROC.glob("[0-9]*"):
        pid = int(folder.name)
        try:
            state, parent = (folder / "stat").read_text().rpartition(")")[2].split()[:2]
            command = (folder / "cmdline").read_bytes()
            environment = (folder / "environ").read_bytes()
        except OSError:  # it ended meanwhile, or belongs to somebody else
            continue
        if state == "Z" or pid == os.getpid() or ENDS_WITH_US in command:
            continue
        parents[pid] = int(parent)
        commands[pid] = command.replace(b"\0", b" ").decode(errors="replace").strip()
        if MARK.encode() in environment:
            marked.add(pid)
    ours = {os.getpid(), *marked}
    while more := {pid for pid, parent in parents.items() if parent in ours} - ours:
        ours |= more
    return {pid: commands[pid] for pid in ours & commands.keys()}


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session) -> None:
    gc.unfreeze()
    deadline = time.monotonic() + GRACE_SECONDS
    while (left := leftover_processes()) and time.monotonic() < deadline:
        time.sleep(0.1)
    for pid, command in left.items():
        print(f"\nleft running by the tests, now killed: {pid} {command[:200]}")
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            continue
    if left:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED
