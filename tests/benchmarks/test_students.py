"""The benchmark of students cuts, reads and adds up what it says."""

from __future__ import annotations

import json
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from benchmarks import students

ROWS = [({"question": str(i), "answer": str(i), "response": "r" * i}, 10 * i) for i in (1, 2, 3, 4)]


@pytest.mark.parametrize(("tokens", "kept"), [(100, 4), (99, 3), (60, 3), (59, 2), (10, 1), (9, 0)])
def test_rows_are_cut_before_the_one_that_is_too_much(tokens: int, kept: int) -> None:
    assert students.cut_to(ROWS, tokens) == [row for row, _ in ROWS[:kept]]


def test_answers_come_from_the_journal_in_the_order_of_the_questions(tmp_path: Path) -> None:
    from rlkit.distill import journal

    file = tmp_path / "journal.sqlite"
    journal.Journal(file, "").close()
    with closing(sqlite3.connect(file)) as made, made:
        for row, finish, correct in ((2, "stop", 0), (1, "stop", 1), (0, "length", 1)):
            asked = (row, f"q{row}", f"{row} + 1", str(row + 1))
            made.execute("INSERT INTO questions VALUES (?, ?, ?, ?, '{}', NULL, NULL)", asked)
            made.execute("INSERT INTO answers VALUES (?, 0, 7, ?, 5, ?, 1.0, 'correct', '{}')", (row, finish, correct))
            made.execute("INSERT INTO texts VALUES (?, 0, ?, '[]')", (row, f"text {row}"))
    assert students.answered(file) == [
        ({"question": "1 + 1", "answer": "2", "response": "text 1"}, True, 5),
        ({"question": "2 + 1", "answer": "3", "response": "text 2"}, False, 5),
    ]


def test_accuracies_are_those_of_the_evaluations(tmp_path: Path) -> None:
    assert students.accuracies(tmp_path) == {}
    lines = [
        {"stage": "eval", "step": 0, "name": "before SFT", "accuracy": 0.25},
        {"stage": "sft", "step": 1, "loss": 1.0},
        {"stage": "eval", "step": 1, "name": "after SFT", "accuracy": 0.5},
    ]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert students.accuracies(tmp_path) == {"before SFT": 0.25, "after SFT": 0.5}


def test_questions_to_learn_from_are_not_held_out(tmp_path: Path) -> None:
    sizes = students.Sizes(questions=50, held_out=10, base_steps=1, epochs=1, batch_size=8, further_steps=1, prompts=2,
                           lr="1", grpo_steps=1, place=())  # fmt: skip
    read = [
        [json.loads(line)["question"] for line in file.read_text().splitlines()]
        for file in students.write_questions(tmp_path, sizes)
    ]
    assert [len(questions) for questions in read] == [50, 10] and not set(read[0]) & set(read[1])


def test_the_table_has_the_means_and_the_differences(capsys: pytest.CaptureFixture[str]) -> None:
    rows = {"0": {"verified": 0.8, "unfiltered": 0.5}, "1": {"verified": 0.6, "unfiltered": 0.5}}
    students.print_table(rows, "verified", "unfiltered")
    printed = capsys.readouterr().out
    assert "| seed | verified | unfiltered | verified - unfiltered |" in printed
    assert "| 0 | 80.0% | 50.0% | +30.0 points |" in printed
    assert "| mean | 70.0% | 50.0% | +20.0 points |" in printed
