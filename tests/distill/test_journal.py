"""The journal keeps everything once, and after a kill either a whole transaction or nothing of it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest

from rlkit.distill.journal import Answered, Counts, Journal
from rlkit.distill.shards import row_of, write_shards
from rlkit.errors import UserError
from rlkit.types import Score
from tests.distill.parts import config, journal_of, rows


def answered(row: int, sample: int, text: str = "text", finish: str = "stop") -> Answered:
    return Answered(row=row, sample=sample, seed=7, text=text, tokens=(1, 70_000), num_tokens=2, finish=finish)


def test_an_answer_is_written_once(tmp_path: Path) -> None:
    with closing(journal_of(config(tmp_path))) as journal:
        journal.record(answered(2, 0, "first"))
        journal.record(answered(2, 0, "second"))
        assert journal.text(2, 0) == "first"
        assert journal.counts() == Counts(asked=10, answers=1, tokens=2, judged=0, correct=0)
        journal.record(answered(2, 1))
        journal.judge(2, [Score(value=1.0, reason="correct"), Score(value=None, reason="infra")])
        journal.judge(2, [Score(value=0.0, reason="wrong"), Score(value=1.0, reason="correct", parts={"a": 0.5})])
        assert journal.counts() == Counts(asked=10, answers=2, tokens=4, judged=2, correct=2)
        assert journal.told(2, 0).reason == "correct", "the first verdict stays"
        told = journal.told(2, 1)
        assert (told.value, told.parts, told.answered.tokens) == (1.0, {"a": 0.5}, (1, 70_000))


def test_half_a_character_ends_nothing(tmp_path: Path) -> None:
    """A server's JSON may hold "\\ud800", as may a column that nobody looks at and what a reward says."""
    row = rows(1)[0]
    broken = replace(row, meta={**row.meta, "note": "a\ud800"})
    with closing(journal_of(config(tmp_path), [broken])) as journal:
        journal.record(answered(0, 0, "so \udfff \u4f60 \x00"))
        journal.judge(0, [Score(value=1.0, reason="\ud800")])
        told = journal.told(0, 0)
        assert (told.answered.text, told.reason) == ("so ? \u4f60 \x00", "?")
        shown = row_of(journal.question(0), told, 1.0, teacher="t", prefix="", opened=False)
        assert json.loads(shown["source_row"])["note"] == "a?"
        write_shards(tmp_path, [shown], 1, 1)


def test_counts_are_those_of_a_fresh_look(tmp_path: Path) -> None:
    cfg = config(tmp_path)
    with closing(journal_of(cfg)) as journal:
        journal.counts()
        for row in range(3):
            for sample in range(3):
                journal.record(answered(row, sample, finish="refused" if sample == 2 else "stop"))
            scores = [
                Score(value=float(row != 1), reason=""),
                Score(value=None, reason=""),
                Score(value=1.0, reason=""),
            ]
            journal.judge(row, scores)
        kept = journal.counts()
        assert journal.told(0, 2).value == 0, "what the teacher refused is judged already"
    with closing(journal_of(cfg)) as journal:
        assert journal.counts() == kept == Counts(asked=10, answers=9, tokens=18, judged=6, correct=2)


def test_what_is_missing(tmp_path: Path) -> None:
    with closing(journal_of(config(tmp_path))) as journal:
        assert list(journal.calls(4)) == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]
        for sample in range(3):
            journal.record(answered(1, sample))
        journal.record(answered(3, 1))
        missing = {question.row: question.missing for question in journal.with_missing([0, 1, 2, 3], 3)}
        assert missing == {0: (0, 1, 2), 2: (0, 1, 2), 3: (0, 2)}
        assert [question.row for question in journal.unanswered(3)] == [0, *range(2, 10)]
        assert [question.row for question in journal.unjudged(3)] == [1], "row 3 has not all its answers"
        journal.judge(1, [Score(value=0.0, reason="")] * 3)
        assert list(journal.unjudged(3)) == []


def test_rows_keep_their_columns(tmp_path: Path) -> None:
    with closing(journal_of(config(tmp_path))) as journal:
        question = journal.question(4)
        assert (question.id, question.answer, question.meta) == ("q/train/4", "8", rows()[4].meta)


def test_a_failed_transaction_leaves_nothing(tmp_path: Path) -> None:
    with closing(journal_of(config(tmp_path))) as journal:
        with pytest.raises(ZeroDivisionError), journal.whole():
            journal.record(answered(0, 0))
            with journal.whole():  # one inside another is part of it
                journal.record(answered(0, 1))
            raise ZeroDivisionError
        assert journal.counts().answers == 0
        journal.record(answered(0, 0))
        assert journal.counts().answers == 1


KILLED = """
import os, signal, sys
from pathlib import Path
from tests.distill.parts import config, journal_of
from tests.distill.test_journal import answered
journal = journal_of(config(Path(sys.argv[1])))
journal.record(answered(0, 0, "kept"))
with journal.whole():
    for sample in range(3):
        journal.record(answered(1, sample, "x" * 10_000_000))  # more than SQLite keeps in memory
    os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.slow
def test_a_kill_takes_what_was_not_finished_and_nothing_else(tmp_path: Path) -> None:
    root = Path(__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", KILLED, str(tmp_path)], cwd=root, env={**os.environ}, check=False)
    assert done.returncode == -signal.SIGKILL
    with closing(journal_of(config(tmp_path))) as journal:
        assert journal.text(0, 0) == "kept"
        assert journal.counts().answers == 1


def test_other_settings_are_refused(tmp_path: Path) -> None:
    cfg = config(tmp_path)
    journal_of(cfg).close()
    with pytest.raises(UserError, match="belongs to a job with other settings"):
        Journal(tmp_path / "journal.sqlite", "t")
    journal_of(cfg).close()


def test_another_file_and_another_version_are_refused(tmp_path: Path) -> None:
    (tmp_path / "text").write_text("no database, but long enough to be looked at as one" * 100)
    with pytest.raises(UserError, match="cannot be read"):
        Journal(tmp_path / "text", "s")
    with closing(Journal(tmp_path / "new", "s")) as journal:
        journal._sql.execute("PRAGMA user_version = 99")
    with pytest.raises(UserError, match="another version of rlkit"):
        Journal(tmp_path / "new", "s")
