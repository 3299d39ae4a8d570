"""A job that makes a dataset, and its folder: checked, opened, followed, written, and closed whatever happens."""

from __future__ import annotations

import hashlib
import json
import shutil
import sys
import time
from collections.abc import Generator, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from types import TracebackType

import yaml

import rewards
from rlkit.config import DistillRun
from rlkit.config.compose import clear_errors, load_config, parse_command, to_yaml
from rlkit.data.streams import stream_rows
from rlkit.distill.card import NONE, filters
from rlkit.distill.decontamination import ExamQuestions
from rlkit.distill.journal import Counts, Journal, Question
from rlkit.distill.questions import AskedAs, asked_of_a_server, asked_of_an_engine, exam_questions, read_questions
from rlkit.distill.server import check_server
from rlkit.distill.teacher import TeacherError
from rlkit.distill.writing import write_dataset, write_preferences
from rlkit.errors import PartDiedError
from rlkit.interrupt import INTERRUPTED, raise_again
from rlkit.rollout.judging import FIXES, OTHERWISE
from rlkit.run.fit import check_engine_fit, check_shape
from rlkit.run.inputs import check_same, first_inputs, settings_of, without_caches, write_inputs
from rlkit.run.lock import Lock, check_free
from rlkit.run.machine import check_engine_machine, check_folder, check_place
from rlkit.run.prepare import check_reward, read_checkpoint
from rlkit.run.progress import SAY_ALL
from rlkit.watch import Console

JOURNAL = "journal.sqlite"
DATASET, PREFERENCES = "dataset", "preferences"
REPORT_S = 15.0
"""Seconds between two lines of progress."""
GO_ON = "what was answered is in the journal, and the same command goes on"
RECIPE = "distill_generate"


@dataclass(frozen=True, slots=True, kw_only=True)
class Prepared:
    """What a job works with, read and checked."""

    asked_as: AskedAs
    tests: ExamQuestions
    checkpoint: Path | None
    """Where the teacher is; None for a server."""
    judge: rewards.RewardFunction

    def read(self, journal: Journal, cfg: DistillRun) -> None:
        """Brings all questions into the journal; raises UserError or RewardError if one cannot be asked or judged."""

        def check(questions: Sequence[Question]) -> None:
            prompts = self.asked_as(questions)
            alone, grouped = (prompts, ()) if cfg.samples == 1 else ((), prompts)
            check_reward(self.judge, cfg.reward, alone, grouped)

        with closing(self.judge):
            read_questions(journal, stream_rows(cfg.data), self.tests, cfg, check)


def open_job(argv: Sequence[str] | None) -> tuple[DistillRun, Job] | None:
    """Opens the job that a command line asks for; None when it only asked for a look.

    Every mistake that can be seen now ends here, in the data too, before anything is started: `clear_errors`.
    """
    with clear_errors():
        command = parse_command(RECIPE, sys.argv[1:] if argv is None else argv)
        cfg = load_config(RECIPE, DistillRun, command.overrides)
        check_shape(cfg, command.overrides)
        if command.print_only:
            print(f"{to_yaml(cfg)}\nnothing was started")
            return None
        prepared = prepare_job(cfg)
        if not cfg.dry_run:
            return cfg, Job(cfg, prepared)
        check_free(cfg.output_dir)
        check_same(cfg)
        with TemporaryDirectory() as scratch, closing(Journal(Path(scratch) / JOURNAL, "")) as journal:
            prepared.read(journal, cfg)
            left_out = "".join(f", {count:,} left out ({why})" for why, count in journal.left_out().items())
            print(
                f"{to_yaml(cfg)}\nquestions    {journal.counts().asked:,} of {journal.num_rows():,} rows{left_out}\n"
                f"answers      {journal.counts().asked * cfg.samples:,}\n"
                "\nnothing was started; the data, the teacher and the reward are in order"
            )
        return None


def prepare_job(cfg: DistillRun) -> Prepared:
    """Reads and checks all that the job needs but its rows, without starting or writing anything.

    Raises:
        UserError: naming key, value and fix, for a folder that will not do, a checkpoint that is not one, a server that
            does not answer, test sets that cannot be read, a reward that does not load.
    """
    check_folder("output_dir", cfg.output_dir, "set another output_dir")
    judge = rewards.load(cfg.reward.fn, **cfg.reward.kwargs)
    checkpoint = None
    if cfg.teacher.url:
        check_server(cfg.teacher)
        asked_as = asked_of_a_server(cfg)
    else:
        checkpoint = Path(cfg.model.path)
        architecture, tokenizer = read_checkpoint(checkpoint, cfg.model.kind)
        check_engine_fit(cfg, architecture)
        size = architecture.size()
        check_place(cfg, weights=size.parameters + size.mtp_parameters)
        check_engine_machine(cfg)
        asked_as = asked_of_an_engine(cfg, tokenizer)
    return Prepared(asked_as=asked_as, tests=exam_questions(cfg), checkpoint=checkpoint, judge=judge)


