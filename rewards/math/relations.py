"""Compares equations, inequalities and sets with a condition, with each other and with values."""

from __future__ import annotations

from fractions import Fraction
from typing import TYPE_CHECKING

from rewards.math.expressions import Tree
from rewards.math.inequalities import NoSet, float_of
from rewards.math.lists import same_in_order
from rewards.math.names import is_name, is_sought, named_values, states_value
from rewards.math.notation import ANSWERS
from rewards.math.numerals import worth
from rewards.math.sets import BOUND, conditions_of, same_set
from rewards.math.value import substituted, variables, walk

if TYPE_CHECKING:
    from rewards.math.compare import Comparison

_MIRRORED = {"<": ">", ">": "<", "<=": ">=", ">=": "<=", "=": "=", "!=": "!="}
_EQUAL = frozenset(("=", "~", "mod"))


def same_relation(gold: Tree, answer: Tree, rules: Comparison) -> bool | None:
    """Returns whether two answers say the same, at least one of them a chain of relations or a set with a condition."""
    if "those" in (gold[0], answer[0]):
        if gold[0] == answer[0] and gold[1][0] not in ("sym", "chain"):
            return same_those(gold, answer, rules)
        if any(tree[0] == "those" and tree[1][0] not in ("sym", "chain") for tree in (gold, answer)):
            return False  # a set of points, and no value that its condition states
        gold, answer = conditions_of(gold), conditions_of(answer)
        verdict = rules.equal(gold, answer)
        found = verdict or same_set(gold, answer, rules.judge)
        return verdict if found is False else found
    if gold[0] == answer[0]:
        return _same_chains(gold, answer, rules)
    chain, other = (gold, answer) if gold[0] == "chain" else (answer, gold)
    if (points := _points(chain, other)) is not None:
        return same_in_order(*(points if chain is gold else points[::-1]), rules=rules)
    if chain[2] == ("in",):
        return rules.equal(*((chain[1][1], answer) if chain is gold else (gold, chain[1][1])))
    if not _EQUAL.issuperset(chain[2]):
        return same_set(gold, answer, rules.judge)
    stated = value_of(chain, rules, is_decimal=any(node[0] == "dec" for node in walk(other)))
    left = chain[1][0]
    if stated is None:
        return False
    # 4x - 5y = -50 and x - 3z = 0 are planes, not numbers; but an answer a + b = 6 states the value of a sum.
    is_sum = len(variables(left)) > 1 if chain is answer else is_sought(left)
    is_sum &= stated != ("num", Fraction(0))
    if not (states_value(left, stated) or is_sum or stated == left or not variables(left)):
        return False
    return rules.equal(*((stated, answer) if chain is gold else (gold, stated)))


def _points(chain: Tree, other: Tree) -> tuple[list[Tree], list[Tree]] | None:
    """Returns the values of (p, q) = (3, 2) and of q = 2, p = 3 in one order; None for anything else."""
    names, values = chain[1][0], named_values(other)
    if names[0] != "tuple" or values is None or chain[2] != ("=",) or chain[1][1][0] != "tuple":
        return None
    points = chain[1][1][3:]
    if sorted(map(repr, values)) != sorted(map(repr, names[3:])) or len(points) != len(values):
        return None
    return list(points), [values[name] for name in names[3:]]


def same_those(gold: Tree, answer: Tree, rules: Comparison) -> bool | None:
    r"""Returns whether two sets such as \{2k + 1 \mid k \in Z\} have the same elements under the same condition."""
    names, others = sorted(variables(gold[1])), sorted(variables(answer[1]))
    if len(names) == len(others) == 1:
        answer = substituted(answer, others[0], ("sym", names[0]))
    element = rules.equal(gold[1], answer[1])
    return element and rules.equal(gold[2], answer[2])


def value_of(chain: Tree, rules: Comparison, is_decimal: bool = False) -> Tree | None:
    """Returns what x is by `x = 2 + 3 = 5`; None if the chain contradicts itself or says nothing of a value."""
    members, relations = chain[1], chain[2]
    # Behind an approximation sign stands no exact value: x = \sqrt{2} ~ 1.41 states the root.
    exact = 1 + next((at for at, relation in enumerate(relations) if relation == "~"), len(relations))
    has_name = _is_open(members[0])
    stated = members[:exact][1 if has_name else 0 :]
    if has_name and stated and not _is_open(stated[-1]):  # AB = AC = 5, S = ab/2 = 6
        stated = tuple(member for member in stated if not _names_too(member, members[0]))
    if not stated:
        stated = members[1:2]  # x ~ 3.14
    elif is_decimal and exact < len(members):
        return members[-1]
    if not has_name and len(members) == 2 and _is_open(members[1]) and is_name(members[1]) and members[1][0] != "mul":
        return members[0]  # 5 = x
    if any(rules.equal(worth(stated[0]), worth(member)) is False for member in stated[1:]):
        return None
    if any(not _is_about(*members[at : at + 2]) for at, relation in enumerate(relations) if relation == "~"):
        return None
    return stated[-1]


def _is_open(tree: Tree) -> bool:
    return bool(variables(tree)) or any(node[0] in ("text", "app") for node in walk(tree))


def _names_too(member: Tree, name: Tree) -> bool:
    """Returns whether a member between a name and its value is another name, or a formula for the value."""
    return _is_open(member) and (is_name(member) or variables(member).isdisjoint(variables(name)))


