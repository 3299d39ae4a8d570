"""Small parts of a job: questions, a teacher that can fail, a reward that can be silent, all in this process."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from rlkit.config import DistillRun
from rlkit.config.compose import load_config
from rlkit.data.rows import Row
from rlkit.distill.decontamination import ExamQuestions
from rlkit.distill.journal import Answered, Journal
from rlkit.distill.questions import Asked, asked_of_a_server, read_questions
from rlkit.distill.teacher import Teacher, TeacherError
from rlkit.types import Group, Score

SERVER = ("teacher.url=http://127.0.0.1:1/v1", "teacher.model=tiny", "cluster=local", "engine=torch")


def config(folder: Path, *words: str) -> DistillRun:
    """A job of 3 answers to each question, 4 questions a call."""
    given = ("samples=3", "rows_per_call=4", f"output_dir={folder}", *SERVER, *words)
    return load_config("distill_generate", DistillRun, given)


def rows(number: int = 10) -> list[Row]:
    """Questions that are not near each other."""
    found = []
    for i in range(number):
        draw = random.Random(i)
        words = "".join(draw.choice("bdfgklmnprstaeiou ") for _ in range(80))
        question = f"Compute {i} + {i} {words}"
        meta = {"question": question, "answer": str(2 * i), "level": i % 3}
        found.append(Row(id=f"q/train/{i}", question=question, answer=str(2 * i), solution="", meta=meta))
    return found


def journal_of(cfg: DistillRun, found: Sequence[Row] | None = None, settings: str = "s") -> Journal:
    """A journal with all its questions."""
    cfg.output_dir.mkdir(parents=True, exist_ok=True)
    journal = Journal(cfg.output_dir / "journal.sqlite", settings)
    read_questions(journal, rows() if found is None else found, ExamQuestions([], 0.7), cfg, lambda questions: None)
    return journal


def answer_of(row: int, sample: int, extra: str = "") -> str:
    """What the teacher writes: right for two answers of three."""
    right = 2 * row if (row + sample) % 3 else -1
    return f"<think>{'so ' * (sample + 1)}{row}+{row}={right} {extra}</think><answer>{right}</answer>"


@dataclass
class FakeTeacher:
    """Answers in an order of its own, and dies after so many answers if it is told to."""

    whole_calls: bool
    dies_after: int = 10**9
    given: Counter[tuple[int, int]] = field(default_factory=Counter)
    starts: int = 0
    noise: Callable[[], str] = str
    """What stands in an answer besides; a server may never say the same twice."""

    def answers(self, asked: Iterable[Asked], *, before: bool = False) -> Generator[Answered]:
        wanted = [(one.question.row, sample) for one in asked for sample in one.question.missing]
        random.Random(len(wanted)).shuffle(wanted)
        for row, sample in wanted:
            if sum(self.given.values()) >= self.dies_after:
                raise TeacherError("the teacher is gone")
            self.given[row, sample] += 1
            text = answer_of(row, sample, self.noise())
            yield Answered(
                row=row,
                sample=sample,
                seed=sample,
                text=text,
                tokens=(row, sample),
                num_tokens=len(text),
                finish="stop",
            )

    @contextmanager
    def start(self) -> Iterator[Teacher]:
        self.starts += 1
        yield self


@dataclass
class FakeReward:
    """Judges by the answer; gives no verdict on the first so many of the rows in `silent`."""

    silent: frozenset[int] = frozenset()
    judged: Counter[str] = field(default_factory=Counter)

    def __call__(self, group: Group) -> Future[Sequence[Score]]:
        self.judged[group.prompt.id] += 1
        future: Future[Sequence[Score]] = Future()
        future.set_result([self._score(group, i) for i in range(len(group.rollouts))])
        return future

    def _score(self, group: Group, i: int) -> Score:
        if int(group.prompt.id.rpartition("/")[2]) in self.silent and i == 1:
            return Score(value=None, reason="infra: the box is gone")
        right = f"<answer>{group.prompt.meta['answer']}</answer>" in group.rollouts[i].text
        return Score(value=float(right), reason="correct" if right else "wrong", parts={"mine": float(right)})


def prompts_of(cfg: DistillRun) -> Callable:
    """Prompts as a server gets them."""
    return asked_of_a_server(cfg)