class Job:
    """One job and its folder; use it in a `with` block.

    Its lock, its settings and its journal are there when it is made, and all questions are in the journal.
    """

    def __init__(self, cfg: DistillRun, prepared: Prepared) -> None:
        """Raises UserError if another job is in the folder, or has left there what this one may not continue."""
        self.cfg, self.prepared, self.folder = cfg, prepared, cfg.output_dir
        self._lock = Lock(self.folder)
        opened = ExitStack()
        try:
            check_same(cfg)
            # With these the files of now have just been compared.
            self.inputs = first_inputs(cfg)
            settings = json.dumps([settings_of(cfg), self.inputs], sort_keys=True)
            self.journal = Journal(self.folder / JOURNAL, hashlib.sha256(settings.encode()).hexdigest())
            opened.callback(self.journal.close)
            write_inputs(cfg, self.inputs)
            self.console = Console(self.folder)
            opened.callback(self.console.close)
            prepared.read(self.journal, cfg)
        except BaseException:
            opened.close()
            self._lock.release()
            raise

    def __enter__(self) -> Job:
        raise_again()
        counts = self.journal.counts()
        left_out = "".join(f", {count:,} {why}" for why, count in self.journal.left_out().items())
        self.console.line(
            f"{counts.asked:,} questions of {self.journal.num_rows():,} rows{left_out}; "
            f"{counts.answers:,} of {counts.asked * self.cfg.samples:,} answers are there"
        )
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Closes the files; an error whose message says all there is to do ends the program without a traceback."""
        self.journal.close()
        self.console.close()
        self._lock.release()
        if isinstance(error, KeyboardInterrupt):
            print(f"interrupted; {GO_ON}", file=sys.stderr)
            raise SystemExit(INTERRUPTED) from None
        if isinstance(error, (PartDiedError, TeacherError, *SAY_ALL)):
            for note in getattr(error.__cause__, "__notes__", ()):
                print(note, file=sys.stderr)
            print(f"error: {getattr(error, 'cause', error)}", file=sys.stderr)
            raise SystemExit(1) from None

    def follow(self, progress: Generator[Counts]) -> None:
        """Runs the story; a line every 15 seconds says how far it is, how fast, how much is right and what is left."""
        begun, start, said = self.journal.counts(), time.monotonic(), time.monotonic()
        with closing(progress):  # whatever ends this, the story is out of its transaction before the journal closes
            for counts in progress:
                now = time.monotonic()
                if now >= said + REPORT_S:
                    said = now
                    self.console.line(progress_line(begun, counts, counts.asked * self.cfg.samples, now - start))
        counts = self.journal.counts()
        if counts.answers > begun.answers:
            total = counts.asked * self.cfg.samples
            self.console.line(progress_line(begun, counts, total, time.monotonic() - start))

    def write(self) -> None:
        """Writes the dataset, unless the folder has it already, and says what was left out where."""
        for kind, count in self.journal.no_verdicts().items():
            self.console.warn(
                f"{count:,} answers have no verdict ({kind}) and are not in the dataset: "
                f"{FIXES.get(kind, OTHERWISE)}. The same command asks the reward for them again"
            )
        settings = without_caches(yaml.safe_load(to_yaml(self.cfg)))
        counts = self.journal.counts()
        state = json.dumps([settings["selection"], counts.answers, counts.judged])
        folder, preferences, margin = self.folder / DATASET, self.folder / PREFERENCES, self.cfg.selection.pair_margin
        there = folder.is_dir() and preferences.is_dir() == bool(margin)
        if self.journal.note("written") == state and there:
            self.console.line(f"this job is complete; for a new one, set another output_dir\ndataset: {folder}")
            return
        counted = NONE
        if margin:
            counted = write_preferences(self.journal, margin, preferences)
        else:
            shutil.rmtree(preferences, ignore_errors=True)
        chosen = write_dataset(
            self.journal,
            self.prepared.tests,
            self.prepared.asked_as,
            self.cfg,
            folder,
            settings=settings,
            inputs=self.inputs,
            preferences=counted,
        )
        self.journal.write_note("written", state)
        for label, count in filters(self.journal, chosen, counted):
            self.console.line(f"{count:>12,}  {label}")
        if not len(chosen):
            self.console.warn("no answer was kept, and the dataset is empty; its card says at which filter")
        self.console.line(f"dataset: {folder}")
        if margin:
            self.console.line(f"preferences: {preferences}")


def progress_line(begun: Counts, counts: Counts, total: int, seconds: float) -> str:
    """Returns how far a job is; speeds are those since `begun`, so many seconds ago, shares are of all answers."""
    new = counts.answers - begun.answers
    left = (total - counts.answers) * seconds / new if new else None
    when = "" if left is None or total == counts.answers else f", about {_clock(left)} left"
    right = f", {counts.correct / counts.judged:.1%} of {counts.judged:,} judged are right" if counts.judged else ""
    speed = (counts.tokens - begun.tokens) / max(seconds, 1e-9)
    share = counts.answers / max(1, total)
    done = f"answers: {counts.answers:,}/{total:,} ({share:.0%}), {_clock(seconds)} so far{when}"
    return f"{done}, {speed:,.0f} tokens/s{right}"


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02}:{rest:02}" if minutes >= 60 else f"{minutes:02}:{rest:02}"
