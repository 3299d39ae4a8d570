"""Whether two expressions are equal, or two equations the same, by exact fractions first and by many digits after.

At random points two different formulas agree with probability near 0 (Schwartz 1980, Zippel 1979). The points derive
from the two texts, so that a verdict is the same each time and no answer can be written to fit them.
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

from rewards.math_parse import Tree
from rewards.math_text import Explodes
from rewards.math_value import Arithmetic, Evaluation, Undefined, exact, variables, walk

CLOSE = Fraction(1, 10**9)
"""Relative error up to which a decimal stands for a value that no decimal can be."""
FLOAT_GAP = 1e-6
"""Relative to the largest number met on the way: floats that differ by more are different values."""
MIN_POINTS = 2


class TooFine(ValueError):
    """Sizes too far apart for the digits of this judge; more digits may tell."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Judge:
    """Compares scalar trees. A judge with floats may answer None: then one with more digits must decide.

    Example: `Judge(arithmetic=FLOATS)`
    """

    arithmetic: Arithmetic
    digits: int = 0
    """Decimal digits of the arithmetic; 0 means floats."""

    def equal(self, left: Tree, right: Tree) -> bool | None:
        """Whether two expressions have the same value wherever both have one; raises Explodes and Undefined."""
        if left == right:
            return True
        if left[0] == right[0] and left[0] in ("num", "dec"):
            return left[1] == right[1]
        trees = (left, right)
        if any(node == ("sym", "\\infty") for tree in trees for node in walk(tree)):
            return False
        if (verdict := self._exactly(left, right)) is not None:
            return verdict or self._is_close(left, right)
        if any(node[:2] == ("fn", "\\log") and len(node) == 3 for tree in trees for node in walk(tree)):
            verdicts = [self._numerically(left, right, log_base) for log_base in (0, 10)]
            return True if True in verdicts else None if None in verdicts else False
        return self._numerically(left, right, 0)

    def ratio(self, left: Tree, right: Tree) -> int | None:
        """Sign of the constant c in left = c right; 0 if there is none, None if floats cannot tell."""
        ratios: list[Fraction | None] = []
        for values in _points(left, right):
            try:
                pair = exact(left, values), exact(right, values)
            except (Undefined, Explodes):
                continue
            if None in pair:
                ratios = []
                break
            if (pair[0] == 0) != (pair[1] == 0):
                return 0
            if pair[1]:
                ratios.append(pair[0] / pair[1])  # type: ignore[operator]
        if len(ratios) >= MIN_POINTS:
            first = ratios[0]
            return 0 if any(ratio != first for ratio in ratios) else 1 if first > 0 else -1  # type: ignore[operator]
        return self._numeric_ratio(left, right)

    def _exactly(self, left: Tree, right: Tree) -> bool | None:
        seen = 0
        for values in _points(left, right):
            try:
                pair = exact(left, values), exact(right, values)
            except Undefined:
                continue
            except Explodes:
                if values:
                    continue
                raise
            if pair[0] is None or pair[1] is None:
                return None
            if pair[0] != pair[1]:
                return False
            seen += 1
            if not values:
                return True
        return True if seen >= MIN_POINTS else None

    def _is_close(self, left: Tree, right: Tree) -> bool:
        """A decimal of ten right digits may stand for 1/3 or pi; two decimals are compared exactly."""
        decimals = [_is_decimal(left), _is_decimal(right)]
        if sum(decimals) != 1:
            return False
        decimal, other = (left, right) if decimals[0] else (right, left)
        read, value = exact(decimal, {}), exact(other, {})
        if value is None:
            try:
                number = Evaluation(arithmetic=self.arithmetic)(other)
            except (Undefined, OverflowError, TypeError, ZeroDivisionError):
                return False
            if abs(number.imag) > 1e-15 * abs(number):
                return False
            value = Fraction(float(number.real))
        elif not _without(_without(value.denominator, 2), 5) > 1:
            return False
        return read is not None and value != 0 and abs(read - value) <= CLOSE * abs(value)

    def _numerically(self, left: Tree, right: Tree, log_base: int) -> bool | None:
        if not variables(left) | variables(right) and self._is_close(left, right):
            return True
        agreeing, too_fine = 0, None
        for values in _points(left, right):
            try:
                pair = self._pair(left, right, values, log_base)
            except (Undefined, ZeroDivisionError):
                continue
            except OverflowError:
                if self.digits:
                    raise Explodes("a value beyond all digits") from None
                return None
            except Explodes:
                if values:
                    continue
                raise
            except TooFine as error:
                too_fine = error
                continue
            gap, tolerance = pair
            if gap > tolerance:
                return False
            agreeing += 1
            if not values:
                break
        if not self.digits:
            return None
        is_enough = agreeing >= (MIN_POINTS if variables(left) | variables(right) else 1)
        if too_fine and not is_enough:
            raise too_fine
        return is_enough

    def _pair(self, left: Tree, right: Tree, values: Mapping[str, Fraction], log_base: int) -> tuple[Any, Any]:
        """Gap between the two values, and the gap up to which they may be equal."""
        is_real = bool(values) and not any(node == ("sym", "i") for tree in (left, right) for node in walk(tree))
        numbers = {name: self.arithmetic.number(value) for name, value in values.items()}
        evaluation = Evaluation(arithmetic=self.arithmetic, values=numbers, log_base=log_base, is_real=is_real)
        gap = abs(evaluation(left) - evaluation(right))
        if not self.digits:
            return float(gap), FLOAT_GAP * evaluation.largest
        if evaluation.largest > evaluation.smallest * 10 ** (self.digits // 4):
            raise TooFine(f"sizes that differ by more than 10^{self.digits // 4}")
        return gap, evaluation.largest / 10 ** (self.digits * 3 // 4)

    def _numeric_ratio(self, left: Tree, right: Tree) -> int | None:
        ratios = []
        for values in _points(left, right):
            numbers = {name: self.arithmetic.number(value) for name, value in values.items()}
            evaluation = Evaluation(arithmetic=self.arithmetic, values=numbers, is_real=True)
            try:
                ratios.append(evaluation(left) / evaluation(right))
            except (Undefined, ZeroDivisionError, OverflowError, Explodes):
                continue
        if len(ratios) < MIN_POINTS:
            return 0
        gap = max(abs(ratio - ratios[0]) for ratio in ratios)
        if gap > FLOAT_GAP * abs(ratios[0]):
            return 0
        if self.digits:
            return 0 if gap > abs(ratios[0]) * 1e-30 else 1 if ratios[0].real > 0 else -1
        return None


def _is_decimal(tree: Tree) -> bool:
    """Whether a tree is one decimal, perhaps with a sign, per cent or a power of ten."""
    if tree[0] in ("neg", "pct"):
        return _is_decimal(tree[1])
    if tree[0] == "mul":
        return _is_decimal(tree[1]) and tree[2][:2] == ("pow", ("num", Fraction(10)))
    return tree[0] == "dec"


def _without(number: int, factor: int) -> int:
    while number % factor == 0:
        number //= factor
    return number


def _points(left: Tree, right: Tree) -> list[dict[str, Fraction]]:
    """Values for the variables: three positive points, three of mixed sign, three positive integers."""
    names = sorted(variables(left) | variables(right))
    if not names:
        return [{}]
    rng = random.Random(repr((left, right)))
    # Odd numerators over 1024: no exponent is then a fraction with an odd denominator, of which (-1)^x has real values.
    points = [{name: Fraction(2 * rng.randint(2**8, 2**10) + 1, 2**10) for name in names} for _ in range(6)]
    points = [
        {name: -value if at > 2 and rng.random() < 0.5 else value for name, value in point.items()}
        for at, point in enumerate(points)
    ]
    return points + [{name: Fraction(rng.randint(2, 7)) for name in names} for _ in range(3)]
