"""Estimates and tests beside numbers worked out by hand, by counting all cases, and published ones."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from itertools import combinations, product
from statistics import fmean

import pytest

from rlkit.evaluation.estimates import (
    Vote,
    difference,
    estimate,
    holm,
    majority,
    paired_p,
    pass_at_k,
    whole_differences,
)
from rlkit.watch.evaluations import wilson


def test_pass_at_k_of_a_case_by_hand() -> None:
    """Of 4 samples 1 is right; of the 6 pairs 3 hold it, of the 4 triples 3."""
    assert pass_at_k(4, 1, 1) == pytest.approx(1 / 4)
    assert pass_at_k(4, 1, 2) == pytest.approx(1 / 2)
    assert pass_at_k(4, 1, 3) == pytest.approx(3 / 4)
    assert pass_at_k(4, 1, 4) == 1
    assert pass_at_k(10, 3, 5) == pytest.approx(1 - 21 / 252)  # C(7, 5) / C(10, 5)
    assert (pass_at_k(5, 0, 5), pass_at_k(5, 5, 1)) == (0, 1)


@pytest.mark.parametrize(("n", "c"), [(n, c) for n in (1, 2, 5, 7) for c in range(n + 1)])
def test_pass_at_k_is_the_share_of_subsets_with_a_right_sample(n: int, c: int) -> None:
    samples = [True] * c + [False] * (n - c)
    for k in range(1, n + 1):
        subsets = list(combinations(samples, k))
        assert pass_at_k(n, c, k) == pytest.approx(sum(map(any, subsets)) / len(subsets), abs=1e-12)


def test_pass_at_k_does_not_overflow_and_refuses_more_than_there_are() -> None:
    assert pass_at_k(10_000, 1, 100) == pytest.approx(0.01)
    with pytest.raises(AssertionError, match="pass@5 needs at least 5 samples, there are 4"):
        pass_at_k(4, 1, 5)


def votes(*answers: str | None, gold: str = "7") -> list[Vote]:
    return [Vote(answer=answer, correct=answer == gold) for answer in answers]


@pytest.mark.parametrize(
    ("answers", "worth"),
    [
        (["7", "7", "3"], 1),
        (["7", "3", "3"], 0),
        (["7", "3"], 1 / 2),  # one of the two by lot
        (["7", "3", "4"], 1 / 3),
        (["7", "7", "3", "3", "4"], 1 / 2),
        (["3", "4"], 0),
        ([None, None, "7"], 1),  # who says nothing does not vote
        ([None, None, None], 0),
        (["7", None, "3.0", "3"], 0),  # 3.0 and 3 are one answer, by `same`
    ],
)
def test_a_majority_of_a_case_by_hand(answers: Sequence[str | None], worth: float) -> None:
    assert majority(votes(*answers), lambda a, b: float(a) == float(b)) == pytest.approx(worth)


def test_right_answers_are_one_answer_however_they_are_written() -> None:
    ballot = [Vote(answer=text, correct=True) for text in ("1/2", "0.5", None)] + votes("3", "3")
    assert majority(ballot, lambda a, b: a == b) == 1


def test_with_one_sample_for_each_problem_the_interval_is_wilsons() -> None:
    for right, n in ((0, 8), (3, 8), (8, 8), (55, 100)):
        found = estimate([1.0] * right + [0.0] * (n - right))
        assert (found.low, found.high) == pytest.approx(wilson(right / n, n))
        assert found.error == pytest.approx(math.sqrt(right / n * (1 - right / n) / n))


def test_samples_of_one_problem_are_not_independent() -> None:
    """Four equal samples tell what one tells; four of different outcome tell up to four times as much."""
    values = [1.0, 0.0, 1.0, 0.0, 0.0]
    assert estimate(values, 4) == estimate(values)
    apart = estimate([0.5, 0.5, 0.25, 0.75], 4)
    assert apart.error == pytest.approx(math.sqrt(2 * 0.25**2) / 4)  # by hand: sqrt(sum (v - mean)^2) / N
    trials = 0.25 / apart.error**2
    assert trials == pytest.approx(32)
    assert (apart.low, apart.high) == pytest.approx(wilson(0.5, 16)), "no more than all samples"
    middle = estimate([0.25, 1.0, 0.75, 0.0], 4)
    assert 4 < 0.25 / middle.error**2 < 16
    assert (middle.low, middle.high) == pytest.approx(wilson(0.5, 0.25 / middle.error**2))


def test_intervals_cover_what_is_true() -> None:
    """Problems of different difficulty, 4 samples each: about 95 % of the intervals hold the mean over all problems."""
    draw, held = random.Random(0), 0
    for _ in range(400):
        chances = [draw.betavariate(0.6, 0.4) for _ in range(50)]
        values = [fmean(draw.random() < chance for _ in range(4)) for chance in chances]
        found = estimate(values, 4)
        held += found.low <= 0.6 <= found.high
    assert 0.92 <= held / 400 <= 0.98


def test_the_interval_of_a_difference_is_bonetts_and_prices() -> None:
    """One sample each: 5 won, 2 lost of 20, by their formula: p12 = (b + 1) / (n + 2), p21 = (c + 1) / (n + 2)."""
    first = [0.0] * 5 + [1.0] * 2 + [1.0] * 6 + [0.0] * 7
    second = [1.0] * 5 + [0.0] * 2 + [1.0] * 6 + [0.0] * 7
    found = difference(first, second)
    won, lost = 6 / 22, 3 / 22
    reach = 1.959964 * math.sqrt((won + lost - (won - lost) ** 2) / 22)
    assert found.value == pytest.approx(3 / 20)
    assert (found.low, found.high) == pytest.approx((won - lost - reach, won - lost + reach), abs=1e-6)
    assert found.error == pytest.approx(math.sqrt((7 - 9 / 20) / 400))
    same = difference([1.0] * 5, [1.0] * 5)
    assert same.low < 0 < same.high, "five problems that agree are no proof"


def by_counting(differences: Sequence[int]) -> float:
    seen = abs(sum(differences))
    sums = [
        abs(sum(s * d for s, d in zip(signs, differences, strict=True)))
        for signs in product((1, -1), repeat=len(differences))
    ]
    return sum(one >= seen for one in sums) / len(sums)


@pytest.mark.parametrize(
    "differences", [[], [0, 0], [1], [1, 1, 1], [2, -1, 3, 0, -4], [5, 5, 5, -1, 2, 2, -3], [4] * 9]
)
def test_the_paired_test_counts_all_signs(differences: Sequence[int]) -> None:
    assert paired_p(differences) == pytest.approx(by_counting(differences), abs=1e-12)


@pytest.mark.parametrize(("won", "lost"), [(0, 0), (1, 0), (5, 1), (10, 2), (40, 60), (300, 200)])
def test_with_one_sample_it_is_mcnemars_exact_test(won: int, lost: int) -> None:
    """Two-sided binomial test of the problems on which the two differ, at 1/2."""
    n = won + lost
    tail = sum(math.comb(n, i) for i in range(min(won, lost) + 1)) / 2**n
    assert paired_p([1] * won + [-1] * lost + [0] * 7) == pytest.approx(min(1.0, 2 * tail), rel=1e-9)


def test_differences_come_in_a_common_unit() -> None:
    first = [[True, False], [False, False]]
    second = [[True, True, False], [True, False, False]]
    assert whole_differences(first, second) == [4 - 3, 2]


def test_holms_correction_of_a_case_by_hand() -> None:
    """The smallest of four times 4, the next times 3, never below the one before."""
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.5, 0.9]) == pytest.approx([1.0, 1.0])
    assert holm([0.03]) == [0.03]
    assert holm([]) == []
