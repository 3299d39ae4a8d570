"""From rows to questions that are asked: equal ones, near ones and those of test sets are left out, each with a reason.

All of it happens before the first answer, so no teacher works on what is thrown away.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING

from rlkit.checks import MOST
from rlkit.config import DistillRun
from rlkit.data.cells import plain
from rlkit.data.prompts import to_prompts
from rlkit.data.rows import Row
from rlkit.data.streams import stream_questions
from rlkit.distill.decontamination import ExamQuestions
from rlkit.distill.duplicates import NearQuestions, same_words
from rlkit.distill.journal import Journal, Question
from rlkit.distill.words import words_of
from rlkit.errors import UserError
from rlkit.types import Prompt

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

BATCH = 1000
"""Rows that are read, checked and written at a time."""
REPEATED, NEAR, TEST = "repeated", "near another", "in a test set"
"""Why a question is not asked."""
READ = "questions"
"""The note of a journal that has all its questions."""
AskedAs = Callable[[Sequence[Question]], Sequence[Prompt]]
"""Makes prompts of questions."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """A question, and the prompt that its teacher gets."""

    question: Question
    prompt: Prompt


def exam_questions(cfg: DistillRun) -> ExamQuestions:
    """Reads the questions of `cleaning.tests`, and of `data.eval_source` where there is one."""
    column = cfg.cleaning.tests_column or cfg.data.prompt_column
    named = [(source, column, "cleaning.tests") for source in cfg.cleaning.tests]
    if cfg.data.eval_source:
        named.append((cfg.data.eval_source, cfg.data.prompt_column, "data.eval_source"))
    found = (pair for source, name, key in named for pair in stream_questions(source, cfg.data, name, key))
    return ExamQuestions(found, cfg.cleaning.overlap)


def read_questions(
    journal: Journal,
    rows: Iterable[Row],
    tests: ExamQuestions,
    cfg: DistillRun,
    check: Callable[[Sequence[Question]], None],
) -> None:
    """Writes all rows into the journal and marks those that are not asked; `check` raises for questions that cannot be.

    A journal that has its questions already keeps them. Raises UserError if there are none to ask.
    """
    if journal.note(READ) is not None:
        return
    journal.forget_questions()
    first: dict[int, int] = {}
    near = NearQuestions(cfg.cleaning.near)
    numbered = enumerate(rows)
    while batch := list(islice(numbered, BATCH)):
        questions = [_question(row, entry) for row, entry in batch]
        left_out = []
        asked = []
        for question in questions:
            words = words_of(question.question)
            same = first.setdefault(same_words(words), question.row)
            if same != question.row:
                left_out.append((question.row, REPEATED, str(same)))
            elif (test := tests.found_in(words)) is not None:
                left_out.append((question.row, TEST, test))
            else:
                asked.append(question)
                near.add(question.row, words)
        check(asked)
        journal.add(questions)
        journal.leave_out(left_out)
    found = near.found(lambda row: journal.question(row).question)
    journal.leave_out((row, NEAR, str(other)) for row, other in found.items())
    if not (rows_read := journal.num_rows()) or not journal.counts().asked:
        left = ", ".join(f"{count} {why}" for why, count in journal.left_out().items())
        raise UserError(
            f"there is nothing to ask: of the {rows_read} rows of data.source={cfg.data.source!r} all are left out"
            f"{f' ({left})' if left else ''}; use more data"
        )
    journal.write_note(READ, str(rows_read))


def asked_of_an_engine(cfg: DistillRun, tokenizer: PreTrainedTokenizerBase) -> AskedAs:
    """Returns what puts questions into the chat template of a checkpoint; it raises UserError for one that is too long.

    Else as `to_prompts` raises: for a template that loses a question, and for text that cannot be encoded.
    """
    room = cfg.engine.max_model_len - cfg.sampling.max_new_tokens

    def prompts(questions: Sequence[Question]) -> Sequence[Prompt]:
        made = to_prompts([_row(question) for question in questions], tokenizer, cfg.data.instruction, MOST)
        for prompt in made:
            if (length := len(prompt.tokens)) > room:
                raise UserError(
                    f"the prompt of row {prompt.id!r} has {length} tokens, but only {room} fit before the answer: "
                    f"raise engine.max_model_len by {length - room}, lower sampling.max_new_tokens, or remove the row"
                )
        return made

    return prompts


def asked_of_a_server(cfg: DistillRun) -> AskedAs:
    """Returns what makes the user's message of a question; a server has the chat template itself."""

    def prompts(questions: Sequence[Question]) -> Sequence[Prompt]:
        return [Prompt(id=q.id, tokens=(), text=cfg.content_prefix + q.question, meta=q.meta) for q in questions]

    return prompts


def asked(questions: Iterable[Question], asked_as: AskedAs) -> Iterator[Asked]:
    """Yields questions with their prompts, which are made some hundreds at a time."""
    waiting = iter(questions)
    while batch := list(islice(waiting, BATCH)):
        for question, prompt in zip(batch, asked_as(batch), strict=True):
            yield Asked(question=question, prompt=prompt)


def _question(row: int, entry: Row) -> Question:
    meta = plain(entry.meta)
    return Question(row=row, id=entry.id, question=entry.question, answer=entry.answer, meta=meta)


def _row(question: Question) -> Row:
    return Row(id=question.id, question=question.question, answer=question.answer, solution="", meta=question.meta)
