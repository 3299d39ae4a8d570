from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from sandbox import SandboxError, cgroup, doctor, paths
from sandbox.__main__ import main
from sandbox.cgroup import MemoryGroup


def test_run_hands_on_output_and_exit_code(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (program := tmp_path / "p.py").write_text("import sys\nprint(input())\nprint('e', file=sys.stderr)\nsys.exit(7)")
    (stdin := tmp_path / "in").write_text("hello\n")
    assert main(["run", str(program), "--stdin", str(stdin), "--level", "namespaces", "--wall", "5"]) == 7
    out, err = capfd.readouterr()
    assert out == "hello\n"
    assert re.fullmatch(r"e\n\[exited\] wall \d+\.\d.*level namespaces\n", err)


@pytest.mark.parametrize(
    ("code", "flags", "words"),
    [
        ("while True: pass", ["--wall", "0.3"], "[timeout]"),
        ("import os; os.abort()", [], "signal 6"),
        ("print(1)", ["--wall", "0"], "Limits.wall=0.0"),
        ("print(1)", ["--level", "none"], "allow_unsafe=True"),
        ("print(1)", ["--import", "no_such_module"], "no_such_module"),
        ("print(1)", ["--stdin", "/no/such/file"], "/no/such/file"),
    ],
)
def test_run_says_what_went_wrong(
    code: str, flags: list[str], words: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (program := tmp_path / "p.py").write_text(code)
    assert main(["run", str(program), "--level", "namespaces", *flags]) == 125
    assert words in capfd.readouterr().err


def test_doctor_shows_what_works() -> None:
    root = Path(__file__).resolve().parents[2]
    done = subprocess.run([sys.executable, "-m", "sandbox", "doctor"], cwd=root, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "level='auto' is 'namespaces'" in done.stdout
    assert "read_a_file" in done.stdout
    works = dict(line.split("  ", 1) for line in done.stdout.splitlines() if "  " in line.strip())
    assert works["seccomp filter"].split()[0] == works["namespaces"].split()[0] == "yes"


def test_doctor_sees_what_does_not_work(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    assert doctor.attempt("bwrap") == "needs the program bwrap: install bubblewrap"
    rows = {name: works for name, works, _ in doctor.primitives()}
    assert rows["bubblewrap"] is False


def test_paths_are_those_outermost() -> None:
    assert paths.outermost(["/usr/lib/x86", "/usr", "/usr/", "/usr/lib", "/no such", "/usrx", "/proc"]) == [
        "/proc",
        "/usr",
    ]
    library = os.path.dirname(os.__file__)
    assert any(library == path or library.startswith(f"{path}/") for path in paths.interpreter_paths())


def test_imports_show_an_environment_whole_and_a_module_elsewhere_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "answers.txt").write_text("42")
    (tmp_path / "solo.py").write_text("x = 1")
    (tmp_path / "pack" / "inner").mkdir(parents=True)
    (tmp_path / "pack" / "__init__.py").write_text("")
    monkeypatch.syspath_prepend(tmp_path)
    assert paths.import_paths(["solo"]) == ([str(tmp_path)], [str(tmp_path / "solo.py")])
    assert paths.import_paths(["pack.inner", "json", "solo"]) == (
        [str(tmp_path)],
        [str(tmp_path / "pack"), str(tmp_path / "solo.py")],
    )
    _, visible = paths.import_paths(["numpy"])
    assert [os.path.basename(path) for path in visible] == ["site-packages"]
    with pytest.raises(SandboxError, match=r"imports='nope.x': .* has no module 'nope'"):
        paths.import_paths(["nope.x"])


def test_a_memory_group_limits_counts_and_goes() -> None:
    group = MemoryGroup.create("test")
    if group is None:
        pytest.skip("this user cannot make a memory cgroup")
    try:
        group.limit(64 << 20)
        eat = "import os, sys; sys.stdin.read(1); x = bytearray(os.urandom(1)) * (200 << 20)"
        with subprocess.Popen([sys.executable, "-c", eat], stdin=subprocess.PIPE) as process:
            assert group.add(process.pid)
            assert group.kills() == 0
            process.communicate(b"x")
        assert process.returncode == -9
        assert group.kills() == 1
    finally:
        group.remove()
    assert not group.folder.exists()
    assert not group.add(os.getpid())


def test_groups_of_callers_that_are_gone_are_removed() -> None:
    group = MemoryGroup.create("test")
    if group is None:
        pytest.skip("this user cannot make a memory cgroup")
    with subprocess.Popen(["/bin/true"]) as process:
        pass
    stale = group.folder.with_name(f"{cgroup.PREFIX}{process.pid}-0")
    stale.mkdir()
    group.remove()
    again = MemoryGroup.create("test")
    assert again is not None
    assert not stale.exists()
    again.remove()
