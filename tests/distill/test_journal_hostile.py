"""A journal under attack: cut at any byte, opened twice, filled with odd texts, and with what is no answer."""

from __future__ import annotations

import json
import shutil
import sqlite3
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from rlkit.distill.decontamination import ExamQuestions
from rlkit.distill.journal import Answered, Counts, Journal, Question
from rlkit.distill.questions import read_questions
from rlkit.errors import UserError
from rlkit.types import Score
from tests.distill.parts import config, journal_of, rows

FILE, LOG = "journal.sqlite", "journal.sqlite-wal"


def answered(row: int, sample: int, **changes: Any) -> Answered:
    one = Answered(row=row, sample=sample, seed=3, text="text", tokens=(1, 2), num_tokens=2, finish="stop")
    return replace(one, **changes)


def questions_of(number: int) -> list[Question]:
    return [Question(row=i, id=f"q/{i}", question=f"q {i}", answer="", meta={}) for i in range(number)]


def test_a_log_cut_at_any_byte_of_its_last_write_has_all_of_that_write_or_none(tmp_path: Path) -> None:
    """As after a kill, or a machine without power: one transaction of two answers is the end of the log."""
    folder = tmp_path / "whole"
    folder.mkdir()
    with closing(Journal(folder / FILE, "s")) as journal:
        journal.add(questions_of(2))
        journal.record(answered(0, 0, text="before"))
        before = (folder / LOG).stat().st_size
        with journal.whole():
            journal.record(answered(1, 0, text="a"))
            journal.record(answered(1, 1, text="b"))
        log, base = (folder / LOG).read_bytes(), (folder / FILE).read_bytes()
    assert len(log) > before
    seen = set()
    ends = {before, before + 1, before + 23, before + 24, before + 25, len(log) - 1, len(log)}
    for end in sorted(ends | set(range(before, len(log), 499))):
        torn = tmp_path / "torn"
        torn.mkdir()
        (torn / FILE).write_bytes(base)
        (torn / LOG).write_bytes(log[:end])
        with closing(Journal(torn / FILE, "s")) as journal:
            assert journal.text(0, 0) == "before"
            kept = [len(found) for row, found in journal.answers() if row == 1]
            assert kept in ([], [2]), end
            seen.add(len(kept))
            journal.record(answered(1, 0, text="again"))  # it can be written on
            assert journal.text(1, 0) == ("a" if kept else "again")
        shutil.rmtree(torn)
    assert seen == {0, 1}


def test_bytes_that_changed_in_the_log_are_not_read(tmp_path: Path) -> None:
    """A frame whose checksum does not fit ends the log, as one that was half written does."""
    with closing(Journal(tmp_path / FILE, "s")) as journal:
        journal.add(questions_of(1))
        before = (tmp_path / LOG).stat().st_size
        journal.record(answered(0, 0))
        log, base = bytearray((tmp_path / LOG).read_bytes()), (tmp_path / FILE).read_bytes()
    log[before + 2000] ^= 0xFF
    (tmp_path / FILE).write_bytes(base)
    (tmp_path / LOG).write_bytes(log)
    with closing(Journal(tmp_path / FILE, "s")) as journal:
        assert (journal.num_rows(), journal.counts().answers) == (1, 0)


@pytest.mark.parametrize("make", ["no folder", "a folder"])
def test_a_place_that_cannot_hold_a_file_is_refused(make: str, tmp_path: Path) -> None:
    file = tmp_path / "none" / FILE
    if make == "a folder":
        file.mkdir(parents=True)
    with pytest.raises(UserError, match=r"journal\.sqlite cannot be read \(unable to open.*set another output_dir"):
        Journal(file, "s")


def test_a_database_of_somebody_else_is_refused_and_stays_as_it_is(tmp_path: Path) -> None:
    with closing(sqlite3.connect(tmp_path / FILE)) as other:
        other.execute("CREATE TABLE job (mine TEXT)")
        other.commit()
    with pytest.raises(UserError, match="table job already exists"):
        Journal(tmp_path / FILE, "s")
    with closing(sqlite3.connect(tmp_path / FILE)) as other:
        assert other.execute("SELECT name FROM sqlite_master").fetchall() == [("job",)]


