"""The benchmarks of a dataset's job count what they say."""

from __future__ import annotations

import random
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from benchmarks import distill_cleaning, distill_kills, distill_speed
from rlkit.distill.journal import Journal


def test_replaced_words_are_words_of_letters() -> None:
    draw = random.Random(0)
    text = distill_cleaning.replaced("Ann has 3 red pens", 2, draw)
    before, after = ["Ann", "has", "3", "red", "pens"], text.split()
    assert sum(a != b for a, b in zip(before, after, strict=True)) == 2 and after[2] == "3"


def test_thirteen_words_in_a_row() -> None:
    words = ["w" + "x" * i for i in range(20)]
    found = distill_cleaning.thirteen([" ".join(words)])
    assert found(" ".join(["x", *words[3:16], "y"]))
    assert not found(" ".join(["x", *words[3:15], "y"]))


def test_planted_and_lost_are_told_apart() -> None:
    text = "the cat sat on the mat and looked at the moon all night long while the dog was asleep in the hall"
    assert distill_cleaning.near_found([text], [text.replace("cat", "hen")], 0.7) == (1, 0)
    assert distill_cleaning.near_found([text, text.replace("cat", "hen")], [], 0.7) == (0, 1)


def test_other_bytes_and_missing_files_are_differences(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name / "dataset").mkdir(parents=True)
        (tmp_path / name / "dataset" / "same").write_text("x")
        (tmp_path / name / "dataset" / "other").write_text(name)
    (tmp_path / "a" / "dataset" / "gone").write_text("x")
    assert distill_kills.differences(tmp_path / "a", tmp_path / "b") == ["gone", "other"]


def test_a_journal_of_fake_answers_is_whole_but_for_its_last_question(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / distill_kills.FILE
    with closing(Journal(file, "")) as journal:
        distill_speed._fill(journal, 4000)
    distill_speed.reopen(file)
    assert "3,996 answers, 3,996 right, missing [999], unjudged []" in capsys.readouterr().out
    assert distill_kills.answers(tmp_path) == 3996
    with closing(sqlite3.connect(file)) as raw:
        assert raw.execute("PRAGMA integrity_check").fetchone() == ("ok",)


def test_a_kill_says_whether_it_came_in_time(tmp_path: Path) -> None:
    (tmp_path / "run.lock").write_text("process 1 on here")
    assert not distill_kills._holds(tmp_path, 1), "no journal yet"
    (tmp_path / distill_kills.FILE).touch()
    assert distill_kills._holds(tmp_path, 1) and not distill_kills._holds(tmp_path, 12)
    assert distill_kills.Job(pid=0, code=3).poll() == 3
