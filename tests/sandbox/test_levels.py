"""Each level holds what it promises, as root and as an ordinary user, and none is used that does not."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from sandbox import Limits, Sandbox, SandboxError, SandboxWarning, levels
from sandbox.worker import Worker, plan
from tests.sandbox import ordinary, questions
from tests.sandbox.questions import ANSWERS, outcomes

ROOT = Path(__file__).resolve().parents[2]
HAS_BWRAP = shutil.which("bwrap") is not None
LEVELS = ["namespaces", "landlock", pytest.param("bwrap", marks=pytest.mark.skipif(not HAS_BWRAP, reason="no bwrap"))]

EXPECTED = [ANSWERS, ["exited", "memory", "ok"], "['main.py']\n"]


@pytest.fixture
def host_file(tmp_path: Path) -> Path:
    file = tmp_path / "secret"
    file.write_text("secret")
    file.chmod(0o666)
    for folder in file.parents:
        if folder.stat().st_uid == os.getuid() and folder != Path("/"):
            folder.chmod(folder.stat().st_mode | 0o055)
    return file


@pytest.mark.slow
@pytest.mark.parametrize("level", ["namespaces", "landlock"])
def test_a_level_holds(level: str, host_file: Path) -> None:
    assert outcomes(level, str(host_file)) == [level, *EXPECTED]
    assert host_file.read_text() == "secret"


@pytest.mark.slow
@pytest.mark.parametrize("level", LEVELS)
def test_a_level_holds_for_an_ordinary_user(level: str, host_file: Path) -> None:
    answer = ordinary.run(Path(questions.__file__).read_text(), level, str(host_file))
    assert json.loads(answer) == [level, *EXPECTED]
    assert host_file.read_text() == "secret"


def test_lower_levels_say_what_they_leave_open() -> None:
    with pytest.warns(SandboxWarning, match=r"level 'landlock': .*disk use is not limited"):
        Sandbox("landlock", workers=1).close()
    with pytest.warns(SandboxWarning, match="level 'none': programs run with your own rights"):
        box = Sandbox("none", workers=1, allow_unsafe=True)
    with box:
        assert box.run("import os; print(os.getuid())").stdout == f"{os.getuid()}\n"
        assert box.run("import time; time.sleep(60)", limits=Limits(wall=0.3)).status == "timeout"
        assert box.run("import os; print(os.listdir('.'))").stdout == "['main.py']\n"
    assert not os.path.exists(box._workers[0].scratch) or not box._workers[0].scratch


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"level": "jail"}, "level='jail': must be 'auto' or one of namespaces, bwrap, landlock, none, remote"),
        ({"level": "none"}, "your own rights.* Pass allow_unsafe=True"),
        ({"level": "remote"}, "level 'remote' needs a url"),
        ({"url": "http://localhost"}, "no other level takes one"),
        ({"level": "remote", "url": "localhost:8080"}, "must start with http"),
        ({"workers": 0}, "workers=0: must be a whole number from 1 to 256"),
        ({"workers": 2.0}, "workers=2.0"),
        ({"imports": "numpy"}, r"must be a list of module names, such as \['numpy'\]"),
        ({"imports": ["no_such_module"]}, "imports='no_such_module': .* has no module"),
        ({"imports": ["antigravity.no"]}, "No module named 'antigravity.no'"),
    ],
)
def test_what_cannot_be_is_refused_with_the_fix(arguments: dict[str, object], words: str) -> None:
    with pytest.raises(SandboxError, match=words):
        Sandbox(**{"workers": 1, **arguments})  # pyright: ignore[reportArgumentType]


FORBID = """
import ctypes, struct, sys, warnings
from sandbox import Sandbox, SandboxError, kernel
numbers = {"unshare": {"x86_64": 272, "aarch64": 97}[kernel.ARCH], "landlock": 444}
steps = [(0x20, 0, 0, 0)] + [s for name in sys.argv[2:] for s in ((0x15, 0, 1, numbers[name]), (6, 0, 0, 0x50001))]
code = b"".join(struct.pack("=HBBI", *step) for step in [*steps, (6, 0, 0, 0x7FFF0000)])
memory = ctypes.create_string_buffer(code, len(code))
kernel.prctl(kernel.PR_SET_NO_NEW_PRIVS, 1)
kernel.prctl(kernel.PR_SET_SECCOMP, 2, ctypes.addressof(header := ctypes.create_string_buffer(
    struct.pack("@HP", len(code) // 8, ctypes.addressof(memory)))))
try:
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        with Sandbox(sys.argv[1], workers=1) as box:
            print(box.level, box.run("print(1)").status, [w.category.__name__ for w in said])
except SandboxError as error:
    print(error)
"""


@pytest.mark.parametrize(
    ("level", "forbidden", "words"),
    [
        ("namespaces", ["unshare"], ["'namespaces' does not work here", "Operation not permitted", "doctor"]),
        ("auto", ["unshare"], ["landlock ok ['SandboxWarning']"]),
        ("auto", [], ["namespaces ok []"]),
        ("landlock", ["landlock"], ["'landlock' does not work here", "no Landlock"]),
        ("auto", ["unshare", "landlock"], ["'namespaces' does not", "'bwrap'", "'landlock' does not"]),
    ],
)
def test_where_the_kernel_refuses_the_sandbox_does_not_open(level: str, forbidden: list[str], words: list[str]) -> None:
    """As in a container whose seccomp profile forbids namespaces; without bwrap on the path."""
    command = [sys.executable, "-c", FORBID, level, *forbidden]
    done = subprocess.run(command, cwd=ROOT, env={"PATH": ""}, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert all(word in done.stdout for word in words), done.stdout


def test_a_level_that_an_attack_comes_through_is_not_used() -> None:
    worker = Worker(plan("none", ()))
    try:
        worker.await_ready()
        with pytest.raises(SandboxError, match=r"does not hold here: a program could read_a_file, write_a_file"):
            levels.attack(worker)
    finally:
        worker.stop()


def test_a_long_temporary_folder_and_a_canary_that_cannot_be_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    long = tmp_path / ("x" * 90)
    long.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(long))
    Sandbox("namespaces", workers=1).close()
    monkeypatch.setattr("sandbox.levels._short_folder", lambda: "/nowhere")
    with pytest.raises(SandboxError, match="what the canary attacks cannot be made"):
        Sandbox("namespaces", workers=1)


def test_a_job_ends_with_its_fork_server_and_may_raise_its_stack() -> None:
    look = "import ctypes\nn = ctypes.c_int()\nctypes.CDLL(None).prctl(2, ctypes.byref(n)); print(n.value)\n"
    stack = (
        "import resource, signal\nresource.setrlimit(resource.RLIMIT_STACK, (128 << 20, resource.RLIM_INFINITY))\n"
        "print(signal.getsignal(signal.SIGINT) is signal.default_int_handler)"
    )
    with pytest.warns(SandboxWarning), Sandbox("landlock", workers=1) as box:
        result = box.run(look + stack)
    assert result.stdout == "9\nTrue\n", result


def test_the_interpreter_behind_a_link_of_a_virtual_environment(tmp_path: Path) -> None:
    """sys.executable may be a link to a link to an interpreter that lies elsewhere."""
    (tmp_path / "venv" / "bin").mkdir(parents=True)
    (tmp_path / "venv" / "pyvenv.cfg").write_text(f"home = {Path(os.path.realpath(sys.executable)).parent}\n")
    (tmp_path / "venv" / "bin" / "python").symlink_to(os.path.realpath(sys.executable))
    (tmp_path / "python").symlink_to(tmp_path / "venv" / "bin" / "python")
    script = textwrap.dedent("""
        import sys, sandbox
        with sandbox.Sandbox("namespaces", workers=1) as box: print(box.run("import zoneinfo, ssl; print(2)").stdout)
    """)
    done = subprocess.run([tmp_path / "python", "-c", script], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.stdout == "2\n\n", done.stderr
