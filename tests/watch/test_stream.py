"""A run goes on when nobody reads its output any more."""

from __future__ import annotations

import errno
import io
import os
import subprocess
import sys
from pathlib import Path

import pytest

from rlkit.watch.stream import Lasting
from tests.e2e.runs import GRPO_ONLY, LOCAL

TALK = """
import sys
from rlkit.watch import Console
console = Console()
sys.stdin.readline()
for number in range(3):
    console.line(f"line {number}")
    with console.bar("work", 10, "things") as bar:
        bar.set(5)
print("a library's own line", flush=True)
print("and another", file=sys.stderr, flush=True)
open("done", "w").close()
"""


@pytest.mark.parametrize("merged", [False, True], ids=["| head", "2>&1 | head"])
def test_a_pipe_without_a_reader(merged: bool, tmp_path: Path) -> None:
    """Neither our own lines, nor those of libraries, nor what Python flushes at the end fails."""
    reader, writer = os.pipe()
    error = writer if merged else subprocess.PIPE
    process = subprocess.Popen(
        [sys.executable, "-c", TALK], cwd=tmp_path, stdin=subprocess.PIPE, stdout=writer, stderr=error, text=True
    )
    os.close(writer)
    os.close(reader)
    _, said = process.communicate("go\n")
    assert process.returncode == 0 and (tmp_path / "done").exists()
    assert merged or said == "and another\n", said


def test_a_full_disk_behind_the_output(tmp_path: Path) -> None:
    (tmp_path / "talk.py").write_text(TALK)
    command = f"{sys.executable} talk.py > /dev/full"
    done = subprocess.run(["bash", "-c", command], cwd=tmp_path, input=b"go\n")
    assert done.returncode == 0 and (tmp_path / "done").exists()


@pytest.mark.parametrize("number", [errno.EPIPE, errno.EIO, errno.ENOSPC, errno.EBADF])
def test_errors_of_writing_are_outlived_and_others_are_not(number: int) -> None:
    class Broken(io.StringIO):
        def write(self, text: str) -> int:
            raise OSError(number, os.strerror(number))

        flush = write  # type: ignore[assignment]

    stream = Lasting(Broken())
    assert stream.write("lost") == 4
    whole = io.StringIO()
    assert Lasting(whole).write("kept") == 4 and whole.getvalue() == "kept"
    whole.close()
    with pytest.raises(ValueError, match="closed"):
        Lasting(whole).write("a mistake of ours")


@pytest.mark.slow
def test_head_does_not_end_a_run(tmp_path: Path) -> None:
    words = " ".join(f"'{word}'" for word in [*GRPO_ONLY, *LOCAL, "output_dir=run", "checkpoint.every=1"])
    for pipe in ("| head -1", "2>&1 | head -1"):
        command = f"set -o pipefail; {sys.executable} -m recipes.grpo {words} {pipe}"
        done = subprocess.run(["bash", "-c", command], cwd=tmp_path, capture_output=True, text=True)
        assert done.returncode == 0 and len(done.stdout.splitlines()) == 1 and "Traceback" not in done.stderr, (
            done.stderr
        )
    assert len((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()) == 6
    assert (tmp_path / "run" / "report.html").exists() and (tmp_path / "run" / "model").is_dir()
