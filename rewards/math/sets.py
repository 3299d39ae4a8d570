"""Sets of real numbers: intervals, points, inequalities, unions, intersections and differences of them.

Two sets are equal if they hold the same of all their endpoints and of the gaps between these.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from rewards.math.judge import Judge
from rewards.math.parse import Tree
from rewards.math.text import Explodes
from rewards.math.value import FLOATS, Evaluation, Undefined, variables

_REALS = ("sym", "\\mathbbR")
_INFINITY = ("sym", "\\infty")
_SMALLER = {"<": False, "<=": True}
_LARGER = {">": False, ">=": True}
CLOSE = 1e-9
"""Relative: endpoints closer than that are compared by the judge."""


class NoSet(ValueError):
    """A tree that is not a set of real numbers with constant endpoints."""


@dataclass(slots=True)
class _Line:
    """The endpoints of two sets in order. A place is 2 i + 1 for endpoint i, and even for the gaps between."""

    judge: Judge
    values: list[float] = field(default_factory=list)
    trees: list[Tree] = field(default_factory=list)
    is_certain: bool = True

    def add(self, tree: Tree) -> None:
        value = _position(tree)
        if abs(value) == float("inf"):
            return
        for other, known in zip(self.values, self.trees, strict=True):
            if abs(value - other) <= CLOSE * max(abs(value), abs(other)):
                verdict = self.judge.equal(known, tree)
                if verdict is False:
                    raise NoSet("two endpoints that only many digits tell apart")
                self.is_certain &= verdict is True
                return
        at = sum(other < value for other in self.values)
        self.values.insert(at, value)
        self.trees.insert(at, tree)

    def place(self, tree: Tree) -> int:
        value = _position(tree)
        if abs(value) == float("inf"):
            return -1 if value < 0 else 2 * len(self.values) + 1
        distances = [abs(value - other) for other in self.values]
        return 2 * distances.index(min(distances)) + 1


def same_set(gold: Tree, answer: Tree, judge: Judge) -> bool | None:
    """Whether two trees are the same set of reals; False if either is no set, None if the judge cannot tell."""
    if any(len(variables(tree)) > 1 for tree in (gold, answer)):
        return False
    try:
        line = _Line(judge)
        for tree in (gold, answer):
            for end in _ends(tree):
                line.add(end)
        same = all(_holds(gold, at, line) == _holds(answer, at, line) for at in range(2 * len(line.values) + 1))
    except NoSet:
        return False
    return same if line.is_certain or not same else None


def _position(tree: Tree) -> float:
    if tree == _INFINITY:
        return float("inf")
    if tree == ("neg", _INFINITY):
        return float("-inf")
    try:
        value = Evaluation(arithmetic=FLOATS)(tree)
    except (Undefined, Explodes, OverflowError, TypeError, ZeroDivisionError) as error:
        raise NoSet(f"the endpoint: {error}") from error
    if abs(value.imag) > 1e-12 * max(abs(value), 1.0):
        raise NoSet("a complex endpoint")
    return value.real


def _inequality(tree: Tree) -> Iterator[tuple[Any, Tree]]:
    """The bounds on the one variable of `-2 <= x < 7`, each as `x < end`."""
    if "=" in tree[2] or "~" in tree[2]:
        raise NoSet("an equation")
    names = [at for at, member in enumerate(tree[1]) if member[0] == "sym" and variables(member)]
    if len(names) != 1 or any(variables(member) for at, member in enumerate(tree[1]) if at not in names):
        raise NoSet("no inequality in one variable alone")
    mirrored: dict[str, str] = {"<": ">", ">": "<", "<=": ">=", ">=": "<="}
    directions = {relation[0] for relation in tree[2]}
    if len(directions) > 1 or abs(2 * names[0] - len(tree[1]) + 1) > 1 or len(tree[1]) > 3:
        raise NoSet("a chain of inequalities without one variable in the middle")
    for at, relation in enumerate(tree[2]):
        if at == names[0]:
            yield relation, tree[1][at + 1]
        else:
            yield mirrored.get(relation, relation), tree[1][at]


def _ends(tree: Tree) -> Iterator[Tree]:
    if tree[0] == "tuple" and len(tree) == 5:
        if tree[1:3] != ("[", "]") and _position(tree[3]) >= _position(tree[4]):
            raise NoSet("a pair of numbers, or an interval without numbers")
        yield from tree[3:]
    elif tree[0] == "chain":
        if tree[2] == ("in",):
            yield from _ends(tree[1][1])
        else:
            yield from (end for _, end in _inequality(tree))
    elif tree[0] in ("union", "inter", "minus", "list"):
        for part in tree[1:]:
            yield from _ends(part)
    elif tree[0] == "set":
        yield from tree[1:]
    elif tree != _REALS:
        raise NoSet(f"{tree[0]} is no set")


def _holds(tree: Tree, at: int, line: _Line) -> bool:
    """Whether the set has the place `at` on the line in it."""
    kind = tree[0]
    if kind == "tuple":
        low, high = line.place(tree[3]), line.place(tree[4])
        return low < at < high or (at == low and tree[1] == "[") or (at == high and tree[2] == "]")
    if kind == "chain":
        if tree[2] == ("in",):
            return _holds(tree[1][1], at, line)
        return all(_fulfils(at, relation, line.place(end)) for relation, end in _inequality(tree))
    if kind in ("union", "list"):
        return any(_holds(part, at, line) for part in tree[1:])
    if kind == "inter":
        return all(_holds(part, at, line) for part in tree[1:])
    if kind == "minus":
        return _holds(tree[1], at, line) and not _holds(tree[2], at, line)
    return tree == _REALS or (kind == "set" and any(at == line.place(element) for element in tree[1:]))


def _fulfils(at: int, relation: str, end: int) -> bool:
    if relation in _SMALLER:
        return at < end or (at == end and _SMALLER[relation])
    if relation in _LARGER:
        return at > end or (at == end and _LARGER[relation])
    if relation == "!=":
        return at != end
    raise NoSet(f"the relation {relation}")
