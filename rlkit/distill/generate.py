"""A dataset for distillation, top to bottom: ask what is missing, verify, choose, write.

Questions are in the journal before (`rlkit.distill.questions`). Whatever ends the process, the next start goes on from
the journal, and the files at the end are those of a job that nobody ended.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator
from contextlib import AbstractContextManager, closing, nullcontext

from rlkit.config import DistillRun
from rlkit.distill.journal import Counts, Journal
from rlkit.distill.questions import Asked, AskedAs, asked
from rlkit.distill.teacher import Teacher
from rlkit.distill.verification import Verification
from rlkit.rollout.judging import RewardFn


def generate(
    journal: Journal,
    start_teacher: Callable[[], AbstractContextManager[Teacher]],
    reward: RewardFn,
    asked_as: AskedAs,
    cfg: DistillRun,
) -> Generator[Counts]:
    """Answers every question `cfg.samples` times and judges the answers; yields whenever one more is answered.

    A teacher starts only where an answer is missing. Raises TeacherError, and what the reward raises; what was answered
    before that is kept.
    """
    verification = Verification(journal, reward)
    for one in asked(journal.unjudged(cfg.samples), asked_as):
        verification.submit(one.question.row, one.prompt)
        yield journal.counts()
    if next(journal.unanswered(cfg.samples), None) is not None:
        with start_teacher() as teacher:
            for call in _calls(journal, teacher, asked_as, cfg):
                # A call that must be whole is one transaction: after a kill it is asked again from its beginning.
                with journal.whole() if teacher.whole_calls else nullcontext():
                    yield from _answer(call, teacher, journal, verification)
    verification.settle(0)
    yield journal.counts()


def _answer(call: Iterator[Asked], teacher: Teacher, journal: Journal, verification: Verification) -> Iterator[Counts]:
    """Writes every answer down as it comes, and hands a question with all its answers to the reward."""
    waiting: dict[int, tuple[Asked, set[int]]] = {}

    def noted() -> Iterator[Asked]:
        for one in call:
            waiting[one.question.row] = (one, set(one.question.missing))
            yield one

    # Whatever ends this, it ends requests on their way.
    with closing(teacher.answers(noted(), before=journal.has_answers())) as answers:
        for answered in answers:
            journal.record(answered)
            one, missing = waiting[answered.row]
            missing.discard(answered.sample)
            if not missing:
                del waiting[answered.row]
                verification.submit(answered.row, one.prompt)
                yield journal.counts()


def _calls(journal: Journal, teacher: Teacher, asked_as: AskedAs, cfg: DistillRun) -> Iterator[Iterator[Asked]]:
    """Yields what a teacher is given at a time: fixed portions of whole questions, or all that is missing at once."""
    if not teacher.whole_calls:
        yield asked(journal.unanswered(cfg.samples), asked_as)
        return
    for rows in journal.calls(cfg.rows_per_call):
        if missing := journal.with_missing(rows, cfg.samples):
            yield asked(missing, asked_as)
