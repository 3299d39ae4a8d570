"""Preferences out of a journal: the best answer of a question beside its worst, by hand."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from rlkit.data.preferences import to_preferences
from rlkit.data.rows import read_rows
from rlkit.data.tokenizer import train_tokenizer
from rlkit.distill.journal import Answered, Journal
from rlkit.distill.pairs import CLOSE, EMPTY, FEW, SAME, pairs
from rlkit.distill.writing import write_preferences
from rlkit.types import Score
from tests.config.variants import but, default
from tests.distill.parts import config, journal_of, rows

JUDGED = {
    0: [(0.25, "stop"), (1.0, "stop"), (-0.5, "stop"), (1.0, "stop")],  # the first of two equals
    1: [(0.5, "stop"), (0.5, "stop")],  # nothing to prefer
    2: [(1.0, "length"), (0.75, "stop"), (0.25, "stop"), (None, "stop")],  # cut off, and no verdict
    3: [(1.0, "length"), (0.0, "length")],
    4: [(0.0, "stop"), (0.4, "stop")],
}


def filled(folder: Path) -> Journal:
    """A journal of questions 0 to 9, of which five are answered."""
    journal = journal_of(config(folder))
    for row, answers in JUDGED.items():
        for sample, (_, finish) in enumerate(answers):
            text = f"answer {row}.{sample}"
            journal.record(
                Answered(row=row, sample=sample, seed=sample, text=text, tokens=(1,), num_tokens=1, finish=finish)
            )
        journal.judge(row, [Score(value=value, reason="") for value, _ in answers])
    return journal


@pytest.mark.parametrize(
    ("margin", "expected"),
    [
        (0.4, [(0, 1, 2), (2, 1, 2), (4, 1, 0)]),
        (0.5, [(0, 1, 2), (2, 1, 2)]),
        (1.5, [(0, 1, 2)]),
        (1.6, []),
    ],
)
def test_the_best_and_the_worst_that_are_far_enough_apart(
    margin: float, expected: list[tuple[int, int, int]], tmp_path: Path
) -> None:
    with closing(filled(tmp_path)) as journal:
        found = list(pairs(journal, margin))
        wanted = [(f"answer {row}.{best}", f"answer {row}.{worst}") for row, best, worst in expected]
        assert [(pair["chosen"], pair["rejected"]) for pair in found] == wanted
        assert all(pair["chosen_reward"] - pair["rejected_reward"] >= margin for pair in found)
        assert [pair["question"] for pair in found] == [journal.question(row).question for row, _, _ in expected]


def test_a_reward_model_reads_what_is_written(tmp_path: Path) -> None:
    folder = tmp_path / "preferences"
    with closing(filled(tmp_path)) as journal:
        assert write_preferences(journal, 0.4, folder)["preferences"] == 3
        first = (folder / "train-00000-of-00001.parquet").read_bytes()
        assert write_preferences(journal, 0.4, folder)["preferences"] == 3
    assert (folder / "train-00000-of-00001.parquet").read_bytes() == first
    cfg = default("reward_model")
    data = but(
        cfg.data, {"source": str(folder), "answer_column": "", "solution_column": "", "train_size": -1, "eval_size": 1}
    )
    split = read_rows(data, repeats=True)
    tokenizer = train_tokenizer([row.question for row in split.train], 300)
    wide = but(cfg.reward_model, {"max_length": 1000})
    [pair, _] = to_preferences(split.train, tokenizer, "", wide, made=False)
    assert "answer" in tokenizer.decode(pair.chosen) and pair.chosen != pair.rejected
    assert pq.read_table(folder).num_rows == 3


@pytest.mark.parametrize(
    ("told", "expected", "left_out"),
    [
        ([("good", 1.0), ("fine", 0.5), ("", 0.0)], ("good", "fine"), {EMPTY: 1}),
        ([(" \n", 1.0), ("fine", 0.5), ("bad", 0.0)], ("fine", "bad"), {EMPTY: 1}),
        ([("good", 1.0), ("", 0.0)], None, {EMPTY: 1, FEW: 1}),
        ([("good", 1.0), ("fine", 0.5), ("good", 0.0)], ("good", "fine"), {}),  # the next worst: both are as far
        ([("good", 1.0), ("fine", 0.9), ("good", 0.0)], ("fine", "good"), {}),  # the next best
        ([("good", 1.0), ("fine", 0.2), ("good", 0.0), ("fine", 0.1)], ("good", "fine"), {}),  # the worst of the others
        ([("good", 1.0), ("good", 0.5), ("good", 0.0)], None, {SAME: 1}),
        ([("good", 1.0), ("fine", 0.9)], None, {CLOSE: 1}),
        ([("good", 1.0), ("fine", 0.6), ("good", 0.2)], None, {CLOSE: 1}),  # 0.8 apart, but one text
    ],
)
def test_only_two_texts_that_say_something_are_a_pair(
    told: list[tuple[str, float]], expected: tuple[str, str] | None, left_out: dict[str, int], tmp_path: Path
) -> None:
    """A reward model refuses an empty completion, and one beside itself, which a judge that draws may tell apart."""
    with closing(journal_of(config(tmp_path), rows(1))) as journal:
        for sample, (text, _) in enumerate(told):
            journal.record(Answered(row=0, sample=sample, seed=0, text=text, tokens=(1,), num_tokens=1, finish="stop"))
        journal.judge(0, [Score(value=value, reason="") for _, value in told])
        counted = write_preferences(journal, 0.5, tmp_path / "preferences")
    [pair, *rest] = pq.read_table(tmp_path / "preferences").to_pylist() or [None]
    assert (pair and (pair["chosen"], pair["rejected"])) == expected and not rest
    assert counted == {"preferences": int(expected is not None)} | left_out
