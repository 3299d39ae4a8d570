"""A process behind a pipe: every answer has its deadline, everything below it can be killed, and no folder fools it."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest

from rewards.process import Gone, Overdue, Process, search_path
from rlkit.cluster.reaper import below

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[2]
SERVED = """
import os, signal, subprocess, sys, time

SLEEP = [sys.executable, "-c", "import time; time.sleep(600)"]

def echo(channel):
    while True:
        channel.send(channel.receive())

def about(channel):
    print("noise", flush=True)
    channel.send((sys.argv, sys.stdin.read(), [os.readlink(f"/proc/self/fd/{n}") for n in os.listdir("/proc/self/fd")
                                               if os.path.exists(f"/proc/self/fd/{n}")]))

def half(channel):
    channel._socket.sendall(b"\\0" * 7 + b"\\x09" + b"1234")  # four of nine bytes
    time.sleep(600)

def leave(channel):
    os._exit(channel.receive())

def alarm(channel):
    signal.alarm(1)
    while True:
        pass

def fail(channel):
    channel.receive()

def orphan(channel):
    \"\"\"Its child stays in its session when it ends, and nothing says any more whose child that was.\"\"\"
    channel.send(subprocess.Popen(SLEEP, close_fds=False).pid)

def family(channel):
    \"\"\"A child, a grandchild, and one in a session of its own.\"\"\"
    command = "import subprocess, sys, time; subprocess.Popen(sys.argv[1:]); print(flush=True); time.sleep(600)"
    for own in (False, True):
        child = subprocess.Popen([sys.executable, "-c", command, *SLEEP], stdout=subprocess.PIPE, start_new_session=own)
        child.stdout.readline()
    channel.send("started")
    time.sleep(600)

def breed(channel):
    \"\"\"Two children go on starting others, so that every look at them is out of date.\"\"\"
    command = "import os, time\\nleft = 900\\nwhile left and os.fork():\\n    left -= 1\\n    time.sleep(0.001)\\n"
    command += "os.setsid()\\ntime.sleep(600)"
    for _ in range(2):
        subprocess.Popen([sys.executable, "-c", command])
    channel.send("started")
    time.sleep(600)
"""


@pytest.fixture(autouse=True)
def served(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "served.py").write_text(SERVED)
    monkeypatch.syspath_prepend(tmp_path)


@contextmanager
def process(serve: str) -> Iterator[Process]:
    started = Process(f"served:{serve}", prints=False)
    try:
        yield started
    finally:
        started.end(patience=0)


def test_whole_objects_pass_in_both_directions() -> None:
    with process("echo") as one:
        for message in ("", {"a": (1, 2.5, None)}, b"x" * 5_000_000, ["y" * 70_000] * 3):
            one.send(message, 60)
            assert one.receive(60) == message
        assert one.end(patience=60) == 0
        with pytest.raises(Gone):
            one.send("more", 1)


def test_it_starts_with_nothing_of_its_caller(capfd: pytest.CaptureFixture[str]) -> None:
    read, write = os.pipe()
    os.set_inheritable(write, True)
    with process("about") as one:
        words, typed, files = one.receive(60)
        assert one.end(patience=60) == 0
    pipe = os.readlink(f"/proc/self/fd/{write}")
    os.close(read)
    os.close(write)
    assert words == ["-c"] and typed == "" and pipe not in files
    assert capfd.readouterr().out == ""
    loud = Process("served:about", prints=True)
    loud.receive(60)
    loud.end(patience=60)
    assert capfd.readouterr().out == "noise\n"


@pytest.mark.parametrize("serve", ["half", "leave"])
def test_an_answer_that_is_not_all_there_in_time_is_overdue(serve: str) -> None:
    """One that stops in the middle of its answer once held its caller for ever."""
    with process(serve) as one:
        select.select([one._channel._socket], [], [], 60 if serve == "half" else 0)
        start = time.monotonic()
        with pytest.raises(Overdue):
            one.receive(0.2)
        assert time.monotonic() - start < 20


def test_a_question_that_nobody_reads_is_overdue() -> None:
    with process("leave") as one:
        os.kill(one.pid, signal.SIGSTOP)
        with pytest.raises(Overdue):
            one.send(b"x" * 10_000_000, 0.2)


@pytest.mark.parametrize(("serve", "code"), [("leave", 3), ("leave", 0), ("alarm", -signal.SIGALRM), ("missing", 1)])
def test_one_that_ends_is_gone_and_its_exit_code_is_told(
    serve: str, code: int, capfd: pytest.CaptureFixture[str]
) -> None:
    with process(serve) as one:
        if serve == "leave":
            one.send(code, 60)
        with pytest.raises(Gone):
            one.receive(60)
        assert one.end(patience=60) == code == one.kill()
    assert ("KeyError: 'missing'" in capfd.readouterr().err) == (serve == "missing")


def test_one_that_waits_ends_when_it_is_dismissed() -> None:
    one, other = Process("served:echo", prints=False), Process("served:echo", prints=False)
    one.dismiss()
    assert one.end(patience=60) == 0
    assert other.kill() == -signal.SIGKILL
    other.dismiss()


def test_two_threads_that_kill_it_at_once_learn_the_same_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """A pool that closes and a thread whose judge failed both kill; the second may come while the first still waits."""
    waits, goes_on = threading.Event(), threading.Event()
    with process("echo") as one, ThreadPoolExecutor(2) as threads:
        wait = one._program.wait

        def slow_wait(timeout: float | None = None) -> int:
            waits.set()
            assert goes_on.wait(60)
            return wait(timeout)

        monkeypatch.setattr(one._program, "wait", slow_wait)
        first = threads.submit(one.kill)
        assert waits.wait(60)
        second = threads.submit(one.kill)
        goes_on.set()
        assert first.result(60) == second.result(60) == -signal.SIGKILL


@pytest.mark.parametrize("serve", ["family", "breed"])
def test_everything_below_is_killed_with_it(serve: str) -> None:
    """`family` moves into other sessions; `breed` goes on starting processes while they are being looked for."""
    before = below({os.getpid()})
    with process(serve) as one:
        assert one.receive(60) == "started"
        deadline = time.monotonic() + 60
        while len(below({one.pid})) < (4 if serve == "family" else 30) and time.monotonic() < deadline:
            time.sleep(0.001)
        one.kill()
        deadline = time.monotonic() + 10
        while (left := [pid for pid in Path("/proc").glob("[0-9]*") if asleep(pid)]) and time.monotonic() < deadline:
            time.sleep(0.02)
        assert not left
    assert below({os.getpid()}) <= before


def asleep(folder: Path) -> bool:
    """Whether this is a process of a test here that still runs."""
    try:
        ours = os.environ["RLKIT_TEST_SESSION"].encode() in (folder / "environ").read_bytes()
        state = (folder / "stat").read_text().rpartition(")")[2].split()[0]
        return ours and state != "Z" and b"time.sleep(600)" in (folder / "cmdline").read_bytes()
    except OSError:
        return False


def test_what_it_leaves_behind_is_killed_and_does_not_hold_the_pipe_open() -> None:
    with process("orphan") as one:
        left = one.receive(60)
        start = time.monotonic()
        with pytest.raises(Gone):
            one.receive(300)
        assert time.monotonic() - start < 60
        assert one.end(patience=60) == 0
    deadline = time.monotonic() + 10
    while asleep(Path(f"/proc/{left}")) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not asleep(Path(f"/proc/{left}"))


def test_it_does_not_outlive_a_killed_caller_that_it_waits_for(tmp_path: Path) -> None:
    script = (
        f"import sys; sys.path += [{str(ROOT)!r}, {str(tmp_path)!r}]\n"
        "from rewards.process import Process\n"
        "one = Process('served:echo', prints=False)\n"
        "one.send('x', 60); one.receive(60)\n"
        "print(one.pid, flush=True)\n"
        "sys.stdin.read()\n"
    )
    with subprocess.Popen([sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as caller:
        assert caller.stdout is not None
        pid = int(caller.stdout.readline())
        caller.kill()
        caller.wait()
    deadline = time.monotonic() + 10
    while Path(f"/proc/{pid}").exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not Path(f"/proc/{pid}").exists()


def test_without_an_interpreter_it_is_an_error_of_the_system(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/no/such/python")
    with pytest.raises(FileNotFoundError):
        Process("served:echo", prints=False)


HIDDEN = ("json", "pickle", "struct", "socket", "tokenizers", "safetensors", "sympy", "rewards", "rlkit", "sandbox")
"""Modules of Python, of other packages and of our own; a user may have a file of any of these names."""
CALLER = """
import sys
sys.path.insert({place}, {root!r})
import rewards, rewards.process, rewards.audit, rlkit.scoring.pool, sandbox.isolate, pickle, rlkit.config
sys.path.insert(0, {entry!r})  # as under `python -m`, or put there by a command
from rlkit.config import RewardConfig
from rlkit.scoring.pool import build_reward
from tests.scoring.test_pool import group
for name in ("rewards.py:f", "neighbour:f"):
    with build_reward(RewardConfig(fn=name, kwargs={{}}, workers=1, timeout=60)) as reward:
        print(reward(group("7", "8", answer="7")).result())
    print([finding.result for finding in rewards.audit.audit(name, {{}})])