def test_two_journals_on_one_file_write_every_answer_once(tmp_path: Path) -> None:
    """The lock of the folder keeps jobs apart; without it, as on some network folders, nothing is doubled."""
    cfg = config(tmp_path)
    with closing(journal_of(cfg)) as first, closing(journal_of(cfg)) as second:
        first.record(answered(0, 0, text="first"))
        second.record(answered(0, 0, text="second"))
        second.record(answered(0, 1, text="second"))
        assert [first.text(0, 0), second.text(0, 0), first.text(0, 1)] == ["first", "first", "second"]
        second.judge(0, [Score(value=1.0, reason="correct")] * 2)
        first.judge(0, [Score(value=0.0, reason="wrong")] * 2)
        assert [first.told(0, sample).value for sample in (0, 1)] == [1.0, 1.0]
    with closing(journal_of(cfg)) as journal:
        assert journal.counts() == Counts(asked=10, answers=2, tokens=4, judged=2, correct=2)


def test_while_one_writes_another_reads_what_was_there_before(tmp_path: Path) -> None:
    cfg = config(tmp_path)
    with closing(journal_of(cfg)) as first, closing(journal_of(cfg)) as second:
        second._sql.execute("PRAGMA busy_timeout = 1")
        with first.whole():
            first.record(answered(0, 0))
            assert second.counts().answers == 0 and list(second.answers()) == []
            with pytest.raises(sqlite3.OperationalError, match="locked"):
                second.record(answered(1, 0))
        assert [row for row, _ in second.answers()] == [0]


ODD = [
    "two\nlines\r\nand more\u2028",
    "a \x00 in the middle",
    "\x00",
    "'; DROP TABLE answers; --",
    "\ufeff\u202e mirrored",
    "\U0001f600 \u0301",
    "?1 :name @p $x",
    " ",
]


@pytest.mark.parametrize("text", ODD)
def test_odd_texts_come_back_as_they_are(text: str, tmp_path: Path) -> None:
    meta = {"question": text, "list": [text, None, {"a": 1.5}], text: True}
    row = replace(rows(1)[0], question=f"why {text}", answer=text, meta=meta)
    cfg = config(tmp_path)
    with closing(journal_of(cfg, [row])) as journal:
        journal.record(answered(0, 0, text=text))
        journal.judge(0, [Score(value=0.25, reason=text, parts={text: 0.5})])
    with closing(journal_of(cfg)) as journal:
        question, told = journal.question(0), journal.told(0, 0)
        assert (question.question, question.answer, question.meta) == (f"why {text}", text, meta)
        assert (told.answered.text, told.reason, told.parts) == (text, text, {text: 0.5})
        assert journal.rollouts(0)[0].text == text


@pytest.mark.parametrize("changes", [{"num_tokens": None}, {"seed": None}, {"finish": None}])
def test_an_answer_with_a_hole_is_an_error_and_not_passed_over(changes: dict[str, Any], tmp_path: Path) -> None:
    """Else its question would seem to be answered, and the verdicts of its other answers would be one place off."""
    with closing(journal_of(config(tmp_path))) as journal:
        with pytest.raises(sqlite3.IntegrityError, match="NOT NULL"):
            journal.record(answered(0, 0, **changes))
        assert journal.counts().answers == 0 and journal.with_missing([0], 1)[0].missing == (0,)


def test_tokens_and_seeds_keep_all_their_bits(tmp_path: Path) -> None:
    with closing(journal_of(config(tmp_path))) as journal:
        journal.record(answered(0, 0, tokens=(0, 2**31 - 1, 2**32 - 1), seed=2**63 - 1))
        journal.record(answered(0, 1, tokens=()))
        assert [(one.tokens, one.seed) for one in journal.rollouts(0)] == [
            ((0, 2**31 - 1, 2**32 - 1), 2**63 - 1),
            ((), 3),
        ]


def test_a_refused_answer_counts_as_wrong_whatever_a_reward_says(tmp_path: Path) -> None:
    with closing(journal_of(config(tmp_path))) as journal:
        journal.counts()
        journal.record(answered(0, 0, finish="refused"))
        journal.judge(0, [Score(value=1.0, reason="correct")])
        assert (journal.counts().judged, journal.counts().correct) == (1, 0)
        told = journal.told(0, 0)
        assert (told.value, told.reason, told.parts) == (0.0, "refused", {})
        assert journal.rollouts(0)[0].finish_reason == "length", "rewards know two ends"


