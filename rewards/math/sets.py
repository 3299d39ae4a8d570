"""Compares sets of real numbers: intervals, points, inequalities, unions, intersections and differences of them.

A set that is made of intervals and points can change only at its endpoints. So two sets are equal if they agree on
each endpoint of either and on each gap between two neighbours: [0, 2] and [0, 1] with [1, 2] agree at 0, 1 and 2, and
on the four gaps around these.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from fractions import Fraction

from rewards.math.expressions import Tree
from rewards.math.inequalities import BOUND, REALS, NoSet, float_of, solution
from rewards.math.judge import Judge
from rewards.math.value import substituted

__all__ = ["BOUND", "NoSet", "conditions_of", "same_set"]
_INTEGERS, _NATURALS = ("sym", "\\mathbbZ"), ("sym", "\\mathbbN")
_WHOLE = {  # how the sets of numbers are also written
    ("sym", "R"): REALS, ("sym", "Z"): _INTEGERS, ("sym", "N"): _NATURALS,
}  # fmt: skip
_INFINITY = ("sym", "\\infty")
_WITH_SETS = ("chain", "tuple", "set", "union", "inter", "minus", "list", "sym")
CLOSE = 1e-9
"""Endpoints with a relative distance below this are compared by the judge, all others by their floats."""
MAX_INTEGERS = 1_000
"""A set of all integers between two bounds may have so many."""


@dataclass(slots=True)
class _Line:
    """Holds the endpoints of two sets in order.

    Endpoint i is place 2 i + 1, and the gaps before and behind it are places 2 i and 2 i + 2.
    """

    judge: Judge
    values: list[float] = field(default_factory=list)
    trees: list[Tree] = field(default_factory=list)
    is_certain: bool = True

    def add(self, tree: Tree) -> None:
        value = _position(tree)
        if math.isinf(value):
            return
        for other, known in zip(self.values, self.trees, strict=True):
            self.judge.steps.take(1)
            if abs(value - other) <= CLOSE * max(abs(value), abs(other)):
                verdict = self.judge.equal(known, tree)
                if verdict is False:
                    raise NoSet("two endpoints that only many digits tell apart")
                self.is_certain &= verdict is True
                return
        # Kept in order, so that the place of an endpoint tells on which side of all others it lies.
        at = sum(other < value for other in self.values)
        self.values.insert(at, value)
        self.trees.insert(at, tree)

    def place(self, tree: Tree) -> int:
        value = _position(tree)
        if math.isinf(value):
            return -1 if value < 0 else 2 * len(self.values) + 1
        distances = [abs(value - other) for other in self.values]
        return 2 * distances.index(min(distances)) + 1

    def places(self) -> range:
        return range(2 * len(self.values) + 1)


def same_set(gold: Tree, answer: Tree, judge: Judge) -> bool | None:
    """Returns whether two trees are the same set of reals; False if either is no set, None if the judge cannot tell."""
    try:
        (gold, name), (answer, other) = _solved(gold, judge), _solved(answer, judge)
        if name and other and name != other and BOUND[1] not in (name, other) and ("(" in name) == ("(" in other):
            return False  # x > 5 is not y > 5, and f(x) > 5 not g(x) > 5; but 0 < f(x) < 2 is 0 < y < 2
        line = _Line(judge)
        for tree in (gold, answer):
            for end in _ends(tree):
                line.add(end)
        # No endpoint lies inside a gap, so that one look at each gap and each endpoint decides.
        same = all(_holds(gold, at, line) == _holds(answer, at, line) for at in line.places())
    except NoSet:
        return False
    return same if line.is_certain or not same else None


def conditions_of(tree: Tree) -> Tree:
    r"""Returns the conditions of a set: \{x \in R \mid x > 2\} is x > 2 for a name of its own.

    Other trees stay as they are.
    """
    if tree[0] != "those":
        return tree
    _, element, condition = tree
    conditions = list(condition[1:]) if condition[0] == "list" else [condition]
    name = element
    if element[0] == "chain":
        name = element[1][0]
        if element[1][1] not in (REALS, ("sym", "R")):
            conditions.append(element)
    if name[0] == "sym":
        conditions = [substituted(one, name[1], BOUND) for one in conditions]
    return conditions[0] if len(conditions) == 1 else ("list", *conditions)


def _position(tree: Tree) -> float:
    if tree == _INFINITY:
        return math.inf
    return -math.inf if tree == ("neg", _INFINITY) else float_of(tree)


def _solved(tree: Tree, judge: Judge) -> tuple[Tree, str | None]:
    """Returns the set in intervals and points, with each inequality solved, and the name of its variable."""
    tree = conditions_of(tree)
    if tree[0] == "chain":
        found, name = solution(tree, judge)
        found = _WHOLE.get(found, found)
        if found == _NATURALS:  # 0 counts as one, as in ISO 80000-2
            found = ("inter", _INTEGERS, ("tuple", "[", ")", ("num", Fraction(0)), _INFINITY))
        return found, name
    if tree[0] not in ("union", "inter", "minus", "list"):
        return _WHOLE.get(tree, tree), None
    if tree[0] == "list" and not any(part[0] in _WITH_SETS for part in tree[1:]):
        return ("set", *tree[1:]), None
    parts, names = [], set[str]()
    for part in tree[1:]:
        if tree[0] == "list" and part[0] not in _WITH_SETS and parts:
            part = _repeated(tree[1], part)  # x \ne 1, 2
        solved, name = _solved(part, judge)
        parts.append(solved)
        names |= {name} - {None}  # type: ignore[operator]
    if len(names) > 1:
        raise NoSet("conditions on two variables")
    kind, is_joined = tree[0], tree[0] == "list" and any(part[0] == "chain" for part in tree[1:])
    if is_joined:
        kind = _joined(parts, judge)
    elif kind == "list":
        kind = "union"
    return _with_integers((kind, *parts), judge), next(iter(names), None)


def _repeated(condition: Tree, value: Tree) -> Tree:
    """Returns the first condition of a list with another value: of `x \\ne 1, 2`, the second is x \\ne 2."""
    if condition[0] != "chain" or condition[2] != ("!=",):
        raise NoSet("a value among conditions")
    return ("chain", (condition[1][0], value), ("!=",))


def _joined(parts: list[Tree], judge: Judge) -> str:
    """Returns how a list of conditions is meant: all hold, as in `x > 2, x \\ne 3`, unless no number fulfils them all.

    A comma is written for both: `x < 1, x > 3` can only mean a union.
    """
    if any(part == _INTEGERS or _INTEGERS in part for part in parts):
        return "inter"
    line = _Line(judge)
    for part in parts:
        for end in _ends(part):
            line.add(end)
    return "inter" if any(all(_holds(part, at, line) for part in parts) for at in line.places()) else "union"


def _with_integers(tree: Tree, judge: Judge) -> Tree:
    """Returns the integers between two bounds as a set of numbers; other trees as they are."""
    if tree[0] == "inter":  # integers and positive, and below 4: one intersection
        tree = ("inter", *(leaf for part in tree[1:] for leaf in (part[1:] if part[0] == "inter" else (part,))))
    if tree[0] != "inter" or _INTEGERS not in tree[1:]:
        return tree
    others = ("inter", *(part for part in tree[1:] if part != _INTEGERS))
    ends = [_position(end) for end in _ends(others)]
    finite = [end for end in ends if not math.isinf(end)]
    if not finite or max(finite) - min(finite) > MAX_INTEGERS:
        raise NoSet("integers without bounds")
    whole = [("num", Fraction(number)) for number in range(math.ceil(min(finite)), math.floor(max(finite)) + 1)]
    line = _Line(judge)
    for end in (*_ends(others), *whole):
        line.add(end)
    # Beyond the last endpoint there would be no end of integers.
    if _holds(others, 0, line) or _holds(others, 2 * len(line.values), line):
        raise NoSet("integers without bounds")
    return ("set", *(number for number in whole if _holds(others, line.place(number), line)))


def _ends(tree: Tree) -> Iterator[Tree]:
    if tree[0] == "tuple" and len(tree) == 5:
        if tree[1:3] != ("[", "]") and _position(tree[3]) >= _position(tree[4]):
            raise NoSet("a pair of numbers, or an interval without numbers")
        yield from tree[3:]
    elif tree[0] in ("union", "inter", "minus"):
        for part in tree[1:]:
            yield from _ends(part)
    elif tree[0] == "set":
        yield from tree[1:]
    elif tree != REALS:
        raise NoSet(f"{tree[0]} is no set")


def _holds(tree: Tree, at: int, line: _Line) -> bool:
    """Returns whether the set has the place `at` on the line in it."""
    kind = tree[0]
    if kind == "tuple":
        low, high = line.place(tree[3]), line.place(tree[4])
        return low < at < high or (at == low and tree[1] == "[") or (at == high and tree[2] == "]")
    if kind == "union":
        return any(_holds(part, at, line) for part in tree[1:])
    if kind == "inter":
        return all(_holds(part, at, line) for part in tree[1:])
    if kind == "minus":
        return _holds(tree[1], at, line) and not _holds(tree[2], at, line)
    return tree == REALS or (kind == "set" and any(at == line.place(element) for element in tree[1:]))
