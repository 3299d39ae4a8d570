"""How far stated probabilities can be trusted: a calibration curve, and one number for it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

BINS = 10


class Bin(NamedTuple):
    """The predictions whose confidence lies in one range."""

    confidence: float
    """Their mean confidence."""
    accuracy: float
    """The share that was right."""
    size: int
    """How many there are."""


def calibration_curve(
    confidences: Sequence[float], right: Sequence[float], low: float = 0.5, bins: int = BINS
) -> list[Bin]:
    """Sorts predictions into equally wide ranges of confidence from `low` to 1; ranges without any are left out.

    `right` is 1 for a prediction that came true and 0 for one that did not, or its probability.
    """
    members: list[list[int]] = [[] for _ in range(bins)]
    for place, confidence in enumerate(confidences):
        members[min(int((confidence - low) / (1 - low) * bins), bins - 1)].append(place)
    return [
        Bin(
            confidence=sum(confidences[place] for place in inside) / len(inside),
            accuracy=sum(right[place] for place in inside) / len(inside),
            size=len(inside),
        )
        for inside in members
        if inside
    ]


def expected_calibration_error(curve: Sequence[Bin]) -> float:
    """ECE = sum_b n_b / n |accuracy_b - confidence_b| (Guo et al., arXiv:1706.04599, equation 3)."""
    total = sum(each.size for each in curve)
    return sum(each.size / total * abs(each.accuracy - each.confidence) for each in curve)
