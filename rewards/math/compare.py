"""Whether an answer says the same as the gold answer: lists, sets, intervals, equations, units, words, then values.

Every verdict is True, False, or None where the judge of values could not tell.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Literal

from rewards.math.judge import Judge
from rewards.math.matrix import multiplied
from rewards.math.parse import Tree
from rewards.math.sets import same_set
from rewards.math.units import Unit, read_unit
from rewards.math.value import variables, walk

Percent = Literal["either", "value", "ignore"]
Units = Literal["optional", "required", "ignore"]
_MIRRORED = {"<": ">", ">": "<", "<=": ">=", ">=": "<="}
_COLLECTIONS = ("list", "set", "tuple", "matrix", "union", "inter", "minus")
_ANSWERS = (*_COLLECTIONS, "chain", "ratio", "unit", "text", "clock", "based", "mod")
MAX_UNORDERED = 50
"""Longer lists, unless of numbers, are compared in order: each pair takes a verdict of its own."""
_PLAIN = Unit(dimension=None, scale=Fraction(1))


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """The rules of one verifier.

    Example: `Comparison(judge=Judge(arithmetic=FLOATS), percent="either", units="optional")`
    """

    judge: Judge
    percent: Percent
    """20% is 0.2; under "either" also 20, under "ignore" only 20."""
    units: Units
    """Two different units are never equal unless ignored; "optional" lets either side leave its unit out."""

    def equal(self, gold: Tree, answer: Tree) -> bool | None:
        """Whether the answer says what the gold says; raises Explodes and Undefined."""
        if gold == answer:
            return True
        if gold[0] == answer[0] == "num":
            return False
        gold, answer = multiplied(_both_signs(gold)), multiplied(_both_signs(answer))
        if "text" in (gold[0], answer[0]):
            return _spelled(gold) is not None and _spelled(gold) == _spelled(answer)
        if "chain" in (gold[0], answer[0]):
            return self._relations(gold, answer)
        if gold[0] in _COLLECTIONS or answer[0] in _COLLECTIONS or _is_number_set(gold):
            return self._collections(gold, answer)
        if "ratio" in (gold[0], answer[0]):
            return self._ratios(gold, answer)
        if "mod" in (gold[0], answer[0]):
            return self._residues(gold, answer)
        if "based" in (gold[0], answer[0]):
            return False
        return self._quantities(gold, answer)

    def _relations(self, gold: Tree, answer: Tree) -> bool | None:
        if gold[0] == "chain" and answer[0] == "chain":
            return self._two_chains(gold, answer)
        chain, other = (gold, answer) if gold[0] == "chain" else (answer, gold)
        if chain[2] == ("in",):
            return self.equal(*((chain[1][1], answer) if chain is gold else (gold, chain[1][1])))
        if not set(chain[2]) <= {"=", "~", "mod"}:
            return same_set(gold, answer, self.judge)
        value = self._value(chain, is_decimal=any(node[0] == "dec" for node in walk(other)))
        # 4x - 5y = -50 and x - 3z = 0 are planes, not numbers; but an answer a + b = 6 states the value of a sum.
        is_value = _is_name(_sides(chain)[0]) or (chain is answer and value != ("num", Fraction(0)))
        if value is None or not (is_value or value == chain[1][0] or not variables(chain[1][0])):
            return False
        return self.equal(*((value, answer) if chain is gold else (gold, value)))

    def _value(self, chain: Tree, is_decimal: bool) -> Tree | None:
        """What x is by `x = 2 + 3 = 5`; None if the chain contradicts itself or says nothing of a value."""
        members, relations = chain[1], chain[2]
        exact = 1 + next((at for at, relation in enumerate(relations) if relation == "~"), len(relations))
        has_name = bool(variables(members[0])) or members[0][0] == "text"
        stated = members[:exact][1 if has_name else 0 :]
        if not stated:
            stated = members[1:2]  # x ~ 3.14
        elif is_decimal and exact < len(members):
            return members[-1]
        if not has_name and variables(members[-1]) and len(members) == 2:
            return members[0]  # 5 = x
        if any(self.equal(stated[0], member) is False for member in stated[1:]):
            return None
        return stated[-1]

    def _two_chains(self, gold: Tree, answer: Tree) -> bool | None:
        if gold[2] == answer[2] == ("in",):
            return self.equal(gold[1][1], answer[1][1])
        if set(gold[2]) | set(answer[2]) <= {"=", "~", "mod"}:
            (left, right), (other_left, other_right) = _sides(gold), _sides(answer)
            if answer[0] == "chain" and len(answer[1]) > 2 and self._value(answer, is_decimal=False) is None:
                return False
            if _is_name(left) and _is_name(other_left):
                if left[0] == other_left[0] == "app" and left != other_left:
                    return False  # f(x) is not g(x), and f(2) not f(3)
                if left == other_left or "app" in (left[0], other_left[0]):
                    return self.equal(right, other_right)
                if (
                    left[0] == "tuple"
                    and other_left[0] == "tuple"
                    and sorted(map(repr, left)) != sorted(map(repr, other_left))
                ):
                    return False
            if any(part[0] in _ANSWERS for part in (left, right, other_left, other_right)):
                return _all((self.equal(left, other_left), self.equal(right, other_right)))
            ratio = self.judge.ratio(_cleared(left, right), _cleared(other_left, other_right))
            return None if ratio is None else ratio != 0
        if len(gold[2]) == len(answer[2]) == 1 and gold[2][0] in _MIRRORED and answer[2][0] in _MIRRORED:
            turned = {gold[2][0]: 1, _MIRRORED[gold[2][0]]: -1}.get(answer[2][0], 0)
            ratio = self.judge.ratio(_minus(*gold[1]), _minus(*answer[1])) if turned else 0
            return None if ratio is None else ratio == turned
        for members, relations in (
            (answer[1], answer[2]),
            (answer[1][::-1], [_MIRRORED.get(r, r) for r in answer[2][::-1]]),
        ):
            if tuple(relations) == gold[2]:
                verdict = _all(self.equal(*pair) for pair in zip(gold[1], members, strict=True))
                if verdict is not False:
                    return verdict
        return same_set(gold, answer, self.judge)

    def _collections(self, gold: Tree, answer: Tree) -> bool | None:
        kinds = (gold[0], answer[0])
        if kinds == ("matrix", "matrix"):
            if [len(row) for row in gold[1:]] != [len(row) for row in answer[1:]]:
                return False
            pairs = zip(sum(gold[1:], ()), sum(answer[1:], ()), strict=True)
            return _all(self.equal(*pair) for pair in pairs)
        if "matrix" in kinds:
            matrix, other = (gold, answer) if kinds[0] == "matrix" else (answer, gold)
            if other[:3] != ("tuple", "(", ")") or any(len(row) != 1 for row in matrix[1:]):
                return False
            column = ("tuple", "(", ")", *(row[0] for row in matrix[1:]))
            return self.equal(*((column, answer) if matrix is gold else (gold, column)))
        if kinds == ("tuple", "tuple"):
            return gold[1:3] == answer[1:3] and self._in_order(gold[3:], answer[3:])
        if kinds in (("list", "tuple"), ("tuple", "list")):
            (bare, bracketed) = (gold, answer) if kinds[0] == "list" else (answer, gold)
            if bracketed[1:3] in (("(", ")"), ("[", "]")) and not any(part[0] == "chain" for part in bare[1:]):
                sides = (gold[1:], answer[3:]) if bare is gold else (gold[3:], answer[1:])
                return self._in_order(*sides)
            named = [_sides(part)[1] for part in bare[1:] if part[0] == "chain" and part[2] == ("=",)]
            if len(named) == len(bare) - 1:
                return self._in_order(*((named, answer[3:]) if bare is gold else (gold[3:], named)))
        if set(kinds) <= {"list", "set"}:
            if "set" in kinds and kinds[0] == kinds[1]:
                return self._in_any_order(self._distinct(gold[1:]), self._distinct(answer[1:]))
            values, others = _named_values(gold), _named_values(answer)
            if (values is None) != (others is None) and not any(
                part[0] == "chain" for part in (gold if values is None else answer)[1:]
            ):  # x = 1, y = 2 and 1, 2
                return self._in_order(values or gold[1:], others or answer[1:])
            verdict = self._in_any_order(gold[1:], answer[1:])
            return same_set(gold, answer, self.judge) if verdict is False and kinds == ("list", "list") else verdict
        if kinds[0] == "set" and len(gold) == 2 and kinds[1] not in _COLLECTIONS:
            return self.equal(gold[1], answer)
        if kinds[1] == "set" and len(answer) == 2 and kinds[0] not in _COLLECTIONS:
            return self.equal(gold, answer[1])
        return same_set(gold, answer, self.judge)

    def _in_order(self, gold: Sequence[Tree], answer: Sequence[Tree]) -> bool | None:
        if len(gold) != len(answer):
            return False
        return _all(self.equal(*pair) for pair in zip(gold, answer, strict=True))

    def _in_any_order(self, gold: Sequence[Tree], answer: Sequence[Tree]) -> bool | None:
        """Equality is transitive, so that each element may take the first equal one that is left."""
        if len(gold) != len(answer):
            return False
        if len(gold) > MAX_UNORDERED and not all(part[0] == "num" for part in (*gold, *answer)):
            return self._in_order(gold, answer)
        left, verdicts = list(answer), []
        for element in gold:
            found: list[tuple[bool | None, int]] = []
            for at, other in enumerate(left):
                verdict = self.equal(element, other)
                if verdict is not False:
                    found.append((verdict, at))
                if verdict:
                    break
            if not found:
                return False
            verdict, at = found[-1]
            verdicts.append(verdict)
            left.pop(at)
        return _all(verdicts)

    def _distinct(self, elements: Sequence[Tree]) -> list[Tree]:
        kept: list[Tree] = []
        for element in elements:
            if not any(self.equal(element, other) for other in kept):
                kept.append(element)
        return kept

    def _ratios(self, gold: Tree, answer: Tree) -> bool | None:
        """1:2 is 2:4 and, with two terms, 1/2."""
        gold_terms, answer_terms = _terms(gold), _terms(answer)
        if gold_terms is None or answer_terms is None or len(gold_terms) != len(answer_terms):
            return False
        if _is_time(gold) or any(term == ("num", Fraction(0)) for term in (*gold_terms, *answer_terms)):
            return answer[0] == "ratio" and self._in_order(gold_terms, answer_terms)
        return _all(
            self.judge.equal(("mul", gold_terms[0], other), ("mul", answer_terms[0], term))
            for term, other in zip(gold_terms[1:], answer_terms[1:], strict=True)
        )

    def _residues(self, gold: Tree, answer: Tree) -> bool | None:
        if gold[0] == answer[0]:
            return _all((self.equal(gold[1], answer[1]), self.equal(gold[2], answer[2])))
        return self.equal(gold[1], answer) if gold[0] == "mod" else self.equal(gold, answer[1])

    def _quantities(self, gold: Tree, answer: Tree) -> bool | None:
        (gold, unit), (answer, other) = _measure(gold), _measure(answer)
        if any(node[0] in _ANSWERS for tree in (gold, answer) for node in walk(tree)):
            return False
        if self.units != "ignore":
            bare = [tree[0] in ("pct", "deg") for tree in (gold, answer)]
            if (unit.dimension and bare[1]) or (other.dimension and bare[0]):
                return False
            if unit.dimension and other.dimension and unit.dimension != other.dimension:
                return False
            if self.units == "required" and unit.dimension != other.dimension:
                return False
            if unit.dimension == other.dimension or not unit.dimension or not other.dimension:
                gold, answer = _scaled(gold, unit, other), _scaled(answer, other, unit)
        if "pct" in (gold[0], answer[0]) and gold[0] != answer[0] and self.percent != "value":
            bare = self.judge.equal(*(tree[1] if tree[0] == "pct" else tree for tree in (gold, answer)))
            if bare is not False or self.percent == "ignore":
                return bare
        if "deg" in (gold[0], answer[0]) and gold[0] != answer[0] and self.units != "required":
            bare = self.judge.equal(*(tree[1] if tree[0] == "deg" else tree for tree in (gold, answer)))
            if bare is not False:
                return bare
        return self.judge.equal(gold, answer)


def _all(verdicts: Iterable[bool | None]) -> bool | None:
    unknown = False
    for verdict in verdicts:
        if verdict is False:
            return False
        unknown |= verdict is None
    return None if unknown else True


def _minus(left: Tree, right: Tree) -> Tree:
    return ("add", left, ("neg", right))


def _cleared(left: Tree, right: Tree) -> Tree:
    """left - right without denominators, so that y = 1/x is xy = 1."""
    (top, bottom), (other_top, other_bottom) = _fraction(left), _fraction(right)
    return _minus(("mul", top, other_bottom), ("mul", other_top, bottom))


def _fraction(tree: Tree) -> tuple[Tree, Tree]:
    one = ("num", Fraction(1))
    if tree[0] not in ("add", "mul", "neg", "div") or not any(
        node[0] == "div" and variables(node[2]) for node in walk(tree)
    ):
        return tree, one
    parts = [_fraction(part) for part in tree[1:]]
    top, bottom = parts[0]
    for other_top, other_bottom in parts[1:]:
        if tree[0] == "add":
            top = ("add", ("mul", top, other_bottom), ("mul", other_top, bottom))
        elif tree[0] == "mul":
            top = ("mul", top, other_top)
        else:
            top, other_bottom = ("mul", top, other_bottom), other_top
        bottom = ("mul", bottom, other_bottom)
    return (("neg", top) if tree[0] == "neg" else top), bottom


def _named_values(tree: Tree) -> list[Tree] | None:
    """The values of a list of equations, each for a variable of its own; None if it is no such list."""
    if tree[0] != "list" or any(part[0] != "chain" or part[2] != ("=",) for part in tree[1:]):
        return None
    sides = [_sides(part) for part in tree[1:]]
    names = {name for name, _ in sides if name[0] == "sym"}
    return [value for _, value in sides] if len(names) == len(sides) else None


def _sides(chain: Tree) -> tuple[Tree, Tree]:
    return chain[1][0], chain[1][-1]


def _is_name(tree: Tree) -> bool:
    """Whether a tree names something that can be assigned: x, f(x), |AB|, tan x, angle ABC, (x, y), "Area"."""
    if tree[0] == "tuple":
        return all(part[0] == "sym" for part in tree[3:])
    if tree[0] == "pow":  # the inverse function
        return _is_name(tree[1]) and tree[2] == ("num", Fraction(-1))
    if tree[0] in ("abs", "mul", "fn"):
        return all(_is_name(part) for part in tree[2 if tree[0] == "fn" else 1 :])
    return tree[0] in ("sym", "app", "text")


def _is_number_set(tree: Tree) -> bool:
    return tree[0] == "sym" and tree[1].startswith("\\mathbb")


def _spelled(tree: Tree) -> str | None:
    r"""The letters of a text or of a name: `\text{(B)}`, `(B)` and `B` are spelled alike."""
    if tree[0] == "text":
        return re.sub(r"[\s().:\"'-]+", " ", tree[1].casefold()).strip().removeprefix("the ")
    if tree[0] == "sym" and len(tree[1]) == 1:
        return tree[1].casefold()
    if tree[0] == "mul" and (left := _spelled(tree[1])) is not None and (right := _spelled(tree[2])) is not None:
        return left + right
    return None


def _is_time(tree: Tree) -> bool:
    """Whether a gold ratio is a time of day, such as 10:30: two numbers in their range that a ratio would reduce."""
    if tree[0] != "ratio" or len(tree) != 3 or any(term[0] != "num" for term in tree[1:]):
        return False
    hours, minutes = tree[1][1], tree[2][1]
    is_whole = hours.denominator == minutes.denominator == 1
    return is_whole and 0 <= hours <= 24 and 10 <= minutes < 60 and math.gcd(int(hours), int(minutes)) > 1


def _terms(tree: Tree) -> tuple[Tree, ...] | None:
    if tree[0] == "ratio":
        return tree[1:]
    if tree[0] == "div":
        return tree[1:]
    return (tree, ("num", Fraction(1))) if tree[0] in ("num", "dec", "mul") else None


def _measure(tree: Tree) -> tuple[Tree, Unit]:
    """The value and the unit of a quantity; an angle in degrees keeps its sign of degrees."""
    if tree[0] == "neg":
        value, unit = _measure(tree[1])
        return ("neg", value), unit
    if tree[0] != "unit":
        return tree, _PLAIN
    unit = read_unit(tree[2])
    if unit.dimension == (("angle", 1),):
        return ("deg", tree[1]), _PLAIN
    return tree[1], unit


def _scaled(tree: Tree, unit: Unit, other: Unit) -> Tree:
    if unit.scale == other.scale or (other.dimension is None and unit.dimension is not None):
        return tree
    if unit.dimension is None and other.dimension is not None:
        return tree
    return ("mul", tree, ("num", unit.scale))


def _both_signs(tree: Tree) -> Tree:
    """A tree with plus-minus signs becomes the list of its two readings; upper and lower signs go together."""
    if not any(node[0] in ("pm", "mp") for node in walk(tree)):
        return tree
    if tree[0] in ("list", "set"):
        parts: list[Tree] = []
        for part in tree[1:]:
            part = _both_signs(part)
            parts += part[1:] if part[0] == "list" else (part,)
        return (tree[0], *parts)
    return ("list", _signed(tree, ("num", Fraction(1))), _signed(tree, ("num", Fraction(-1))))


def _signed(tree: Tree, sign: Tree) -> Tree:
    if tree[0] in ("pm", "mp"):
        factor = sign if tree[0] == "pm" else ("num", -sign[1])
        return ("mul", factor, _signed(tree[1], sign))
    return tuple(
        _signed(part, sign) if isinstance(part, tuple) and part and isinstance(part[0], str)
        else tuple(_signed(one, sign) for one in part) if isinstance(part, tuple) and tree[0] in ("chain", "matrix")
        and part and isinstance(part[0], tuple) else part
        for part in tree
    )  # fmt: skip
