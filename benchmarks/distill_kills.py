"""Kills a job that makes a dataset at random moments, and compares its files to those of one that nobody killed.

    .venv/bin/python -m benchmarks.distill_kills model.path=TEACHER                     30 kills, a small job on sums
    .venv/bin/python -m benchmarks.distill_kills --kills 5 model.path=TEACHER cluster=ray engine=vllm

The driver gets SIGKILL at a moment drawn from the time that a whole job works, from its journal's first byte to the
last file; then the same command goes on, until it too is killed or ends. After every series of kills the files must be
the same, byte for byte, and no answer may be there twice. Results: benchmarks/RESULTS.md.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import sqlite3
import sys
import tempfile
import traceback
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from time import monotonic, sleep

from benchmarks.timing import machine
from recipes import distill_generate

SETTINGS = [
    *("cluster=local", "engine=torch", "engine.max_model_len=64", "sampling.max_new_tokens=24", "rows_per_call=16"),
    *("data.train_size=300", "samples=4", "sampling.temperature=1.0", "sampling.top_p=1.0", "selection.shard_rows=50"),
    "data.tasks.chain_sum={min_terms: 3, max_terms: 3, min_digits: 1, max_digits: 1, bare: true}",
]
A_SERIES = 5
"""Kills of one job before it may end."""
FILE = "journal.sqlite"


@dataclass
class Job:
    """A process that runs the recipe.

    It is forked from this one, which has imported everything and done nothing: a start costs a second and not ten, and
    the moments of the kills fall into work.
    """

    pid: int
    code: int | None = None

    def poll(self) -> int | None:
        """Returns the exit code, below 0 for a signal; None while it runs."""
        if self.code is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            self.code = os.waitstatus_to_exitcode(status) if pid else None
        return self.code

    def wait(self) -> int:
        """Waits for its end and returns the exit code."""
        while (code := self.poll()) is None:
            sleep(0.01)
        return code


def start(folder: Path, settings: Sequence[str]) -> Job:
    """Starts the job, or goes on with it."""
    sys.stdout.flush()
    if pid := os.fork():
        return Job(pid)
    log = os.open(folder.parent / f"{folder.name}.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    for stream in (1, 2):
        os.dup2(log, stream)
    code = 1
    try:
        distill_generate.main([*settings, f"output_dir={folder}"])
        code = 0
    except SystemExit as left:
        code = left.code if isinstance(left.code, int) else 1
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        os._exit(code)


def until_it_works(folder: Path, job: Job) -> float:
    """Waits until this start of the job has its folder, or has ended; returns the moment."""
    begun = monotonic()
    while job.poll() is None and not _holds(folder, job.pid) and monotonic() < begun + 600:
        sleep(0.02)
    return monotonic()


def _holds(folder: Path, pid: int) -> bool:
    lock = folder / "run.lock"
    return (folder / FILE).exists() and lock.read_text().startswith(f"process {pid} ")


def kill(folder: Path, job: Job, after: float) -> bool:
    """Waits so long after it began to work, then kills it; False if it had come to its end before."""
    end = until_it_works(folder, job) + after
    while monotonic() < end and job.poll() is None:
        sleep(0.01)
    if job.poll() is not None:
        return False
    os.kill(job.pid, signal.SIGKILL)
    return job.wait() == -signal.SIGKILL


def answers(folder: Path) -> int:
    """Counts the answers in a journal."""
    with closing(sqlite3.connect(folder / FILE)) as journal:
        if not journal.execute("SELECT 1 FROM sqlite_master WHERE name = 'answers'").fetchone():
            return 0  # killed before it had any table
        found = journal.execute("SELECT count(*), count(DISTINCT row * 1000 + sample) FROM answers").fetchone()
    if found[0] != found[1]:
        raise RuntimeError(f"{folder}: {found[0]} answers of {found[1]}")
    return found[0]


def finish(folder: Path, settings: Sequence[str]) -> float:
    """Lets a job come to its end and returns its seconds of work; RuntimeError if it fails."""
    job = start(folder, settings)
    begun = until_it_works(folder, job)
    if job.wait():
        raise RuntimeError(f"{folder.name} failed:\n{(folder.parent / f'{folder.name}.log').read_text()[-3000:]}")
    return monotonic() - begun


def differences(whole: Path, killed: Path) -> list[str]:
    """The files that are not the same bytes."""
    expected, found = ({file.name: file.read_bytes() for file in (f / "dataset").iterdir()} for f in (whole, killed))
    return sorted(name for name in expected.keys() | found.keys() if expected.get(name) != found.get(name))


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs once whole, then kills series of jobs; ends with 1 if any file differs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=30)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("settings", nargs="*", help="key=value of recipe distill_generate")
    given = parser.parse_args(arguments)
    draw, before = random.Random(given.seed), machine()
    for name in ("reasoning_gym", "transformers.tokenization_utils_tokenizers", "rlkit.engine.local"):
        import_module(name)  # what a job imports when it comes to it
    with tempfile.TemporaryDirectory() as place:
        folder, settings = Path(place), [*SETTINGS, *given.settings]
        seconds = finish(folder / "whole", settings)
        size = sum(file.stat().st_size for file in (folder / "whole" / "dataset").iterdir())
        print(
            f"the whole job: {seconds:.1f} s of work, {answers(folder / 'whole')} answers, {size:,} bytes", flush=True
        )
        done, wrong, series = 0, 0, 0
        while done < given.kills:
            job, series = folder / f"killed-{series}", series + 1
            for _ in range(min(A_SERIES, given.kills - done)):
                after = draw.uniform(0, seconds)
                if not kill(job, start(job, settings), after):
                    break
                done += 1
                print(f"kill {done}: after {after:.1f} s of work, {answers(job)} answers are there", flush=True)
            finish(job, settings)
            differing = differences(folder / "whole", job)
            wrong += bool(differing)
            print(f"{job.name}: {'the same bytes' if not differing else f'other files: {differing}'}", flush=True)
    print(f"{done} kills, {wrong} jobs with other files. Before: {before}; after: {machine()}")
    raise SystemExit(1 if wrong else 0)


if __name__ == "__main__":
    main()
