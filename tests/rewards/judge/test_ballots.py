"""Votes, orders and ties, against values worked out by hand."""

from __future__ import annotations

import pytest

from rewards.judge.ballots import Ballot, Question, both_orders, pairings, tally


def asked(text: str, seed: int = 0) -> Question:
    return Question(text=text, seed=seed)


def pair(one: int, other: int, vote: int = 0) -> Ballot:
    questions = (asked(f"{one} then {other}", vote), asked(f"{other} then {one}", vote))
    return Ballot(sides=(one, other), questions=questions)


@pytest.mark.parametrize(
    ("num", "opponents", "expected"),
    [
        (1, "circle", [(0, None)]),
        (1, "all", [(0, None)]),
        (2, "circle", [(0, 1)]),
        (3, "circle", [(0, 1), (1, 2), (2, 0)]),
        (4, "circle", [(0, 1), (1, 2), (2, 3), (3, 0)]),
        (4, "all", [(0, 1), (0, 2), (0, 3), (1, 2), (1, 3), (2, 3)]),
        (3, "reference", [(0, None), (1, None), (2, None)]),
    ],
)
def test_who_meets_whom(num: int, opponents: str, expected: list[tuple[int, int | None]]) -> None:
    assert pairings(num, opponents) == expected  # pyright: ignore


@pytest.mark.parametrize(
    ("forward", "backward", "won"),
    [
        (1.0, 0.0, 1.0),  # first place wins when it is ours, loses when it is the other's
        (0.0, 1.0, 0.0),
        (1.0, 1.0, 0.5),  # whoever stands first wins: the place, not the answer
        (0.0, 0.0, 0.5),
        (0.5, 0.5, 0.5),
        (1.0, 0.5, 0.5),  # better in one order and a tie in the other
        (0.5, 1.0, 0.5),
    ],
)
def test_a_side_wins_only_in_both_orders(forward: float, backward: float, won: float) -> None:
    assert both_orders(forward, backward) == won


def test_win_rates_of_a_circle() -> None:
    """0 beats 1, 1 and 2 tie because the place wins, 2 beats 0: 0 has 1/2, 1 has 1/4, 2 has 3/4."""
    ballots = [pair(0, 1), pair(1, 2), pair(2, 0)]
    answers = {
        "0 then 1": 1.0,
        "1 then 0": 0.0,
        "1 then 2": 1.0,
        "2 then 1": 1.0,
        "2 then 0": 1.0,
        "0 then 2": 0.0,
    }
    found = tally(3, ballots, {asked(text): value for text, value in answers.items()})
    assert [standing.value for standing in found] == [0.5, 0.25, 0.75]
    assert [standing.ties for standing in found] == [0, 0.5, 0.5]
    assert [standing.disagree for standing in found] == [0, 0.5, 0.5]


def test_votes_are_averaged() -> None:
    """Three votes: a win, a tie and a defeat of 0, then two wins of it."""
    ballots = [pair(0, 1, vote) for vote in range(5)]
    readings = {}
    for vote, (forward, backward) in enumerate([(1.0, 0.0), (0.5, 0.5), (0.0, 1.0), (1.0, 0.0), (1.0, 0.0)]):
        readings |= {asked("0 then 1", vote): forward, asked("1 then 0", vote): backward}
    one, other = tally(2, ballots, readings)
    assert (one.value, other.value) == (pytest.approx(0.7), pytest.approx(0.3))


def test_a_ballot_without_one_of_its_answers_does_not_count() -> None:
    """Half of the ballots is enough for a value; less than that is no verdict, and no number takes its place."""
    ballots = [pair(0, 1, 0), pair(0, 1, 1), pair(0, 2, 0)]
    readings = {asked("0 then 1", 0): 1.0, asked("1 then 0", 0): 0.0, asked("0 then 1", 1): 1.0}
    zero, one, two = tally(3, ballots, readings)
    assert (zero.value, one.value, two.value) == (None, 0.0, None)
    readings[asked("1 then 0", 1)] = 0.0
    assert [standing.value for standing in tally(3, ballots, readings)] == [1.0, 0.0, None]


def test_equal_answers_tie_whatever_the_judge_says_and_nobody_calls_it_partial() -> None:
    same = asked("x against x")
    [one, other] = tally(2, [Ballot(sides=(0, 1), questions=(same, same))], {same: 1.0})
    assert (one.value, other.value, one.disagree) == (0.5, 0.5, 0.0)


def test_one_answer_counts_as_it_is() -> None:
    ballots = [Ballot(sides=(0,), questions=(asked("x", vote),)) for vote in range(3)]
    [standing] = tally(1, ballots, {asked("x", 0): 1.0, asked("x", 1): 0.25})
    assert standing.value == pytest.approx(0.625)