def _is_about(value: Tree, near: Tree) -> bool:
    """Returns whether a value is near another to the last digit that is written, as 1.414 and 1.41 are.

    What no float can be, such as a name, may be anything.
    """
    if near[0] == "unit" and value[0] in ("unit", near[1][0]):
        value, near = (value[1] if value[0] == "unit" else value), near[1]
    try:
        size, other = float_of(value), float_of(near)
    except NoSet:
        return True
    step = _last_place(near) or _last_place(value) or 0.1 * max(abs(size), abs(other))
    return abs(size - other) < step or size == other


def _last_place(tree: Tree) -> float | None:
    """Returns what one more in the last digit would add: 0.01 for 1.41, and 100 for 1200; None for no numeral."""
    if tree[0] == "pct":
        return None if (step := _last_place(tree[1])) is None else step / 100
    if tree[0] not in ("num", "dec") or not tree[1]:
        return None
    return next(
        (10.0**-places for places in range(-12, 30) if (tree[1] * Fraction(10) ** places).denominator == 1), None
    )


def _same_chains(gold: Tree, answer: Tree, rules: Comparison) -> bool | None:
    if gold[2] == answer[2] == ("in",):
        names = gold[1][0], answer[1][0]
        is_other = all(name[0] == "sym" for name in names) and names[0] != names[1] and ("sym", BOUND[1]) not in names
        return False if is_other else rules.equal(gold[1][1], answer[1][1])
    if _EQUAL.issuperset(gold[2] + answer[2]):
        return _same_equations(gold, answer, rules)
    for chain, other, turned in ((gold, answer, False), (answer, gold, True)):
        if chain[2] == ("=",) and is_name(chain[1][0]) and chain[1][1][0] in ("tuple", "union", "inter", "minus"):
            sides = (chain[1][1], other)  # A \cap B = (0, 3) and 0 < x < 3
            return rules.equal(*(sides[::-1] if turned else sides))
    if len(gold[2]) == len(answer[2]) == 1 and gold[2][0] in _MIRRORED and answer[2][0] in _MIRRORED:
        return _same_inequality(gold, answer, rules)
    # A chain may be written from either end: a < b < c is c > b > a.
    for members, relations in (
        (answer[1], answer[2]),
        (answer[1][::-1], tuple(_MIRRORED.get(relation, relation) for relation in answer[2][::-1])),
    ):
        if relations == gold[2]:
            verdict = same_in_order(gold[1], members, rules)
            if verdict is not False:
                return verdict
    return same_set(gold, answer, rules.judge)


def _same_inequality(gold: Tree, answer: Tree, rules: Comparison) -> bool | None:
    """Returns whether one side less the other is the same up to a factor, whose sign may turn the relation."""
    signs = {1: answer[2][0], -1: _MIRRORED[answer[2][0]]}
    if gold[2][0] in signs.values():
        ratio = rules.judge.ratio(minus(*gold[1]), minus(*answer[1]))
        if ratio is None or signs.get(ratio) == gold[2][0]:
            return None if ratio is None else True
    return same_set(gold, answer, rules.judge)


def _same_equations(gold: Tree, answer: Tree, rules: Comparison) -> bool | None:
    left, right = gold[1][0], gold[1][-1]
    other_left, other_right = answer[1][0], answer[1][-1]
    if len(answer[1]) > 2 and value_of(answer, rules) is None:  # x = 7 = 11 contradicts itself
        return False
    if is_name(left) and is_name(other_left):
        if left[0] == other_left[0] == "app":
            if left[1] != other_left[1]:
                return False  # f(x) is not g(x)
            if left[2] != other_left[2] and not left[2][0] == other_left[2][0] == "sym":
                return False  # f(2) is not f(3), but f(x) and f(t) are one function
            return rules.equal(right, _with_name(other_right, other_left[2], left[2]))
        if left == other_left or "app" in (left[0], other_left[0]):
            return rules.equal(right, other_right)
        if left[0] == other_left[0] == right[0] == other_right[0] == "tuple":
            values = dict(zip(other_left[3:], other_right[3:], strict=False))
            if values.keys() != set(left[3:]) or len(right) != len(other_right):
                return False
            return same_in_order(right[3:], [values[name] for name in left[3:]], rules)  # (a, b) and (b, a)
    if left[0] == other_left[0] == "ratio" and len(left) == len(other_left) == 3:
        left, other_left = ("div", *left[1:]), ("div", *other_left[1:])
        right, other_right = _quotient(right), _quotient(other_right)
    if any(part[0] in ANSWERS for part in (left, right, other_left, other_right)):
        return same_in_order((left, right), (other_left, other_right), rules)
    # Two equations are the same if, with all on one side, they differ by a factor: y = 2x + 1 is 4x - 2y + 2 = 0.
    ratio = rules.judge.ratio(_cleared(left, right), _cleared(other_left, other_right))
    return None if ratio is None else ratio != 0


def _with_name(tree: Tree, name: Tree, new: Tree) -> Tree:
    return substituted(tree, name[1], new) if name[0] == new[0] == "sym" and name != new else tree


def _quotient(tree: Tree) -> Tree:
    return ("div", *tree[1:]) if tree[0] == "ratio" and len(tree) == 3 else tree


def minus(left: Tree, right: Tree) -> Tree:
    """Returns left - right."""
    return ("add", left, ("neg", right))


def _cleared(left: Tree, right: Tree) -> Tree:
    """Returns left - right without denominators, so that y = 1/x is xy = 1."""
    (top, bottom), (other_top, other_bottom) = _fraction(left), _fraction(right)
    return minus(("mul", top, other_bottom), ("mul", other_top, bottom))


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