def test_reasons_without_a_verdict_are_counted_by_their_kind(tmp_path: Path) -> None:
    """A judge ends every answer in words of its own; a card with a line for each would be as long as the data."""
    reasons = ["infra: HTTP 500", "infra: HTTP 502", "no_verdict: ends with 'a'", "no_verdict: ends with 'b'", "", "x"]
    with closing(journal_of(config(tmp_path))) as journal:
        for row, reason in enumerate(reasons):
            journal.record(answered(row, 0))
            journal.judge(row, [Score(value=None, reason=reason)])
        assert journal.no_verdicts() == {"infra": 2, "no_verdict": 3, "x": 1}
        journal.judge(0, [Score(value=None, reason="deadline")])
        assert journal.no_verdicts()["deadline"] == 1, "the later reason stands, as long as there is no verdict"


def test_rows_with_equal_ids_and_equal_words_are_rows_of_their_own(tmp_path: Path) -> None:
    """A place in the data is the key, an id is for people; of equal questions the first is asked."""
    found = [replace(row, id="same") for row in rows(4)]
    found += [replace(found[1], question=found[1].question.upper())]
    with closing(journal_of(config(tmp_path), found)) as journal:
        assert [journal.question(row).id for row in range(5)] == ["same"] * 5
        assert (journal.counts().asked, journal.left_out()) == (4, {"repeated": 1})
        journal.record(answered(3, 0))
        assert [question.row for question in journal.unanswered(1)] == [0, 1, 2]


def test_pages_of_any_size_pass_over_what_is_left_out(tmp_path: Path) -> None:
    with closing(Journal(tmp_path / FILE, "s")) as journal:
        journal.add(questions_of(23))
        journal.leave_out((row, "why", "x") for row in range(0, 23, 3))
        asked = [row for row in range(23) if row % 3]
        for size in (1, 2, 5, 15, 100):
            calls = list(journal.calls(size))
            assert [row for call in calls for row in call] == asked
            assert {len(call) for call in calls[:-1]} <= {size}
        found = journal.with_missing(asked, 1)
        assert [question.row for question in found] == asked, "a row between two that are asked is none of them"
        journal.leave_out([(0, "other", "y")])
        assert journal.left_out() == {"why": 8}, "the first reason stays"


def test_notes_are_replaced_and_settings_stay(tmp_path: Path) -> None:
    with closing(Journal(tmp_path / FILE, "s")) as journal:
        assert journal.note("written") is None
        journal.write_note("written", "1")
        journal.write_note("written", "2\n\x00")
    with closing(Journal(tmp_path / FILE, "s")) as journal:
        assert (journal.note("written"), journal.note("settings")) == ("2\n\x00", "s")
    for other in ("", "S", "s "):
        with pytest.raises(UserError, match="other settings or other files; set another output_dir"):
            Journal(tmp_path / FILE, other)


def test_questions_are_dropped_as_a_whole(tmp_path: Path) -> None:
    with closing(Journal(tmp_path / FILE, "s")) as journal:
        journal.add(questions_of(3))
        with pytest.raises(sqlite3.IntegrityError):
            journal.add([*questions_of(5)[3:], questions_of(1)[0]])
        assert journal.num_rows() == 3, "a batch with a row that is there leaves nothing"
        journal.forget_questions()
        assert (journal.num_rows(), journal.counts().asked, list(journal.calls(2))) == (0, 0, [])


def test_a_whole_batch_may_be_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As where a file holds the same rows twice: then nothing of a batch is checked or asked."""
    monkeypatch.setattr("rlkit.distill.questions.BATCH", 4)
    checked: list[int] = []
    with closing(Journal(tmp_path / FILE, "s")) as journal:
        exam = ExamQuestions([], 0.7)
        read_questions(journal, rows(4) * 2, exam, config(tmp_path), lambda asked: checked.append(len(asked)))
        assert checked == [4, 0] and journal.left_out() == {"repeated": 4}
        because = journal._sql.execute("SELECT row, because_of FROM questions WHERE left_out = 'repeated'").fetchall()
        assert because == [(4, "0"), (5, "1"), (6, "2"), (7, "3")]
        assert json.loads(json.dumps(journal.question(7).meta)) == rows(4)[3].meta
