"""Ctrl-C ends a program at once, without a traceback, in every age of a run."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from rlkit.interrupt import GO_ON, end_silently, leaving_at_once, raise_again
from tests.e2e.runs import GRPO_ONLY, LOCAL

INTERRUPT = "import os, signal; os.kill(os.getpid(), signal.SIGINT)\n"
SWALLOW = f"try:\n    {INTERRUPT}    for _ in range(10**6): pass\nexcept BaseException: pass\nprint('went on')\n"
RLKIT = [sys.executable, "-P", "-c", "from rlkit.cli.main import main; main()"]


def run(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)


def test_before_a_run_is_open_the_process_just_ends() -> None:
    done = run(f"from rlkit.interrupt import *\nend_silently()\n{SWALLOW}")
    assert (done.returncode, done.stdout, done.stderr) == (-signal.SIGINT, "", "")


def test_while_parts_start_nothing_can_swallow_it() -> None:
    indented = SWALLOW.replace("\n", "\n    ")
    done = run(f"from rlkit.interrupt import *\nwith leaving_at_once():\n    {indented}")
    assert (done.returncode, done.stdout, done.stderr) == (130, "", f"\n{GO_ON}\n")


def test_while_steps_are_taken_it_is_an_exception() -> None:
    code = "from rlkit.interrupt import *\nend_silently()\nraise_again()\nwith leaving_at_once(): pass\n"
    done = run(
        f"{code}try:\n    {INTERRUPT}    for _ in range(10**6): pass\nexcept KeyboardInterrupt: print('unwinds')"
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "unwinds\n", "")


def test_the_end_of_a_process_runs_nothing_more() -> None:
    code = "import atexit; atexit.register(print, 'late'); print('said', end=''); import rlkit.interrupt as i\n"
    done = run(code + "atexit.register(i.end_process)")
    assert (done.returncode, done.stdout) == (130, "said")


def test_what_was_set_before_comes_back_and_other_threads_set_nothing() -> None:
    before = signal.getsignal(signal.SIGINT)
    with leaving_at_once():
        assert signal.getsignal(signal.SIGINT) not in (before, signal.SIG_DFL)
    raise_again()  # of somebody else's handler it takes nothing back
    assert signal.getsignal(signal.SIGINT) is before

    def elsewhere() -> None:
        end_silently()
        with leaving_at_once():
            raise_again()

    thread = threading.Thread(target=elsewhere)
    thread.start()
    thread.join()
    assert signal.getsignal(signal.SIGINT) is before


def interrupted(command: list[str], cwd: Path, after: str) -> tuple[int, str]:
    """Sends Ctrl-C, as a terminal does to the whole group, after a line that holds some words; "" is at once."""
    process = subprocess.Popen(
        command, cwd=cwd, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
    )
    assert process.stdout is not None
    seen = ""
    while after not in seen and (line := process.stdout.readline()):
        seen += line
    os.killpg(process.pid, signal.SIGINT)
    printed, _ = process.communicate()
    return process.returncode, seen + printed


@pytest.mark.slow
@pytest.mark.parametrize("after", ["warning: the model starts", "before GRPO", "  1/100000"])
def test_a_run_is_interrupted_without_a_traceback(after: str, tmp_path: Path) -> None:
    words = [*GRPO_ONLY, *LOCAL, "output_dir=run", "algo.steps=100000", "logging.tensorboard=true"]
    code, printed = interrupted([*RLKIT, "run", "grpo", *words], tmp_path, after)
    assert code in (130, -signal.SIGINT) and "Traceback" not in printed, printed
    if not after.startswith("warning"):
        assert code == 130 and GO_ON in printed and (tmp_path / "run" / "report.html").exists()


@pytest.mark.slow
@pytest.mark.parametrize("after", ["starting 1 engine(s)", "parity: engine and trainer"])
def test_a_run_on_ray_is_interrupted_without_a_crash(after: str, tmp_path: Path) -> None:
    """While the engine loads this took 12 s, and some runs ended by SIGSEGV; no process may outlive it (conftest)."""
    words = [*GRPO_ONLY, "output_dir=run", "algo.steps=100000"]
    code, printed = interrupted([*RLKIT, "run", "grpo", *words], tmp_path, after)
    assert code == 130 and GO_ON in printed and "Traceback" not in printed, printed
