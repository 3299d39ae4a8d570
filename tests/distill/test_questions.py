"""Rows become questions once: repeated, near and known ones are left out, each with what it repeats."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest

from rlkit.distill import questions as module
from rlkit.distill.decontamination import ExamQuestions
from rlkit.distill.journal import Journal, Question
from rlkit.distill.questions import exam_questions, read_questions
from rlkit.errors import UserError
from tests.distill.parts import config, rows


def read(folder: Path, found: list, exam: ExamQuestions | None = None) -> Journal:
    journal = Journal(folder / "journal.sqlite", "s")
    read_questions(journal, found, exam or ExamQuestions([], 0.7), config(folder), lambda questions: None)
    return journal


def test_each_row_that_is_not_asked_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "BATCH", 3)  # what repeats lies in other batches
    found = rows(8)
    words = "the teacher asks every child in the class to draw a large house with two small windows and a red door"
    texts = [words, found[1].question.upper() + " ?", words.replace("red", "blue"), "what is the known one in this set"]
    found += [replace(found[0], id=f"q/train/{8 + i}", question=text) for i, text in enumerate(texts)]
    exam = ExamQuestions([("exam/3", texts[3])], 0.7)
    with closing(read(tmp_path, found, exam)) as journal:
        assert journal.left_out() == {"in a test set": 1, "near another": 1, "repeated": 1}
        told = journal._sql.execute("SELECT row, left_out, because_of FROM questions WHERE left_out IS NOT NULL")
        assert list(told) == [(9, "repeated", "1"), (10, "near another", "8"), (11, "in a test set", "exam/3")]
        assert journal.counts().asked == 9
        assert [row for call in journal.calls(4) for row in call] == [*range(9)]


def test_questions_are_read_once(tmp_path: Path) -> None:
    with closing(read(tmp_path, rows(3))) as journal:
        read_questions(journal, rows(9), ExamQuestions([], 0.7), config(tmp_path), lambda questions: None)
        assert journal.num_rows() == 3


def test_a_reading_that_broke_off_begins_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "BATCH", 2)

    def fails(questions: Sequence[Question]) -> None:
        if any(question.row == 5 for question in questions):
            raise UserError("row 5 is bad")

    journal = Journal(tmp_path / "journal.sqlite", "s")
    with closing(journal), pytest.raises(UserError, match="row 5 is bad"):
        read_questions(journal, rows(9), ExamQuestions([], 0.7), config(tmp_path), fails)
    with closing(read(tmp_path, rows(7))) as journal:
        assert journal.num_rows() == 7


def test_nothing_to_ask_is_an_error(tmp_path: Path) -> None:
    exam = ExamQuestions([(row.id, row.question) for row in rows(2)], 0.7)
    with pytest.raises(UserError, match=r"of the 2 rows of data.source='reasoning_gym' all are left out \(2 in a test"):
        read(tmp_path, rows(2), exam)
    (tmp_path / "journal.sqlite").unlink()
    with pytest.raises(UserError, match="there is nothing to ask"):
        read(tmp_path, [])


def test_named_test_sets_are_read(tmp_path: Path) -> None:
    (tmp_path / "own.jsonl").write_text('{"problem": "How many legs have seven cats?"}\n')
    words = [f"cleaning.tests=[gsm8k, {tmp_path}/own.jsonl]", "cleaning.tests_column=problem"]
    exam = exam_questions(config(tmp_path, *words))
    assert len(exam) == 1319 + 1
    with pytest.raises(UserError, match=r"cleaning.tests='gsm8'.*not a data source"):
        exam_questions(config(tmp_path, "cleaning.tests=[gsm8]"))
    with pytest.raises(UserError, match="no such column"):
        exam_questions(config(tmp_path, f"cleaning.tests=[{tmp_path}/own.jsonl]"))
