"""What a job costs beside bare sampling, and what a journal of a million answers costs to open.

    .venv/bin/python -m benchmarks.distill_speed model.path=TEACHER          both, some minutes on 2 idle cores
    .venv/bin/python -m benchmarks.distill_speed --rows 1000000              the journal alone

Throughput: the same engine draws the same answers to the same questions, first by `generate` alone, all in one call,
then as the job does it: in calls of `rows_per_call`, each answer written down and judged. The sides take turns, the
bare one begins. Seconds of wall and of CPU, those of the reward's processes too; engine and reward have started before.

Journal: so many answers of 60 tokens in one file, four to a question; then the file is opened as a job opens it, and
asked what is there and what is missing. The peak of memory is that of a process that does only this.
Results: benchmarks/RESULTS.md.
"""

from __future__ import annotations

import argparse
import resource
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from time import monotonic

import psutil

from benchmarks.timing import busy_seconds, machine, used_by
from rlkit.assemble import engine, reward
from rlkit.config import DistillRun
from rlkit.config.compose import load_config
from rlkit.data.streams import stream_rows
from rlkit.data.tokenizer import load_tokenizer
from rlkit.distill.decontamination import ExamQuestions
from rlkit.distill.generate import generate
from rlkit.distill.journal import Answered, Journal, Question
from rlkit.distill.questions import AskedAs, asked_of_an_engine, read_questions
from rlkit.distill.teacher import EngineTeacher, Teacher
from rlkit.engine.base import Engine
from rlkit.rollout.judging import RewardFn
from rlkit.types import Score

SETTINGS = [
    *("cluster=local", "engine=torch", "engine.max_model_len=64", "sampling.max_new_tokens=24", "rows_per_call=512"),
    *("data.train_size=1024", "samples=4", "sampling.temperature=1.0", "sampling.top_p=1.0", "cleaning.tests=[]"),
    "data.tasks.chain_sum={min_terms: 3, max_terms: 3, min_digits: 1, max_digits: 1, bare: true}",
]
SAMPLES = 4
TOKENS = tuple(range(60))
TEXT = "<think>" + "so it is seven and then nine " * 8 + "</think><answer>9</answer>"


class Started:
    """A teacher whose engine runs already."""

    def __init__(self, teacher: Teacher) -> None:
        self._teacher = teacher

    def __enter__(self) -> Teacher:
        return self._teacher

    def __exit__(self, *error: object) -> None:
        pass


def throughput(words: Sequence[str], turns: int) -> None:
    """Prints seconds and tokens per second of both sides."""
    cfg = load_config("distill_generate", DistillRun, [*SETTINGS, *words, "output_dir=unused"])
    checkpoint = Path(cfg.model.path).absolute()
    asked_as, sampling = asked_of_an_engine(cfg, load_tokenizer(checkpoint)), cfg.sampling.seeded(cfg.seed)
    sides: dict[str, list[tuple[float, int, float]]] = {"bare": [], "job": []}
    with tempfile.TemporaryDirectory() as place, engine(cfg, checkpoint) as sampler, reward(cfg.reward) as judge:
        first = _journal(Path(place) / "questions", cfg)
        prompts = asked_as([first.question(row) for call in first.calls(10**6) for row in call])
        first.close()
        for group in list(sampler.generate(prompts[:64], 1, sampling)):  # what is made at the first call
            judge(group).result()
        for turn in range(turns):
            for name in sides:
                journal = _journal(Path(place) / f"{name}-{turn}", cfg)
                begun, busy = monotonic(), busy_seconds()
                own = used_by(psutil.Process(), *psutil.Process().children(recursive=True))
                if name == "bare":
                    groups = sampler.generate(prompts, cfg.samples, sampling)
                    tokens = sum(len(rollout.tokens) for group in groups for rollout in group.rollouts)
                else:
                    tokens = _job(cfg, sampler, journal, judge, asked_as)
                seconds = monotonic() - begun
                own = used_by(psutil.Process(), *psutil.Process().children(recursive=True)) - own
                foreign = (busy_seconds() - busy - own) / (seconds * psutil.cpu_count())
                sides[name].append((seconds, tokens, own))
                journal.close()
                print(
                    f"{name}: {seconds:.2f} s, {own:.2f} s of CPU, {tokens:,} tokens, others {foreign:.0%}", flush=True
                )
    wall, cpu = ({name: statistics.median(r[i] for r in runs) for name, runs in sides.items()} for i in (0, 2))
    print(
        f"medians: bare {wall['bare']:.2f} s, job {wall['job']:.2f} s: {wall['bare'] / wall['job']:.2f} of its speed; "
        f"per CPU second {cpu['bare'] / cpu['job']:.2f}"
    )


