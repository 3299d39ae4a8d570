"""What a model can do, from what it did: estimates with intervals, and tests between two models. Pure functions.

Problems are the units that were drawn, and the samples of one problem belong together: how far they would vary anew is
told by how much problems differ, not by how many samples there are (Miller 2024, "Adding Error Bars to Evals",
arXiv:2411.00640).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from statistics import NormalDist, fmean

import numpy as np

from rlkit.watch.evaluations import wilson

LEVEL = 0.95
"""Of every interval."""
FINEST = 5040
"""Parts of 1 in which differences are counted at most."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """A mean over problems with its interval.

    Example: `Estimate(value=0.5, low=0.1, high=0.9, error=0.25)`
    """

    value: float
    low: float
    high: float
    error: float
    """The standard error."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Vote:
    """What one sample says: its answer, None if it gives none, and whether it is right."""

    answer: str | None
    correct: bool


def pass_at_k(num_samples: int, num_correct: int, k: int) -> float:
    """Estimates the chance that at least one of `k` samples is right, without bias, from `num_samples` >= k.

    pass@k = 1 - C(n - c, k) / C(n, k)    (Chen et al. 2021, arXiv:2107.03374, equation 1)
    """
    assert 1 <= k <= num_samples, f"pass@{k} needs at least {k} samples, there are {num_samples}"
    return 1 - math.comb(num_samples - num_correct, k) / math.comb(num_samples, k)


def majority(votes: Sequence[Vote], same: Callable[[str, str], bool]) -> float:
    """Returns what the most frequent answer is worth: 1 if it is right, 0 if it is wrong.

    All right answers are one answer; wrong ones are one where `same` says so of the later and the first of them. A
    sample without an answer does not vote, and without any vote the problem is not solved. Where several answers are
    the most frequent ones, it is the share of them that is right: what choosing one of them by lot gives on average.
    """
    right, firsts, counts = 0, list[str](), list[int]()
    for vote in votes:
        if vote.correct:
            right += 1
        elif (answer := vote.answer) is not None:
            place = next((place for place, first in enumerate(firsts) if same(first, answer)), None)
            if place is None:
                firsts.append(answer)
                counts.append(1)
            else:
                counts[place] += 1
    most = max([right, *counts])
    return 1 / (1 + counts.count(most)) if right == most > 0 else 0.0


def estimate(values: Sequence[float], draws: float = 1.0) -> Estimate:
    """Estimates the mean of one value in [0, 1] for each problem, each made of `draws` independent samples.

    SE = sqrt(sum (v_i - v)^2) / N, clustered by problem (Miller 2024, section 2.2); the interval is Wilson's (1927) at
    the effective number of trials N' = v (1 - v) / SE^2, between N and N x draws, as for shares in surveys that draw
    clusters (Korn and Graubard 1998). It stays inside [0, 1], also where all problems are solved; with one sample for
    each problem N' = N, and it is Wilson's own.
    """
    n, mean = len(values), fmean(values)
    error = math.sqrt(sum((value - mean) ** 2 for value in values)) / n
    trials = mean * (1 - mean) / error**2 if error > 0 else float(n)
    low, high = wilson(mean, min(max(trials, n), n * max(draws, 1.0)), LEVEL)
    return Estimate(value=mean, low=low, high=high, error=error)


def difference(first: Sequence[float], second: Sequence[float]) -> Estimate:
    """Estimates mean(second) - mean(first) over the same problems, values in [0, 1].

    SE = sqrt(sum (d_i - d)^2) / N over the differences d_i of each problem (Miller 2024, section 4.2). The interval is
    that of Bonett and Price (2012) for paired shares: normal, with two problems added, one won and one lost, so that a
    few problems that all agree do not look like certainty. Of 0s and 1s it is theirs exactly.
    """
    differences = [b - a for a, b in zip(first, second, strict=True)]
    n, mean = len(differences), fmean(differences)
    error = math.sqrt(sum((d - mean) ** 2 for d in differences)) / n
    added = [*differences, 1.0, -1.0]
    centre = fmean(added)
    reach = NormalDist().inv_cdf(0.5 + LEVEL / 2) * math.sqrt(sum((d - centre) ** 2 for d in added)) / len(added)
    return Estimate(value=mean, low=max(-1.0, centre - reach), high=min(1.0, centre + reach), error=error)


def paired_p(differences: Sequence[int]) -> float:
    """Returns the two-sided p-value of the exact paired permutation test on whole differences, one for each problem.

    p = P(|sum s_i d_i| >= |sum d_i|), every sign s_i = +-1 with probability 1/2: under "no difference" each problem
    could as well have come out the other way round. With differences of -1, 0 and 1 it is McNemar's exact test.
    The distribution of the sum is built up problem by problem; nothing is drawn at random.
    """
    sizes = [abs(d) for d in differences if d]
    total, seen = sum(sizes), abs(sum(differences))
    chance = np.zeros(2 * total + 1)
    chance[total] = 1.0
    reached = 0
    for size in sizes:
        inner = chance[total - reached : total + reached + 1] / 2
        reached += size
        chance[total - reached : total + reached + 1] = 0.0
        chance[total - reached : total + reached - 2 * size + 1] += inner
        chance[total - reached + 2 * size : total + reached + 1] += inner
    sums = np.abs(np.arange(-total, total + 1))
    return min(1.0, float(chance[sums >= seen].sum()))


def whole_differences(first: Sequence[Sequence[bool]], second: Sequence[Sequence[bool]]) -> list[int]:
    """Returns, for each problem, the share of right samples of `second` less that of `first`, in a common unit.

    With n samples on one side and m on the other the unit is 1 / lcm(n, m), so that all differences are whole numbers.
    Where problems have many numbers of samples, that would be too fine to count in, and differences are rounded to
    1 / 5040: a test that turns signs around stays exact, as rounding treats d and -d alike.
    """
    unit = min(math.lcm(*(len(samples) for samples in (*first, *second))), FINEST)
    return [
        round(unit * (Fraction(sum(b), len(b)) - Fraction(sum(a), len(a)))) for a, b in zip(first, second, strict=True)
    ]


def holm(p_values: Sequence[float]) -> list[float]:
    """Adjusts p-values so that the chance of any false discovery among them is bounded, whichever is looked at.

    p'_(i) = max over j <= i of min(1, (m - j + 1) p_(j)), p_(1) <= ... <= p_(m)    (Holm 1979)
    """
    adjusted, largest = [0.0] * len(p_values), 0.0
    for rank, place in enumerate(sorted(range(len(p_values)), key=lambda place: p_values[place])):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[place]))
        adjusted[place] = largest
    return adjusted
