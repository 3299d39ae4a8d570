"""Verdicts: what a reason and a score mean, and when a group teaches nothing."""

from __future__ import annotations

import pytest

from rlkit.rollout.judging import is_flat
from rlkit.types import Prompt, Score, ScoredGroup


@pytest.mark.parametrize(
    ("value", "reason", "kind"),
    [(1.0, "correct", "correct"), (0.0, "wrong: 7 : 8", "wrong"), (0.0, "", ""), (None, "", "no_verdict"),
     (None, "infra", "infra"), (0.0, ": x", ""), (0.5, "x" * 99, "x" * 40)],
)  # fmt: skip
def test_the_kind_of_a_reason(value: float | None, reason: str, kind: str) -> None:
    assert Score(value=value, reason=reason).kind == kind


@pytest.mark.parametrize(
    ("score", "correct"),
    [
        (Score(value=1.0, reason=""), True),
        (Score(value=0.9, reason=""), False),
        (Score(value=None, reason="correct"), False),
        (Score(value=0.4, reason="correct"), True),  # a right answer that is long
        (Score(value=1.5, reason="wrong: got 8", parts={"number": 0.0, "format": 1.0}), False),
        (Score(value=1.5, reason="", parts={"mine": 0.0, "format": 1.5}), False),
        (Score(value=0.3, reason="", parts={"mine": 1.0, "length": -0.7}), True),
        (Score(value=1.0, reason="no_answer", parts={"mine": 0.0}), False),
    ],
)
def test_correct_is_what_solves_the_problem_whatever_else_is_rewarded(score: Score, correct: bool) -> None:
    assert score.correct == correct


def test_flat_means_equal_among_the_verdicts() -> None:
    def group(*values: float | None) -> ScoredGroup:
        scores = tuple(Score(value=value, reason="") for value in values)
        return ScoredGroup(prompt=Prompt(id="p", tokens=(1,), text="p", meta={}), rollouts=(), scores=scores)

    assert is_flat(group(1.0, 1.0, None))
    assert is_flat(group(None, None))
    assert is_flat(group(0.5))
    assert not is_flat(group(0.0, 1.0, None))
