"""Who is compared with whom, and what the votes come to. Pure functions.

A *ballot* is one vote on one completion, or on a pair of them. A pair is asked about in both orders, because judges
prefer a place: a side wins a ballot only if both orders say so, and everything else is a tie.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Literal, get_args

Opponents = Literal["circle", "all", "reference"]
OPPONENTS: tuple[Opponents, ...] = get_args(Opponents)
TIE = 0.5


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """One thing that the judge is asked; equal ones are asked once."""

    text: str
    seed: int
    """That of its vote: every vote draws an answer of its own."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Ballot:
    """One vote.

    Example: `Ballot(sides=(0, 3), questions=(first_0_then_3, first_3_then_0))`
    """

    sides: tuple[int, ...]
    """The samples that it counts for: one, or two that are compared. A reference answer is no sample."""
    questions: tuple[Question, ...]
    """One, or the same pair in both orders."""

    def value(self, readings: Mapping[Question, float]) -> float | None:
        """Returns what the vote gives its first side; None if an answer to any of its questions is missing."""
        found = [readings[question] for question in self.questions if question in readings]
        if len(found) < len(self.questions):
            return None
        return found[0] if len(found) == 1 else both_orders(*found)


@dataclass(frozen=True, slots=True, kw_only=True)
class Standing:
    """What a completion's ballots come to; `value` is None if fewer than half of them were answered."""

    value: float | None
    ties: float
    """Share of its answered ballots that gave a half."""
    disagree: float
    """Share of its answered ballots whose two orders named different sides."""
    questions: tuple[Question, ...]
    """All that was asked about it."""


def pairings(num: int, opponents: Opponents) -> list[tuple[int, int | None]]:
    """Returns which completions are compared, each pair once; None stands for the reference answer.

    "circle" compares each with its two neighbours, "all" every two. One that is alone meets the reference.
    """
    if opponents == "reference" or num == 1:
        return [(place, None) for place in range(num)]
    if opponents == "all" or num == 2:
        return [*combinations(range(num), 2)]
    return [(place, (place + 1) % num) for place in range(num)]


def both_orders(forward: float, backward: float) -> float:
    """Returns what a side has won, asked about in first place and in second: w = forward if it is 1 - backward, else
    1/2.

    Both readings count for whoever stands first: 1 a win, 0 a defeat, 1/2 a tie.
    """
    return forward if forward == 1 - backward else TIE


def tally(num: int, ballots: Sequence[Ballot], readings: Mapping[Question, float]) -> list[Standing]:
    """Counts the ballots of every completion: v_i = mean of w over its answered ballots; the other side gets 1 - w."""
    mine: list[list[Ballot]] = [[] for _ in range(num)]
    for ballot in ballots:
        for side in ballot.sides:
            mine[side].append(ballot)
    return [_standing(side, own, readings) for side, own in enumerate(mine)]


def _standing(side: int, own: Sequence[Ballot], readings: Mapping[Question, float]) -> Standing:
    answered = [(ballot, value) for ballot in own if (value := ballot.value(readings)) is not None]
    won = [value if ballot.sides[0] == side else 1 - value for ballot, value in answered]
    enough = bool(answered) and 2 * len(answered) >= len(own)
    disagree = sum(_opposite(ballot, readings) for ballot, _ in answered)
    return Standing(
        value=sum(won) / len(won) if enough else None,
        ties=won.count(TIE) / max(1, len(won)),
        disagree=disagree / max(1, len(won)),
        questions=tuple(question for ballot in own for question in ballot.questions),
    )


def _opposite(ballot: Ballot, readings: Mapping[Question, float]) -> bool:
    """Says whether the place won: the same answer, not a tie, in both orders."""
    found = [readings[question] for question in set(ballot.questions)]  # two equal answers have no order
    return len(found) == 2 and found[0] == found[1] != TIE
