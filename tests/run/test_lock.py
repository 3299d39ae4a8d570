"""Two runs never share a folder, whatever became of the one before."""

from __future__ import annotations

import errno
import fcntl
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from recipes import grpo
from rlkit.errors import UserError
from rlkit.run.lock import LOCK_FILE, Lock, check_free
from tests.e2e.runs import GRPO_ONLY, LOCAL

HOLDER = """
import subprocess, sys
from pathlib import Path
from rlkit.run.lock import Lock
lock = Lock(Path(sys.argv[1]))
child = subprocess.Popen([sys.executable, "-c", "import sys; sys.stdin.read()"], stdin=subprocess.PIPE)
print(child.pid, flush=True)
sys.stdin.read()
"""


@contextmanager
def holder(folder: Path) -> Iterator[subprocess.Popen[str]]:
    """Another process with the lock, and a child of its own."""
    command = [sys.executable, "-c", HOLDER, str(folder)]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdin is not None and process.stdout is not None
    assert process.stdout.readline().strip(), "the holder has the lock"
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def test_a_second_run_is_told_who_has_the_folder(tmp_path: Path) -> None:
    with holder(tmp_path / "run") as process:
        for attempt in (lambda: Lock(tmp_path / "run"), lambda: check_free(tmp_path / "run")):
            with pytest.raises(UserError) as refused:
                attempt()
            message = str(refused.value)
            assert f"output_dir={tmp_path / 'run'} is in use by another run (process {process.pid} on " in message
            assert "since 20" in message and "set another output_dir" in message
        Lock(tmp_path / "other").release()


@pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGTERM])
def test_a_killed_run_leaves_no_lock_though_its_child_lives(tmp_path: Path, end: signal.Signals) -> None:
    with holder(tmp_path) as process:
        process.send_signal(end)
        process.wait()
        assert (tmp_path / LOCK_FILE).exists()
        Lock(tmp_path).release()


def test_it_can_be_taken_again_after_release_and_release_repeats(tmp_path: Path) -> None:
    for _ in range(2):
        lock = Lock(tmp_path / "new" / "run")
        with pytest.raises(UserError, match=f"process {os.getpid()} "):
            Lock(tmp_path / "new" / "run")
        lock.release()
        lock.release()
    check_free(tmp_path / "new" / "run")
    check_free(tmp_path / "nowhere")
    assert not (tmp_path / "nowhere").exists()


def test_a_look_keeps_what_the_file_says_and_holds_up_no_other_look(tmp_path: Path) -> None:
    """A dry run wrote its own process and command into the file."""
    file = tmp_path / LOCK_FILE
    for words in ("process 7 on a machine, since 2024: rlkit run grpo\n", ""):
        file.write_text(words)
        file.chmod(0o444)
        check_free(tmp_path)
        assert file.read_text() == words and os.listdir(tmp_path) == [LOCK_FILE]
        file.chmod(0o644)
    with file.open() as other:
        fcntl.flock(other, fcntl.LOCK_SH)
        check_free(tmp_path)


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP])
def test_a_file_system_without_locks_does_not_stop_a_run(
    number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", refuse)
    Lock(tmp_path).release()


@pytest.mark.parametrize("flag", ["dry_run=true", "resume=auto", "resume=never"])
def test_a_recipe_says_so_and_touches_nothing(flag: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lock = Lock(tmp_path / "run")
    with pytest.raises(SystemExit) as leaving:
        grpo.main([*GRPO_ONLY, *LOCAL, f"output_dir={tmp_path / 'run'}", flag])
    lock.release()
    assert leaving.value.code == 2
    assert "is in use by another run (process " in capsys.readouterr().err
    assert [path.name for path in (tmp_path / "run").iterdir()] == [LOCK_FILE]
