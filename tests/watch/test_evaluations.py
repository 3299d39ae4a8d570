"""Evaluations come back from disk, and their intervals are Wilson's."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlkit.watch.evaluations import (
    Evaluation,
    SampleText,
    by_question,
    milestones,
    paired,
    read_evaluations,
    wilson,
    write_evaluation,
)


def sample(question: str, correct: bool, completion: str = "7") -> SampleText:
    return SampleText(question=question, answer="7", completion=completion, correct=correct, reason="correct" * correct)


def evaluation(name: str, samples: Sequence[SampleText] = (), accuracy: float = 0.5) -> Evaluation:
    return Evaluation(
        name=name, step=3, accuracy=accuracy, problems=128, mean_length=31.25, truncated=1 / 3, samples=tuple(samples)
    )


def test_an_evaluation_comes_back_exactly(tmp_path: Path) -> None:
    one = evaluation("before SFT", [sample("3 + 4\n= \u00e9 \x1b <b>", True), sample("", False, completion="\ud83d")])
    write_evaluation(tmp_path, one)
    assert read_evaluations(tmp_path) == [one]


def test_evaluations_keep_the_order_in_which_they_came(tmp_path: Path) -> None:
    names = ["before SFT", "after SFT", *(f"GRPO step {n}" for n in range(10)), "after GRPO"]
    for name in names:
        write_evaluation(tmp_path, evaluation(name))
    assert [one.name for one in read_evaluations(tmp_path)] == names


def test_the_thousandth_evaluation_comes_after_those_before_it(tmp_path: Path) -> None:
    for place, name in ((999, "GRPO step 999"), (1000, "after GRPO")):
        write_evaluation(tmp_path, evaluation(name))
        (written,) = (tmp_path / "evaluations").glob(f"*-{name.lower().replace(' ', '-')}.json")
        written.rename(written.with_name(f"{place}-{written.name.partition('-')[2]}"))
    assert [one.name for one in read_evaluations(tmp_path)] == ["GRPO step 999", "after GRPO"]


def test_an_evaluation_that_runs_again_replaces_the_first(tmp_path: Path) -> None:
    for name, accuracy in (("before SFT", 0.1), ("after SFT", 0.4), ("before SFT", 0.2)):
        write_evaluation(tmp_path, evaluation(name, accuracy=accuracy))
    assert [(one.name, one.accuracy) for one in read_evaluations(tmp_path)] == [("before SFT", 0.2), ("after SFT", 0.4)]


def test_names_that_look_alike_in_a_path_do_not_collide(tmp_path: Path) -> None:
    for name in ("a b", "a-b", "../a b", "\u00e9"):
        write_evaluation(tmp_path, evaluation(name))
    assert [one.name for one in read_evaluations(tmp_path)] == ["a b", "a-b", "../a b", "\u00e9"]
    assert all(path.parent == tmp_path / "evaluations" for path in tmp_path.rglob("*.json"))


def test_a_run_without_evaluations_has_none(tmp_path: Path) -> None:
    assert read_evaluations(tmp_path) == []


@pytest.mark.parametrize(
    ("right", "n", "low", "high"),
    [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611), (1, 29, 0.0061, 0.1718)],
)
def test_the_interval_is_the_published_one(right: int, n: int, low: float, high: float) -> None:
    """Newcombe (1998), Statistics in Medicine 17, 857-872, table I, method 3."""
    assert wilson(right / n, n) == (pytest.approx(low, abs=5e-5), pytest.approx(high, abs=5e-5))


@given(st.integers(1, 5000), st.floats(0, 1))
def test_the_interval_holds_the_shares_that_a_score_test_accepts(n: int, part: float) -> None:
    """Its ends p solve |share - p| = z sqrt(p (1 - p) / n), the definition it is derived from."""
    share = round(part * n) / n
    low, high = wilson(share, n)
    assert 0 <= low <= share + 1e-12
    assert share - 1e-12 <= high <= 1
    for end in (low, high):
        assert abs(share - end) == pytest.approx(1.959963985 * math.sqrt(end * (1 - end) / n), abs=1e-7)


def test_pairs_are_counted_by_question() -> None:
    before = evaluation(
        "before", [sample("a", False), sample("b", True), sample("c", True), sample("only before", True)]
    )
    after = evaluation("after", [sample("only after", True), sample("c", False), sample("b", True), sample("a", True)])
    assert paired(before, after) == {(False, True): 1, (True, True): 1, (True, False): 1, (False, False): 0}


def test_the_same_words_with_another_answer_are_another_question() -> None:
    first, second = sample("3 + 4 =", True), replace(sample("3 + 4 =", False), answer="8")
    assert list(by_question(evaluation("a", [first, second])).values()) == [first, second]


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        ([], []),
        (["a", "b", "c"], ["a", "b", "c"]),
        (
            ["before SFT", "SFT 1", "after SFT", "GRPO 1", "GRPO 2", "after GRPO"],
            ["before SFT", "after SFT", "after GRPO"],
        ),
        (["1", "2", "3", "4", "5"], ["1", "4", "5"]),
        (["before A", "after A", "after B", "after C"], ["before A", "after B", "after C"]),
        (["before A", "1", "2", "3"], ["before A", "2", "3"]),
    ],
)
def test_milestones_are_the_ends_of_stages(names: list[str], expected: list[str]) -> None:
    assert [one.name for one in milestones([evaluation(name) for name in names])] == expected
