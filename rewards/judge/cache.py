"""Answers that need not be asked for again: a file that maps everything which decides an answer to the answer.

A run that goes on from a checkpoint samples the same rollouts again; with this file it also gets the same verdicts,
from a judge that would say something else the second time. Only answers with a verdict are kept.
"""

from __future__ import annotations

import hashlib
import json
import sqlite3
from collections.abc import Iterable, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rewards.base import RewardError
from rewards.judge.ballots import Question

if TYPE_CHECKING:
    from collections.abc import Iterator

WAIT_S = 60.0
"""Seconds to wait while another process writes."""


class Cache:
    """A table in an SQLite file; several processes may read and write it."""

    def __init__(self, path: str, settings: Mapping[str, Any]) -> None:
        """Opens the file when it is first needed; `settings` are what decides every answer besides its question."""
        self._path, self._settings = Path(path).expanduser(), dict(settings)
        self._opened: sqlite3.Connection | None = None

    def find(self, questions: Iterable[Question]) -> dict[Question, str]:
        """Returns the answers that are known; raises RewardError for a file that cannot be read."""
        found = {}
        with self._table() as table:
            for question in questions:
                row = table.execute("SELECT answer FROM answers WHERE key = ?", (self.key(question),)).fetchone()
                if row is not None:
                    found[question] = str(row[0])
        return found

    def keep(self, answers: Mapping[Question, str]) -> None:
        """Adds answers; the first one to a question stays. Raises RewardError if they cannot be written."""
        with self._table() as table:
            rows = [(self.key(question), answer) for question, answer in answers.items()]
            table.executemany("INSERT OR IGNORE INTO answers VALUES (?, ?)", rows)

    def key(self, question: Question) -> str:
        """Returns the SHA-256 of endpoint, model, settings, text and seed."""
        whole = {**self._settings, "text": question.text, "seed": question.seed}
        return hashlib.sha256(json.dumps(whole, sort_keys=True).encode()).hexdigest()

    def close(self) -> None:
        """Closes the file."""
        if self._opened is not None:
            self._opened.close()
            self._opened = None

    @contextmanager
    def _table(self) -> Iterator[sqlite3.Connection]:
        try:
            if self._opened is None:
                self._path.parent.mkdir(parents=True, exist_ok=True)
                # Verdicts are asked for from threads that come and go, one at a time.
                self._opened = sqlite3.connect(self._path, timeout=WAIT_S, check_same_thread=False)
                with self._opened:
                    self._opened.execute("CREATE TABLE IF NOT EXISTS answers (key TEXT PRIMARY KEY, answer TEXT)")
            with self._opened:
                yield self._opened
        except (OSError, sqlite3.Error) as error:
            raise RewardError(
                f"judge: cache={str(self._path)!r} cannot be used ({error}); name another file, or remove it"
            ) from error
