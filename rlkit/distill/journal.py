"""The journal of a job: every question, every answer and every verdict, each written once, in one SQLite file.

An answer is keyed by its question's row and its number; the file belongs to one set of settings and is not opened with
others. What a transaction wrote is there after a kill at any moment, and what it had not finished is not: SQLite's
write-ahead log takes or drops it as a whole. Texts stand in a table of their own, so that what is asked for a million
rows at a time (which answers are there, which are right) reads some 50 bytes a row.

What is not covered: two machines at one file, and network folders without locks.
"""

from __future__ import annotations

import json
import sqlite3
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import Path
from typing import Any, cast

import numpy as np

from rlkit.distill.selection import Answer
from rlkit.errors import UserError
from rlkit.types import FinishReason, Rollout, Score

VERSION = 1
PAGE = 1024
"""Rows that are read at a time."""
TABLES = """
CREATE TABLE job (name TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE questions (row INTEGER PRIMARY KEY, id TEXT NOT NULL, question TEXT NOT NULL, answer TEXT NOT NULL,
                        meta TEXT NOT NULL, left_out TEXT, because_of TEXT);
CREATE INDEX asked ON questions (left_out);
CREATE TABLE answers (row INTEGER, sample INTEGER, seed INTEGER NOT NULL, finish TEXT NOT NULL,
                      num_tokens INTEGER NOT NULL, correct INTEGER, value REAL, reason TEXT, parts TEXT,
                      PRIMARY KEY (row, sample)) WITHOUT ROWID;
CREATE INDEX unjudged ON answers (row) WHERE correct IS NULL;
CREATE TABLE texts (row INTEGER, sample INTEGER, text TEXT NOT NULL, tokens BLOB NOT NULL, PRIMARY KEY (row, sample));
"""
"""`left_out` says why a question is not asked, `because_of` names the row or test question that it repeats."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """A row of the data; `missing` are the numbers of the answers that are not there yet."""

    row: int
    id: str
    question: str
    answer: str
    meta: Mapping[str, Any]
    missing: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Answered:
    """An answer as it came from the teacher."""

    row: int
    sample: int
    seed: int
    text: str
    tokens: tuple[int, ...]
    """Token ids as they were sampled; () from a server."""
    num_tokens: int
    finish: str
    """"stop", "length", or `selection.REFUSED`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Told:
    """An answer with its verdict, as the dataset shows it."""

    answered: Answered
    value: float
    reason: str
    parts: Mapping[str, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class Counts:
    """How far a job is."""

    asked: int
    """Questions that are not left out."""
    answers: int
    tokens: int
    judged: int
    correct: int


class Journal:
    """One open journal, for one thread."""

    def __init__(self, file: Path, settings: str) -> None:
        """Opens or makes it; `settings` fingerprints all that decides which answers there are and how they are judged.

        Raises UserError for the journal of a job with other settings, or of another version, and for no journal.
        """
        unreadable = "{} cannot be read ({}); set another output_dir, or remove that file"
        try:
            self._sql = sqlite3.connect(file, isolation_level=None)
        except sqlite3.Error as error:
            raise UserError(unreadable.format(file, error)) from error
        self._inside = False
        self._counts: Counts | None = None
        """Kept up to date by what is written; None where it has to be counted."""
        try:
            self._sql.execute("PRAGMA journal_mode = WAL")
            self._sql.execute("PRAGMA synchronous = NORMAL")
            (version,) = self._one("PRAGMA user_version")
            if version not in (0, VERSION):
                raise UserError(f"{file} was written by another version of rlkit; set another output_dir")
            if version == 0:
                self._sql.executescript(f"BEGIN; {TABLES} PRAGMA user_version = {VERSION}; COMMIT;")
            if self.note("settings") is None:
                self.write_note("settings", settings)
        except sqlite3.DatabaseError as error:
            self._sql.close()
            raise UserError(unreadable.format(file, error)) from error
        except UserError:
            self._sql.close()
            raise
        if self.note("settings") != settings:
            self._sql.close()
            raise UserError(f"{file} belongs to a job with other settings or other files; set another output_dir")

    def close(self) -> None:
        """Closes the file; all that was written is in it."""
        self._sql.close()

    @contextmanager
    def whole(self) -> Iterator[None]:
        """Makes all that is written in the block one transaction: there as a whole, or after an error not at all."""
        if self._inside:
            yield
            return
        self._sql.execute("BEGIN IMMEDIATE")
        self._inside = True
        try:
            yield
        except BaseException:
            self._sql.execute("ROLLBACK")
            self._counts = None
            raise
        else:
            self._sql.execute("COMMIT")
        finally:
            self._inside = False

    def note(self, name: str) -> str | None:
        """Returns what is noted of the job under a name; None for nothing."""
        found = self._sql.execute("SELECT value FROM job WHERE name = ?", (name,)).fetchone()
        return found[0] if found else None

    def write_note(self, name: str, value: str) -> None:
        """Notes something of the job, in place of what was there."""
        self._sql.execute("INSERT OR REPLACE INTO job VALUES (?, ?)", (name, value))

    # The questions: read once, whole or not at all.

    def forget_questions(self) -> None:
        """Drops what a reading of the data has left that did not come to its end."""
        with self.whole():
            self._sql.execute("DELETE FROM questions")
        self._counts = None

    def add(self, questions: Iterable[Question]) -> None:
        """Writes questions under their rows, which rise."""
        written = ((q.row, q.id, q.question, q.answer, json.dumps(q.meta)) for q in questions)
        with self.whole():
            self._sql.executemany("INSERT INTO questions VALUES (?, ?, ?, ?, ?, NULL, NULL)", written)
        self._counts = None

    def leave_out(self, rows: Iterable[tuple[int, str, str]]) -> None:
        """Marks rows as not to be asked: (row, why, the id of what they repeat)."""
        with self.whole():
            self._sql.executemany(
                "UPDATE questions SET left_out = ?2, because_of = ?3 WHERE row = ?1 AND left_out IS NULL", rows
            )
        self._counts = None

    def left_out(self) -> dict[str, int]:
        """Counts the questions that are not asked, by why."""
        query = (
            "SELECT left_out, count(*) FROM questions WHERE left_out IS NOT NULL GROUP BY left_out ORDER BY left_out"
        )
        return dict(self._sql.execute(query).fetchall())

    def num_rows(self) -> int:
        """Counts all rows of the data."""
        return self._one("SELECT count(*) FROM questions")[0]

    def question(self, row: int) -> Question:
        """Returns one question."""
        return self._questions("row = ?", (row,))[0]

    def unanswered(self, samples: int) -> Iterator[Question]:
        """Yields, in order, every question that lacks one of its `samples` answers."""
        for page in self.calls(PAGE):
            yield from self.with_missing(page, samples)

    def calls(self, size: int) -> Iterator[list[int]]:
        """Yields the rows of all questions that are asked, so many at a time, always the same ones together."""
        last = -1
        query = "SELECT row FROM questions WHERE left_out IS NULL AND row > ? ORDER BY row LIMIT ?"
        while rows := [row for (row,) in self._sql.execute(query, (last, size))]:
            yield rows
            last = rows[-1]

    def with_missing(self, rows: Sequence[int], samples: int) -> list[Question]:
        """Returns those of the questions, whose rows rise, that lack an answer."""
        query = "SELECT row, count(*) FROM answers WHERE row BETWEEN ? AND ? GROUP BY row HAVING count(*) >= ?"
        full = {row for row, _ in self._sql.execute(query, (rows[0], rows[-1], samples))}
        if not (lacking := [row for row in rows if row not in full]):
            return []
        query = "SELECT row, sample FROM answers WHERE row BETWEEN ? AND ?"
        there = set(self._sql.execute(query, (lacking[0], lacking[-1])))
        wanted = set(lacking)
        found = self._questions("row BETWEEN ? AND ? AND left_out IS NULL", (lacking[0], lacking[-1]))
        return [
            Question(
                row=q.row,
                id=q.id,
                question=q.question,
                answer=q.answer,
                meta=q.meta,
                missing=tuple(sample for sample in range(samples) if (q.row, sample) not in there),
            )
            for q in found
            if q.row in wanted
        ]

    # The answers: each written once, whoever asks twice.

    def record(self, answered: Answered) -> None:
        """Writes an answer; one that is there already stays as it is."""
        a = answered
        refused = (0, 0.0, a.finish, "{}") if a.finish == "refused" else (None, None, None, None)
        with self.whole():
            key = (a.row, a.sample)
            new = self._sql.execute(
                "INSERT INTO answers VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT DO NOTHING",
                (*key, a.seed, a.finish, a.num_tokens, *refused),
            )
            if new.rowcount:
                tokens = np.asarray(a.tokens, "<u4").tobytes()
                self._sql.execute("INSERT INTO texts VALUES (?, ?, ?, ?)", (*key, whole_characters(a.text), tokens))
                self._count(answers=1, tokens=a.num_tokens, judged=int(refused[0] is not None))

    def has_answers(self) -> bool:
        """Says whether the teacher has answered anything and not only refused."""
        return self._one("SELECT EXISTS (SELECT 1 FROM answers WHERE finish != 'refused')")[0] == 1

    def rollouts(self, row: int) -> list[Rollout]:
        """Returns all answers to a question in order, as a reward takes them; log-probs are not kept."""
        found = self._sql.execute(
            "SELECT text, tokens, finish, seed FROM answers JOIN texts USING (row, sample) "
            "WHERE row = ? ORDER BY sample",
            (row,),
        )
        return [
            Rollout(
                tokens=_tokens(tokens),
                logprobs=(),
                text=text,
                finish_reason=cast(FinishReason, "stop" if finish == "stop" else "length"),
                weight_version=0,
                seed=seed,
            )
            for text, tokens, finish, seed in found
        ]

    def unjudged(self, samples: int) -> Iterator[Question]:
        """Yields the questions of which all answers are there, and one at least has no verdict."""
        last = -1
        query = "SELECT DISTINCT row FROM answers WHERE correct IS NULL AND row > ? ORDER BY row LIMIT ?"
        while rows := [row for (row,) in self._sql.execute(query, (last, PAGE))]:
            for row in rows:
                if self._one("SELECT count(*) FROM answers WHERE row = ?", (row,))[0] >= samples:
                    yield self.question(row)
            last = rows[-1]

    def judge(self, row: int, scores: Sequence[Score]) -> None:
        """Writes the verdicts of all answers to a question; one that is there already stays as it is."""
        query = """UPDATE answers SET correct = ?, value = ?, reason = ?, parts = ?
                   WHERE row = ? AND sample = ? AND correct IS NULL"""
        with self.whole():
            for sample, score in enumerate(scores):
                correct = None if score.value is None else int(score.correct)
                reason = whole_characters(score.reason)
                verdict = (correct, score.value, reason, json.dumps(dict(score.parts)))
                if self._sql.execute(query, (*verdict, row, sample)).rowcount and correct is not None:
                    self._count(judged=1, correct=correct)

    # What the end of a job reads.

    def counts(self) -> Counts:
        """Counts what is there; at no cost after the first time."""
        if self._counts is None:
            self._counts = _counted(self._sql)
        return self._counts

    def _count(self, answers: int = 0, tokens: int = 0, judged: int = 0, correct: int = 0) -> None:
        if (c := self._counts) is not None:
            self._counts = replace(
                c,
                answers=c.answers + answers,
                tokens=c.tokens + tokens,
                judged=c.judged + judged,
                correct=c.correct + correct,
            )

    def no_verdicts(self) -> dict[str, int]:
        """Counts the answers without a verdict by the kind of the reward's reason (`Score.kind`), in its order."""
        query = "SELECT coalesce(reason, ''), count(*) FROM answers WHERE correct IS NULL GROUP BY reason"
        counts = Counter[str]()
        for reason, count in self._sql.execute(query):  # details differ from answer to answer
            counts[Score(value=None, reason=reason).kind] += count
        return dict(sorted(counts.items()))

    def answers(self) -> Iterator[tuple[int, list[Answer]]]:
        """Yields every row that has answers, in order, with what a selection must know of them."""
        found = self._sql.execute("SELECT row, sample, num_tokens, finish, correct FROM answers ORDER BY row, sample")
        for row, entries in groupby(found, key=lambda entry: entry[0]):
            yield (
                row,
                [
                    Answer(sample=s, num_tokens=n, finish=finish, correct=None if c is None else bool(c))
                    for _, s, n, finish, c in entries
                ],
            )

    def text(self, row: int, sample: int) -> str:
        """Returns the text of one answer."""
        return self._one("SELECT text FROM texts WHERE row = ? AND sample = ?", (row, sample))[0]

    def told(self, row: int, sample: int) -> Told:
        """Returns all that is known of one answer, which has a verdict."""
        seed, finish, num_tokens, value, reason, parts, text, tokens = self._one(
            "SELECT seed, finish, num_tokens, value, reason, parts, text, tokens "
            "FROM answers JOIN texts USING (row, sample) WHERE row = ? AND sample = ?",
            (row, sample),
        )
        answered = Answered(
            row=row,
            sample=sample,
            seed=seed,
            text=text,
            tokens=_tokens(tokens),
            num_tokens=num_tokens,
            finish=finish,
        )
        return Told(answered=answered, value=value, reason=reason, parts=json.loads(parts))

    def _questions(self, where: str, values: Sequence[int]) -> list[Question]:
        query = f"SELECT row, id, question, answer, meta FROM questions WHERE {where} ORDER BY row"
        return [
            Question(row=row, id=id, question=question, answer=answer, meta=json.loads(meta))
            for row, id, question, answer, meta in self._sql.execute(query, values)
        ]

    def _one(self, query: str, values: Sequence[int] = ()) -> Any:
        return self._sql.execute(query, values).fetchone()


def read_counts(file: Path) -> Counts:
    """Counts what is in a journal, whichever job it belongs to."""
    with closing(sqlite3.connect(file)) as sql:
        return _counted(sql)


def _counted(sql: sqlite3.Connection) -> Counts:
    query = "SELECT count(*), coalesce(sum(num_tokens), 0), count(correct), coalesce(sum(correct), 0) FROM answers"
    answers, tokens, judged, correct = sql.execute(query).fetchone()
    (asked,) = sql.execute("SELECT count(*) FROM questions WHERE left_out IS NULL").fetchone()
    return Counts(asked=asked, answers=answers, tokens=tokens, judged=judged, correct=correct)


def whole_characters(text: str) -> str:
    """Returns a text that every file takes: halves of characters, which JSON can bring along, become question marks."""
    return text.encode(errors="replace").decode()


def _tokens(blob: bytes) -> tuple[int, ...]:
    return tuple(np.frombuffer(blob, "<u4").tolist())
