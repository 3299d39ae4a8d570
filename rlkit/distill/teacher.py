"""Who answers questions: what a job asks of any teacher, and our engines as one."""

from __future__ import annotations

from collections.abc import Generator, Iterable
from typing import Protocol

from rlkit.distill.journal import Answered
from rlkit.distill.questions import Asked
from rlkit.engine.base import Engine
from rlkit.types import Sampling


class TeacherError(RuntimeError):
    """A teacher that does not answer; the message says why and what to do. What it has answered is in the journal."""


class Teacher(Protocol):
    """Answers questions, each as often as its `missing` says."""

    whole_calls: bool
    """Whether all answers to one call are needed to repeat any of them.

    An engine draws the same tokens again only in the same company: in another batch a sum is rounded otherwise, and a
    token in some millions differs. So the answers to one call are kept all or none, and a run that was killed asks the
    whole call again. A server promises no such thing; what it has answered is kept at once."""

    def answers(self, asked: Iterable[Asked], *, before: bool = False) -> Generator[Answered]:
        """Yields answers as they come, in any order; raises TeacherError when it gives up.

        `before` says that the job has answers of an earlier call or life: then a teacher that refuses all that is left
        may do so because of these questions.
        """
        ...


class EngineTeacher:
    """A checkpoint on our engines; the seed of every answer is derived from the job's, its row's id and its number."""

    whole_calls = True

    def __init__(self, engine: Engine, samples: int, sampling: Sampling) -> None:
        """Draws `samples` answers to every question, whatever is missing."""
        self._engine, self._samples, self._sampling = engine, samples, sampling

    def answers(self, asked: Iterable[Asked], *, before: bool = False) -> Generator[Answered]:
        """Yields the answers to each question as it is finished."""
        rows = {one.prompt.id: one for one in asked}
        prompts = [one.prompt for one in rows.values()]
        for group in self._engine.generate(prompts, n=self._samples, sampling=self._sampling):
            for sample, rollout in enumerate(group.rollouts):
                yield Answered(
                    row=rows[group.prompt.id].question.row,
                    sample=sample,
                    seed=rollout.seed,
                    text=rollout.text,
                    tokens=rollout.tokens,
                    num_tokens=len(rollout.tokens),
                    finish=rollout.finish_reason,
                )
