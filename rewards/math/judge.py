"""Says whether two expressions have the same value, or two equations the same solutions.

Two formulas are compared by their values at random points, where different ones agree with a probability near 0
(Schwartz 1980, Zippel 1979): by exact fractions where both have some, else by floats, else by many digits. The points
derive from the two formulas, so that a verdict is the same each time. Every variable takes both signs, odd and even
integers and sizes from 0.3 to 1000, so that a formula in pieces, such as |x + 3|, shows its pieces. What is not
covered: pieces beyond these sizes.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from fractions import Fraction
from itertools import chain
from typing import Any

from rewards.math.expressions import Tree
from rewards.math.text import Explodes
from rewards.math.value import Arithmetic, Evaluation, Steps, Undefined, Work, exact, variables, walk

CLOSE = Fraction(1, 10**9)
"""A decimal with at most this relative error stands for a value that no decimal can be, such as 1/3 or pi."""
FLOAT_GAP = 1e-6
"""Floats that differ by more than this share of the largest number met on the way are different values."""
MAX_SPREAD = 1e12
"""Where the largest and the smallest number met at a point lie further apart, floats may differ by rounding alone."""
MIN_POINTS = 2
"""Two formulas must be defined, and agree, at so many points at least."""
SIZES = (Fraction(3, 10), Fraction(7), Fraction(50), Fraction(1000))
"""Every variable is tried near each of these sizes, with both signs."""
NUM_WIDE = 60
"""So many further points, from 1/64 to 10^10, serve formulas that are defined at too few of the first."""
STEPS_OF_A_START = 10
"""What it costs to look for the variables of two formulas and to choose points, in nodes of a tree."""


class TooFine(ValueError):
    """Sizes too far apart for the digits of this judge; more digits may tell."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Judge:
    """Compares scalar trees. A judge with floats may answer None: then one with more digits must decide.

    Example: `Judge(arithmetic=FLOATS)`
    """

    arithmetic: Arithmetic
    digits: int = 0
    """The decimal digits of the arithmetic; 0 means floats."""
    steps: Steps = field(default_factory=Steps)
    """What one comparison may still cost; the caller's process sets a limit, a worker sets none."""

    def equal(self, left: Tree, right: Tree) -> bool | None:
        """Returns whether two expressions have the same value wherever both have one; raises Explodes and Undefined."""
        self.steps.take(STEPS_OF_A_START)
        if left == right:
            return True
        if left[0] == right[0] and left[0] in ("num", "dec"):
            return left[1] == right[1]
        trees = (left, right)
        if any(node == ("sym", "\\infty") for tree in trees for node in walk(tree)):
            return False
        if (verdict := self._exactly(left, right)) is not None:
            return verdict or self._is_close(left, right)
        # \log without a base is the natural logarithm in some books and the decimal one in others: either may be meant.
        if any(node[:2] == ("fn", "\\log") and len(node) == 3 for tree in trees for node in walk(tree)):
            verdicts = [self._numerically(left, right, log_base) for log_base in (0, 10)]
            return True if True in verdicts else None if None in verdicts else False
        return self._numerically(left, right, 0)

    def ratio(self, left: Tree, right: Tree) -> int | None:
        """Returns the sign of the constant c in left = c right; 0 if there is no such c, None if floats cannot tell.

        Two equations with 0 on one side have the same solutions if the other sides differ by a factor. Of two
        inequalities, a negative factor turns the sign round.
        """
        self.steps.take(STEPS_OF_A_START)
        ratios: list[Fraction | None] = []
        work = Work(steps=self.steps)
        for values in points(left, right):
            try:
                pair = exact(left, values, work), exact(right, values, work)
            except (Undefined, Explodes):
                continue
            if None in pair:  # one of them has no exact value: many digits must do
                ratios = []
                break
            if (pair[0] == 0) != (pair[1] == 0):  # a solution of one that is none of the other
                return 0
            if pair[1]:
                ratios.append(pair[0] / pair[1])  # type: ignore[operator]
        if len(ratios) >= MIN_POINTS:
            first = ratios[0]
            return 0 if any(ratio != first for ratio in ratios) else 1 if first > 0 else -1  # type: ignore[operator]
        return self._numeric_ratio(left, right)

    def _exactly(self, left: Tree, right: Tree) -> bool | None:
        """Returns the verdict of exact fractions; None where an expression has no exact value, such as a root."""
        seen, work = 0, Work(steps=self.steps)
        for values in points(left, right):
            try:
                pair = exact(left, values, work), exact(right, values, work)
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
        """Returns whether one side is a decimal of ten right digits that stands for the other, such as 1/3 or pi."""
        decimals = [_is_decimal(left), _is_decimal(right)]
        if sum(decimals) != 1:  # two decimals are compared exactly
            return False
        decimal, other = (left, right) if decimals[0] else (right, left)
        read, value = exact(decimal, {}), exact(other, {})
        if value is None:
            try:
                number = Evaluation(arithmetic=self.arithmetic, steps=self.steps)(other)
                if abs(number.imag) > 1e-15 * abs(number):
                    return False
                value = Fraction(float(number.real))  # an OverflowError beyond the floats: no decimal is that large
            except (Undefined, Explodes, OverflowError, TypeError, ZeroDivisionError):
                return False
        elif not _without(_without(value.denominator, 2), 5) > 1:
            return False
        return read is not None and value != 0 and abs(read - value) <= CLOSE * abs(value)

    def _numerically(self, left: Tree, right: Tree, log_base: int) -> bool | None:
        """Returns the verdict of floats, which can only say False, or of many digits."""
        names = variables(left) | variables(right)
        if not names and self._is_close(left, right):
            return True
        is_real = bool(names) and not any(node == ("sym", "i") for tree in (left, right) for node in walk(tree))
        needed = MIN_POINTS if names else 1
        agreeing = self._agreeing(left, right, points(left, right), log_base, is_real)
        # Floats that clearly differ are a proof; floats that agree are none: sqrt(2) + 10^-40 agrees with sqrt(2).
        if agreeing is None or not self.digits:
            return False if agreeing is None else None
        if agreeing < needed and names:
            wide = self._agreeing(left, right, _wide_points(left, right), log_base, is_real)
            if wide is None:
                return False
            agreeing += wide
        if agreeing < needed and is_real:  # no real values: agreement off the real line is proof, difference is none
            agreeing = self._agreeing(left, right, points(left, right), log_base, False) or 0
        return True if agreeing >= needed else None if names else False

    def _agreeing(
        self, left: Tree, right: Tree, tried: Iterable[dict[str, Fraction]], log_base: int, is_real: bool
    ) -> int | None:
        """Returns the number of points at which both have the same value; None if they differ at one.

        Raises TooFine.
        """
        agreeing, too_fine, needed = 0, None, 1
        for values in tried:
            needed = MIN_POINTS if values else 1
            try:
                gap, tolerance = self._pair(left, right, values, log_base, is_real)
            except (Undefined, ZeroDivisionError):
                continue
            except OverflowError:
                if values:
                    continue
                if self.digits:
                    raise Explodes("a value beyond all digits") from None
                return 0
            except Explodes:
                if values:
                    continue
                raise
            except TooFine as error:
                too_fine = error
                continue
            if gap > tolerance:
                return None
            agreeing += 1
        if self.digits and too_fine and agreeing < needed:
            raise too_fine
        return agreeing

    def _pair(
        self, left: Tree, right: Tree, values: Mapping[str, Fraction], log_base: int, is_real: bool
    ) -> tuple[Any, Any]:
        """Returns the gap between the two values, and the gap up to which they may be equal."""
        numbers = {name: self.arithmetic.number(value) for name, value in values.items()}
        evaluation = Evaluation(
            arithmetic=self.arithmetic, values=numbers, log_base=log_base, is_real=is_real, steps=self.steps
        )
        gap = abs(evaluation(left) - evaluation(right))
        if values or self.digits:
            self._check_spread(evaluation)
        if not self.digits:
            return float(gap), FLOAT_GAP * evaluation.largest
        return gap, evaluation.largest * self.arithmetic.number(Fraction(1, 10 ** (self.digits * 3 // 4))).real

    def _check_spread(self, evaluation: Evaluation) -> None:
        """Raises TooFine where a small number may have been lost in the rounding of a large one."""
        spread = 10 ** (self.digits // 4) if self.digits else MAX_SPREAD
        if evaluation.largest / evaluation.smallest > spread:
            raise TooFine(f"sizes that differ by more than 10^{self.digits // 4 or 12}")

    def _numeric_ratio(self, left: Tree, right: Tree) -> int | None:
        """Returns the same as `ratio`, with numbers in place of fractions."""
        ratios, too_fine = [], None
        for values in chain(points(left, right), _wide_points(left, right) if self.digits else ()):
            numbers = {name: self.arithmetic.number(value) for name, value in values.items()}
            evaluation = Evaluation(arithmetic=self.arithmetic, values=numbers, is_real=True, steps=self.steps)
            try:
                ratio = evaluation(left) / evaluation(right)
                if values:
                    self._check_spread(evaluation)
            except (Undefined, ZeroDivisionError, OverflowError, Explodes):
                continue
            except TooFine as error:
                too_fine = error
                continue
            ratios.append(ratio)
        if len(ratios) < MIN_POINTS:
            if too_fine and self.digits:
                raise too_fine
            return None
        gap = max(abs(ratio - ratios[0]) for ratio in ratios)
        if gap > FLOAT_GAP * abs(ratios[0]):
            return 0
        if self.digits:
            return 0 if gap > abs(ratios[0]) * 1e-30 else 1 if ratios[0].real > 0 else -1
        return None


def _is_decimal(tree: Tree) -> bool:
    """Returns whether a tree is one decimal, perhaps with a sign, per cent or a power of ten."""
    if tree[0] in ("neg", "pct"):
        return _is_decimal(tree[1])
    if tree[0] == "mul":
        return _is_decimal(tree[1]) and tree[2][:2] == ("pow", ("num", Fraction(10)))
    return tree[0] == "dec"


def _without(number: int, factor: int) -> int:
    while number % factor == 0:
        number //= factor
    return number


def points(left: Tree, right: Tree) -> Iterator[dict[str, Fraction]]:
    """Yields values for the variables: small ones, all sizes with both signs, and odd and even integers.

    They come one by one, because the first tells most different formulas apart.
    """
    names = sorted(variables(left) | variables(right))
    if not names:
        yield {}
        return
    rng = random.Random(repr((left, right)))
    patterns = range(4 if len(names) <= 3 else 8)
    flips = [[_flips(at, pattern, len(patterns)) for at in range(len(names))] for pattern in patterns]
    for _ in range(3):
        yield {name: _near(rng, Fraction(1)) for name in names}
    # All patterns of signs near 1: |x| is x for positive x only, |xy| is xy where the signs agree.
    for row in flips[1:]:
        yield {
            name: -_near(rng, Fraction(1)) if flip else _near(rng, Fraction(1))
            for name, flip in zip(names, row, strict=True)
        }
    # All sizes: max(x, 100) is 100 up to there, and x beyond.
    columns = [rng.sample([sign * size for sign in (1, -1) for size in SIZES], 2 * len(SIZES)) for _ in names]
    for row in zip(*columns, strict=True):
        yield {name: _near(rng, size) for name, size in zip(names, row, strict=True)}
    # Integers, odd and even: (-1)^n is 1 for even n only.
    for sign, start, end, chosen in ((1, 1, 3, flips), (1, 5, 30, flips[1:3]), (-1, 1, 3, flips[1:])):
        for row in chosen:
            yield {
                name: Fraction(sign * (2 * rng.randint(start, end) + flip))
                for name, flip in zip(names, row, strict=True)
            }


def _wide_points(left: Tree, right: Tree) -> Iterator[dict[str, Fraction]]:
    """Yields values of many sizes: ln(x - 10^9) is defined for large x only."""
    names = sorted(variables(left) | variables(right))
    rng = random.Random(repr((right, left)))
    for at in range(NUM_WIDE):
        signs = [rng.choice((1, -1)) if at % 2 else 1 for _ in names]
        yield {
            name: _near(rng, sign * Fraction(2) ** rng.randint(-6, 34)) for name, sign in zip(names, signs, strict=True)
        }


def _flips(at: int, pattern: int, num_patterns: int) -> bool:
    """Returns whether variable `at` changes its sign or parity in a pattern.

    Any two variables meet in all four ways.
    """
    return bool((1 + at % (num_patterns - 1) & pattern).bit_count() % 2)


def _near(rng: random.Random, size: Fraction) -> Fraction:
    """Returns a random number near `size`."""
    # An odd number over 2048: with an odd denominator as an exponent, (-1)^x would have a real value.
    number = int(abs(size) * 2**10 * Fraction(rng.randint(750, 1500), 1000))
    return Fraction(2 * number + 1, 2**11) * (1 if size > 0 else -1)