"""
REWARD = """
import json, socket, struct, pickle, tokenizers, safetensors
from rewards import Reward

def f(completion, answer):
    right = completion.endswith(f"</think><answer>{answer}</answer>") and completion.count("<answer>") == 1
    return Reward(float(right or completion == answer), json.dumps([right, answer]))
"""


@pytest.mark.parametrize("entry", ["", "here"])
def test_nothing_in_the_current_folder_hides_a_module_in_a_reward_process(tmp_path: Path, entry: str) -> None:
    """The user's own `rewards.py` is the reward: it is loaded by path, and imports the package of that name."""
    for name in HIDDEN:
        (tmp_path / f"{name}.py").write_text("raise ImportError('the file in the current folder was taken')\n")
    (tmp_path / "rewards.py").write_text(REWARD)
    (tmp_path / "neighbour.py").write_text(REWARD)
    script = CALLER.format(place=0, root=str(ROOT), entry=entry and str(tmp_path))
    done = subprocess.run([sys.executable, "-P", "-c", script], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("value=1.0") == done.stdout.count("value=0.0") == 2, done.stdout
    assert done.stdout.count("['pass', 'pass', 'pass', 'pass', 'pass', 'pass', 'pass']") == 2


def test_the_current_folder_is_searched_last(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "link").symlink_to(tmp_path)
    monkeypatch.setattr(sys, "path", ["", "/b", str(tmp_path), "/a", str(tmp_path / "link"), "/c"])
    assert search_path() == ["/b", "/a", "/c", "", str(tmp_path), str(tmp_path / "link")]
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    monkeypatch.setattr(sys, "path", ["", "/b"])
    assert search_path() == ["", "/b"]


def test_our_own_packages_are_those_of_the_caller_wherever_they_lie(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Even where another one of the same name comes first on the search path."""
    for name in ("rewards", "rlkit", "sandbox"):
        (tmp_path / "theirs" / name).mkdir(parents=True)
        (tmp_path / "theirs" / name / "__init__.py").write_text("raise ImportError('of another distribution')")
    monkeypatch.syspath_prepend(tmp_path / "theirs")
    with process("echo") as one:
        one.send("x", 60)
        assert one.receive(60) == "x"
