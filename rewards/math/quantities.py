"""Compares quantities: numbers with units, per cent and degrees; ratios; residues."""

from __future__ import annotations

import math
import re
from fractions import Fraction
from typing import TYPE_CHECKING

from rewards.math.expressions import Tree
from rewards.math.lists import same_in_order
from rewards.math.notation import ANSWERS
from rewards.math.units import Unit, read_unit
from rewards.math.value import walk

if TYPE_CHECKING:
    from rewards.math.compare import Comparison

_RADIANS = re.compile(r"\brad(?:ian)?s?\b", re.IGNORECASE)
_PLAIN = Unit(dimension=None, scale=Fraction(1))


def same_ratio(gold: Tree, answer: Tree, rules: Comparison) -> bool | None:
    """Returns whether two ratios are the same: 1:2 is 2:4 and, with two terms, 1/2."""
    gold_terms, answer_terms = _terms(gold), _terms(answer)
    if gold_terms is None or answer_terms is None or len(gold_terms) != len(answer_terms):
        return False
    if any(term[0] in ANSWERS for term in (*gold_terms, *answer_terms)):
        return gold[0] == answer[0] and same_in_order(gold_terms, answer_terms, rules)
    if _is_time(gold) or any(term == ("num", Fraction(0)) for term in (*gold_terms, *answer_terms)):
        return answer[0] == "ratio" and same_in_order(gold_terms, answer_terms, rules)
    # a : b is c : d if a d is b c; the first term stands against each of the others
    products = [
        (("mul", gold_terms[0], other), ("mul", answer_terms[0], term))
        for term, other in zip(gold_terms[1:], answer_terms[1:], strict=True)
    ]
    return same_in_order(*zip(*products, strict=True), rules=rules)


def same_residue(gold: Tree, answer: Tree, rules: Comparison) -> bool | None:
    """Returns whether two residues are the same number by the same modulus; a bare number leaves the modulus out."""
    if gold[0] == answer[0]:
        return same_in_order(gold[1:], answer[1:], rules)
    return rules.equal(gold[1], answer) if gold[0] == "mod" else rules.equal(gold, answer[1])


def same_quantity(gold: Tree, answer: Tree, rules: Comparison) -> bool | None:
    """Returns whether two quantities are the same by the rules: 1 m is 100 cm, 20% is 0.2, 180 degrees is pi."""
    radians = [tree[0] == "unit" and _RADIANS.search(tree[2]) is not None for tree in (gold, answer)]
    (gold, unit), (answer, other) = _measure(gold), _measure(answer)
    if any(node[0] in ANSWERS for tree in (gold, answer) for node in walk(tree)):
        return False
    if rules.units != "ignore":
        bare = [tree[0] in ("pct", "deg") for tree in (gold, answer)]
        if (unit.dimension and bare[1]) or (other.dimension and bare[0]):
            return False
        if unit.dimension and other.dimension and unit.dimension != other.dimension:
            return False
        if rules.units == "required" and unit.dimension != other.dimension:
            return False
        if unit.dimension == other.dimension or not unit.dimension or not other.dimension:
            gold, answer = _scaled(gold, unit, other), _scaled(answer, other, unit)
    equal = rules.judge.equal
    if "pct" in (gold[0], answer[0]) and gold[0] != answer[0] and rules.percent != "value":
        verdict = equal(*(tree[1] if tree[0] == "pct" else tree for tree in (gold, answer)))
        if verdict is not False or rules.percent == "ignore":
            return verdict
    if "deg" in (gold[0], answer[0]) and gold[0] != answer[0] and rules.units != "required" and not any(radians):
        verdict = equal(*(tree[1] if tree[0] == "deg" else tree for tree in (gold, answer)))
        if verdict is not False:
            return verdict
    return equal(gold, answer)


def _is_time(tree: Tree) -> bool:
    """Returns whether a gold ratio is a time such as 10:30: two numbers in their range that a ratio would reduce."""
    if tree[0] != "ratio" or len(tree) != 3 or any(term[0] != "num" for term in tree[1:]):
        return False
    hours, minutes = tree[1][1], tree[2][1]
    is_whole = hours.denominator == minutes.denominator == 1
    return is_whole and 0 <= hours <= 24 and 10 <= minutes < 60 and math.gcd(int(hours), int(minutes)) > 1


def _terms(tree: Tree) -> tuple[Tree, ...] | None:
    if tree[0] in ("ratio", "div"):
        return tree[1:]
    return (tree, ("num", Fraction(1))) if tree[0] in ("num", "dec", "mul", "sym", "root", "pow", "add") else None


def _measure(tree: Tree) -> tuple[Tree, Unit]:
    """Returns the value and the unit of a quantity; an angle in degrees keeps its sign of degrees."""
    if tree[0] == "neg":
        value, unit = _measure(tree[1])
        return ("neg", value), unit
    if tree[0] == "mixed":  # 2 hours 30 minutes, in the first of its units
        parts = [_measure(part) for part in tree[1:]]
        unit = parts[0][1]
        shares = (("mul", value, ("num", other.scale / unit.scale)) for value, other in parts)
        return ("add", *shares), unit
    if tree[0] != "unit":
        return tree, _PLAIN
    unit = read_unit(tree[2])
    value = tree[1] if unit.count == 1 else ("mul", tree[1], ("num", unit.count))
    if unit.dimension == (("angle", 1),):
        return ("deg", value), _PLAIN
    return value, unit


def _scaled(tree: Tree, unit: Unit, other: Unit) -> Tree:
    if unit.scale == other.scale or (other.dimension is None and unit.dimension is not None):
        return tree
    if unit.dimension is None and other.dimension is not None:
        return tree
    return ("mul", tree, ("num", unit.scale))