def _journal(file: Path, cfg: DistillRun) -> Journal:
    journal = Journal(file, "")
    read_questions(journal, stream_rows(cfg.data), ExamQuestions([], 0.5), cfg, lambda questions: None)
    return journal


def _job(cfg: DistillRun, sampler: Engine, journal: Journal, judge: RewardFn, asked_as: AskedAs) -> int:
    teacher = EngineTeacher(sampler, cfg.samples, cfg.sampling.seeded(cfg.seed))
    for _ in generate(journal, lambda: Started(teacher), judge, asked_as, cfg):
        pass
    return journal.counts().tokens


def million(rows: int) -> None:
    """Writes a journal of so many answers and prints what it costs to open."""
    with tempfile.TemporaryDirectory() as place:
        file = Path(place) / "journal.sqlite"
        begun = monotonic()
        with closing(Journal(file, "")) as journal:
            _fill(journal, rows)
        spent = monotonic() - begun
        size = sum(path.stat().st_size for path in Path(place).iterdir())
        print(f"{rows:,} answers and verdicts written in {spent:.0f} s, {size / 2**30:.2f} GiB", flush=True)
        command = [sys.executable, "-m", "benchmarks.distill_speed", "--open", str(file)]
        subprocess.run(command, check=True)


def _fill(journal: Journal, rows: int) -> None:
    num_questions, step = rows // SAMPLES, 1000
    for start in range(0, num_questions, step):
        numbers = range(start, min(start + step, num_questions))
        meta = {"question": "How many are left of all?", "answer": "9"}
        with journal.whole():
            journal.add(
                Question(row=row, id=f"q/train/{row}", question=f"{row} " * 20, answer="9", meta=meta)
                for row in numbers
            )
            for row in numbers[: len(numbers) - (start + step >= num_questions)]:  # the last one stays unanswered
                for sample in range(SAMPLES):
                    journal.record(
                        Answered(row=row, sample=sample, seed=1, text=TEXT, tokens=TOKENS, num_tokens=60, finish="stop")
                    )
                journal.judge(row, [Score(value=1.0, reason="correct")] * SAMPLES)


def reopen(file: Path) -> None:
    """Opens a journal as a job does and prints how long it takes and how much memory."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    begun = monotonic()
    with closing(Journal(file, "")) as journal:
        counts = journal.counts()
        missing = [question.row for question in journal.unanswered(SAMPLES)]
        unjudged = list(journal.unjudged(SAMPLES))
        opened = monotonic() - begun
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        read = sum(len(answers) for _, answers in journal.answers())
        scanned = monotonic() - begun - opened
    print(
        f"opened in {opened:.2f} s: {counts.answers:,} answers, {counts.correct:,} right, missing {missing}, unjudged "
        f"{unjudged}; {(peak - before) / 1024:.0f} MiB more than before; all {read:,} scanned for selection in "
        f"{scanned:.1f} s; peak {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024:.0f} MiB"
    )


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--open", default="", help="open this journal and leave")
    parser.add_argument("settings", nargs="*", help="key=value of the recipe; none: the journal alone")
    given = parser.parse_args(arguments)
    if given.open:
        reopen(Path(given.open))
        return
    before = machine()
    if given.settings:
        throughput(given.settings, given.turns)
    million(given.rows)
    print(f"Before: {before}; after: {machine()}")


if __name__ == "__main__":
    main()
