"""Solves inequalities for their one variable: 3 < 2x + 1 <= 7 is (1, 3], |x| < 3 is (-3, 3), x^2 > 4 is a union.

What is solved is linear or quadratic, or the absolute value of something linear. Anything else that stands between
constants, such as f(x), P(A) or a + b, is a name: 0 < f(x) < 2 is (0, 2).
"""

from __future__ import annotations

from fractions import Fraction

from rewards.math.expressions import Tree
from rewards.math.judge import Judge
from rewards.math.notation import INEQUALITIES
from rewards.math.text import Explodes
from rewards.math.value import FLOATS, Evaluation, Undefined, exact, folded, substituted, variables, walk

BOUND = ("sym", "bound")
"""The variable of a set with a condition: what it is called there does not matter."""
REALS = ("sym", "\\mathbbR")
_INFINITY = ("sym", "\\infty")
_EVERYTHING = ("tuple", "(", ")", ("neg", _INFINITY), _INFINITY)
_TURNED = {"<": ">", ">": "<", "<=": ">=", ">=": "<="}
_ZERO, _ONE = ("num", Fraction(0)), ("num", Fraction(1))


class NoSet(ValueError):
    """A tree that is not a set of real numbers with constant endpoints."""


def solution(chain: Tree, judge: Judge) -> tuple[Tree, str | None]:
    """Returns the set of the values that fulfil a chain of relations, and the name of their variable; raises NoSet."""
    members, relations = chain[1], chain[2]
    if relations == ("in",):
        return members[1], _name(members[:1])
    if relations == ("notin",):
        return ("minus", REALS, members[1]), _name(members[:1])
    if not INEQUALITIES.issuperset(relations) and relations != ("=",):
        raise NoSet("a relation that no range of values fulfils")
    if len({relation[0] for relation in relations} - {"!"}) > 1:
        raise NoSet("a chain of relations that turns round")
    parts = []
    for left, relation, right in zip(members, relations, members[1:], strict=False):
        parts.append(_solved(left, relation, right, judge))
    return (parts[0] if len(parts) == 1 else ("inter", *parts)), _name(members)


def float_of(tree: Tree) -> float:
    """Returns the value of a constant; raises NoSet where it has none that is real."""
    try:
        value = Evaluation(arithmetic=FLOATS)(tree)
    except (Undefined, Explodes, OverflowError, TypeError, ZeroDivisionError) as error:
        raise NoSet(f"the endpoint: {error}") from error
    if abs(value.imag) > 1e-12 * max(abs(value), 1.0):
        raise NoSet("a complex endpoint")
    return value.real


def _name(members: tuple[Tree, ...]) -> str:
    """Returns what the relations are about: a variable, or the text of what serves as a name."""
    named = [member for member in members if _has_name(member)]
    names = {name for member in named for name in variables(member)}
    if len(names) == 1 and not any(node[0] == "app" for member in named for node in walk(member)):
        return names.pop()
    if len(named) != 1:
        raise NoSet("two names")
    return f"({named[0]!r})"


def _has_name(tree: Tree) -> bool:
    return bool(variables(tree)) or any(node[0] == "app" for node in walk(tree))


def _solved(left: Tree, relation: str, right: Tree, judge: Judge) -> Tree:
    """Returns the set of the values that fulfil one relation."""
    if not _has_name(left):
        left, relation, right = right, _TURNED.get(relation, relation), left
    if not _has_name(left):
        raise NoSet("a relation between constants")
    names = variables(left) | variables(right)
    if _has_name(right) and len(names) > 1:
        raise NoSet("two names")
    if left[0] == "sym" and not _has_name(right):
        return _bounded(relation, right)
    # Of f(x), P(A) or a + b nobody can say for which x they are in a range, so the range is theirs.
    if len(names) != 1 or any(node[0] == "app" for node in walk(left)):
        return _bounded(relation, right)
    name = next(iter(names))
    if left[0] == "abs" and not _has_name(right):
        return _of_absolute_value(left[1], relation, right, judge)
    return _of_polynomial(("add", left, ("neg", right)), name, relation, judge)


