from __future__ import annotations

import dataclasses
import subprocess
import sys
from pathlib import Path

import pytest

import sandbox
from sandbox import ExecResult, JobEnded, Limits

ROOT = Path(__file__).resolve().parents[2]


def test_the_public_names_are_these() -> None:
    names = {"ExecResult", "JobEnded", "Limits", "Sandbox", "SandboxError", "SandboxWarning", "Session"}
    assert set(sandbox.__all__) == names | {"judge"}
    assert names == {name for name in vars(sandbox) if name[0].isupper()}


def test_the_import_is_light() -> None:
    script = (
        "import sys, time; start = time.process_time(); import sandbox; print(time.process_time() - start)\n"
        "foreign = {name.split('.')[0] for name in sys.modules} - sys.stdlib_module_names - {'sandbox', '__main__'}\n"
        "sys.exit(str(foreign) if foreign else 0)"
    )
    command = [sys.executable, "-I", "-S", "-c", f"import sys; sys.path.append({str(ROOT)!r}); {script}"]
    runs = [subprocess.run(command, capture_output=True, text=True) for _ in range(3)]
    assert all(run.returncode == 0 for run in runs), runs[0].stderr
    assert min(float(run.stdout) for run in runs) < 0.3


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("wall", 0),
        ("wall", -1.0),
        ("wall", float("inf")),
        ("wall", float("nan")),
        ("wall", "10"),
        ("wall", True),
        ("cpu", 0.0),
        ("cpu", None),
        ("memory_mb", 0),
        ("memory_mb", 512.0),
        ("memory_mb", 2**31),
        ("processes", 0),
        ("processes", 1.5),
        ("output_kb", -1),
        ("disk_mb", "64"),
    ],
)
def test_a_limit_that_makes_no_sense_is_named(name: str, value: object) -> None:
    with pytest.raises(ValueError, match=rf"Limits\.{name}={value!r}: must be a "):
        Limits(**{name: value})  # pyright: ignore[reportArgumentType]


def test_limits_and_results_are_values() -> None:
    assert Limits(wall=2) == Limits(wall=2.0) != Limits()
    assert hash(Limits(cpu=0.5)) == hash(Limits(cpu=0.5))
    with pytest.raises(dataclasses.FrozenInstanceError):
        Limits().wall = 3.0  # pyright: ignore[reportAttributeAccessIssue]
    result = ExecResult(
        status="exited", exit_code=3, signal=None, stdout="", stderr="", wall=0.1, cpu=0.1, memory_mb=9.0
    )
    assert JobEnded(result).result is result
    assert str(JobEnded(result)) == "exited"
