"""What is on the disk: nothing is lost by a kill, nothing is read that is not whole, and the settings are compared."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from rewards import load
from rlkit.config import RewardConfig
from rlkit.errors import UserError
from rlkit.evaluation import records
from rlkit.evaluation.records import (
    Completion,
    Journal,
    Record,
    Verdict,
    read_settings,
    reward_mark,
    versions,
)

ONE = Completion(
    row="own/0",
    sample=0,
    settings="mark",
    life=0,
    seed=7,
    prompt="1 + 1 =",
    completion="zwei \u2028 \ud800",
    tokens=(3, 4),
    finish_reason="stop",
)
GOOD = Verdict(row="own/0", sample=0, reward="r", value=1.0, correct=True, reason="correct", parts={}, seconds=0.1)
NUMBER = RewardConfig(fn="number", kwargs={}, workers=1, timeout=20)


def test_lines_come_back_as_they_were_written(tmp_path: Path) -> None:
    """A line separator of Unicode ends no line, and half a character is no reason to lose one."""
    path = tmp_path / "deep" / "own.jsonl"
    journal = Journal(path, Completion)
    assert journal.lines == [] and not path.parent.exists()
    journal.append([])
    assert not path.exists()
    others = [replace(ONE, sample=number) for number in (1, 2)]
    journal.append([ONE])
    journal.append(others)
    assert path.read_bytes().count(b"\n") == 3 and path.read_bytes().isascii()
    assert Journal(path, Completion).lines == [ONE, *others] == journal.lines


def test_every_write_is_on_the_disk_before_it_returns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[int] = []
    monkeypatch.setattr(records.os, "fsync", lambda descriptor: synced.append(os.fstat(descriptor).st_size))
    journal = Journal(tmp_path / "own.jsonl", Completion)
    journal.append([ONE, ONE])
    assert synced == [(tmp_path / "own.jsonl").stat().st_size]


@pytest.mark.parametrize("cut", [1, 20, -1], ids=["a letter", "a part", "all but the line's end"])
def test_a_torn_end_is_dropped_from_the_file_too(cut: int, tmp_path: Path) -> None:
    path = tmp_path / "own.jsonl"
    Journal(path, Completion).append([ONE])
    whole = path.read_bytes()
    path.write_bytes(whole + whole[:cut])
    journal = Journal(path, Completion)
    assert journal.lines == [ONE] and path.read_bytes() == whole
    journal.append([replace(ONE, sample=1)])
    assert [line.sample for line in Journal(path, Completion).lines] == [0, 1]


@pytest.mark.parametrize("line", ["{no json}", '{"row": "own/0"}', "[1]", "\0\0\0", '{"extra": 1}'])
def test_a_line_in_the_middle_that_cannot_be_read_is_named(line: str, tmp_path: Path) -> None:
    path = tmp_path / "own.jsonl"
    Journal(path, Completion).append([ONE])
    whole = path.read_text()
    path.write_text(f"{whole}{line}\n{whole}")
    with pytest.raises(UserError, match=r"own\.jsonl, line 2, cannot be read"):
        Journal(path, Completion)


def test_the_later_of_two_verdicts_counts_and_rewards_do_not_mix(tmp_path: Path) -> None:
    record = Record(tmp_path, "own")
    record.add_completions([ONE])
    infra = replace(GOOD, value=None, correct=False, reason="infra: no sandbox")
    record.add_verdicts([infra, replace(GOOD, reward="other", value=0.0, correct=False)])
    assert record.verdicts("r") == {("own/0", 0): infra} and infra.redone
    record.add_verdicts([GOOD])
    again = Record(tmp_path, "own", "mark")
    assert again.verdicts("r") == {("own/0", 0): GOOD}
    assert again.verdicts("other")["own/0", 0].value == 0 and again.verdicts("third") == {}
    assert again.completions == {("own/0", 0): ONE}
    with pytest.raises(UserError, match="other settings"):
        Record(tmp_path, "own", "another mark")


@pytest.mark.parametrize(
    ("value", "reason", "redone"),
    [
        (None, "infra", True),
        (None, "deadline", True),
        (None, "worker_lost: signal 9", True),
        (None, "gold_unparsable", False),  # judging it again would find the same
        (None, "no_tests", False),
        (None, "", False),
        (0.0, "timeout", False),
        (0.0, "infra", False),
    ],
)
def test_only_what_the_machine_failed_at_is_judged_again(value: float | None, reason: str, redone: bool) -> None:
    assert replace(GOOD, value=value, correct=False, reason=reason).redone == redone


def test_a_reward_is_another_one_with_other_settings_or_another_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mark = reward_mark(NUMBER)
    assert mark == reward_mark(replace(NUMBER, workers=4, timeout=5)), "these change no verdict"
    assert mark != reward_mark(replace(NUMBER, fn="math"))
    assert reward_mark(replace(NUMBER, fn="math", kwargs={"extraction": "last"})) != reward_mark(
        replace(NUMBER, fn="math")
    )
    file = tmp_path / "mine.py"
    file.write_text("def f(completion, answer): return 1.0\n")
    own = replace(NUMBER, fn=f"{file}:f")
    before = reward_mark(own)
    assert before == reward_mark(own)
    file.write_text("def f(completion, answer): return 0.0\n")
    assert reward_mark(own) != before
    monkeypatch.setattr(records, "versions", lambda: {"rlkit-posttrain": "9.9"})
    assert reward_mark(NUMBER) != mark, "another version may judge otherwise"


def test_a_reward_is_another_one_with_another_file_that_it_imports_or_reads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file, a module in the current folder, what both import from beside them, and a rubric named in the settings."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "gold_of_marks.py").write_text("GOOD = 1.0\n")
    code = "from gold_of_marks import GOOD\ndef f(completion, answer): return GOOD\n"
    for name in ("by_path_of_marks.py", "by_name_of_marks.py"):
        (tmp_path / name).write_text(code)
    rubric = tmp_path / "rubric.md"
    rubric.write_text("Is {reply} right?")
    judge = {"endpoint": "http://h/v1", "rubric": "rubric.md", "form": "score"}
    by_path, by_name = (replace(NUMBER, fn=fn) for fn in ("by_path_of_marks.py:f", "by_name_of_marks:f"))
    for cfg in (by_path, by_name):
        load(cfg.fn)
    for cfg, file in (
        (by_path, "gold_of_marks.py"),
        (by_name, "gold_of_marks.py"),
        (by_name, "by_name_of_marks.py"),
        (replace(NUMBER, fn="judge", kwargs=judge), "rubric.md"),
        (replace(NUMBER, fn="composite", kwargs={"rewards": [{"fn": "judge", "kwargs": judge}]}), "rubric.md"),
    ):
        before = reward_mark(cfg)
        (tmp_path / file).write_text((tmp_path / file).read_text() + "\n")
        assert reward_mark(cfg) != before, (cfg, file)
    (tmp_path / "another_of_marks.py").write_text(code)
    before = reward_mark(by_path)
    load("another_of_marks.py:f")
    assert reward_mark(by_path) == before, "the file of another suite's reward in the same folder is not its own"


def test_how_a_judge_is_asked_makes_no_other_reward(tmp_path: Path) -> None:
    cache = tmp_path / "judge.sqlite"
    cache.write_text("answers")
    plain = {"endpoint": "http://h/v1", "rubric": "{reply}", "form": "score"}
    asked = {**plain, "cache": str(cache), "concurrency": 2, "timeout": 5.0, "key_env": "KEY"}

    def mark(fn: str, kwargs: dict[str, Any]) -> str:
        return reward_mark(replace(NUMBER, fn=fn, kwargs=kwargs))

    def inside(kwargs: dict[str, Any]) -> str:
        return mark("composite", {"by": "task", "rewards": {"x": [["math", 1.0], {"fn": "judge", "kwargs": kwargs}]}})

    assert mark("judge", plain) == mark("judge", asked) and inside(plain) == inside(asked)
    before = mark("judge", asked)
    cache.write_text("more answers")
    assert mark("judge", asked) == before
    for change in ({"seed": 1}, {"endpoint": "http://g/v1"}, {"rubric": "{reply}?"}, {"votes": 3}, {"tries": 1}):
        assert mark("judge", asked | change) != before and inside(asked | change) != inside(asked)
    assert mark("code", {"timeout": 1.0}) != mark("code", {"timeout": 5.0}), "there a time limit decides"


def test_settings_that_cannot_be_read_are_not_overwritten(tmp_path: Path) -> None:
    assert read_settings(tmp_path) == {"suites": {}, "asked": {}, "lives": []}
    for text in ("{", "[]", '{"suites": {}}', "null"):
        (tmp_path / "settings.json").write_text(text)
        with pytest.raises(UserError, match=r"settings\.json cannot be read"):
            read_settings(tmp_path)
    (tmp_path / "settings.json").write_text(json.dumps({"suites": {"own": {"seed": 0}}, "lives": [{}]}))
    assert read_settings(tmp_path)["suites"] == {"own": {"seed": 0}}


def test_versions_are_those_of_what_is_installed() -> None:
    found = versions()
    assert {"python", "rlkit-posttrain", "torch", "transformers"} <= found.keys()
    assert all(value for value in found.values())