def _bounded(relation: str, end: Tree) -> Tree:
    """Returns the values that stand in a relation to a constant: all x with x < 3 are (-infinity, 3)."""
    if relation == "=":
        return ("set", end)
    if relation == "!=":
        return ("minus", REALS, ("set", end))
    bracket = relation.endswith("=")
    if relation[0] == "<":
        return ("tuple", "(", "]" if bracket else ")", ("neg", _INFINITY), end)
    return ("tuple", "[" if bracket else "(", ")", end, _INFINITY)


def _of_absolute_value(inside: Tree, relation: str, end: Tree, judge: Judge) -> Tree:
    """Returns the solutions of |u| < 3, which are those of -3 < u and u < 3, or of |u| > 3: u < -3 or u > 3."""
    opposite = ("neg", end)
    if relation in ("=", "!=") and float_of(end) < 0:
        return ("set",) if relation == "=" else _EVERYTHING
    if relation == "!=":
        return ("inter", _solved(inside, "!=", end, judge), _solved(inside, "!=", opposite, judge))
    kind = "inter" if relation[0] == "<" else "union"
    turned = _TURNED.get(relation, relation)
    return (kind, _solved(inside, relation, end, judge), _solved(inside, turned, opposite, judge))


def _of_polynomial(tree: Tree, name: str, relation: str, judge: Judge) -> Tree:
    """Returns the values for which a x^2 + b x + c stands in the relation to 0."""
    at = {number: substituted(tree, name, ("num", Fraction(number))) for number in (-1, 0, 1)}
    half, both = ("num", Fraction(1, 2)), ("add", at[1], at[-1])
    try:
        c = folded(at[0])
        a = folded(("add", ("mul", half, both), ("neg", c)))
        b = folded(("mul", half, ("add", at[1], ("neg", at[-1]))))
    except (Undefined, Explodes) as error:
        raise NoSet(f"a value of the formula: {error}") from error
    x = ("sym", name)
    # Three values make a parabola; that the formula is this parabola everywhere is for the judge to say.
    parabola = ("add", ("mul", a, ("mul", x, x)), ("mul", b, x), c)
    if judge.equal(tree, parabola) is not True:
        raise NoSet("an inequality that is neither linear nor quadratic")
    if judge.equal(a, _ZERO) is True:  # it is a line: a negative slope turns the sign round
        slope = float_of(b)
        if slope == 0:
            raise NoSet("an inequality without its variable")
        return _bounded(_TURNED.get(relation, relation) if slope < 0 else relation, folded(("div", ("neg", c), b)))
    below = ("add", ("mul", b, b), ("mul", ("num", Fraction(-4)), ("mul", a, c)))
    return _of_parabola(a, b, folded(below), relation)


def _of_parabola(a: Tree, b: Tree, discriminant: Tree, relation: str) -> Tree:
    if float_of(a) < 0:
        a, b, relation = ("neg", a), ("neg", b), _TURNED.get(relation, relation)
    size = float_of(discriminant)
    is_touching = exact(discriminant, {}) == 0
    if not is_touching and abs(size) < 1e-9:
        raise NoSet("two roots that only many digits tell apart")
    root = ("root", discriminant, ("num", Fraction(2)))
    ends = [("num", Fraction(0))] if size < 0 else [
        folded(("div", ("add", ("neg", b), sign), ("mul", ("num", Fraction(2)), a))) for sign in (("neg", root), root)
    ]  # fmt: skip
    if size < 0 and not is_touching:  # it is positive everywhere
        return _EVERYTHING if relation in (">", ">=", "!=") else ("set",)
    if relation in ("=", "!="):
        return ("set", *ends) if relation == "=" else ("minus", REALS, ("set", *ends))
    if relation[0] == "<":
        return ("inter", _bounded(_TURNED[relation], ends[0]), _bounded(relation, ends[1]))
    return ("union", _bounded(_TURNED[relation], ends[0]), _bounded(relation, ends[1]))
