"""Compares lists, sets, tuples, matrices and cases: some in order, some in any order, some as sets of numbers."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import TYPE_CHECKING

from rewards.math.expressions import Tree
from rewards.math.inequalities import NoSet, float_of
from rewards.math.names import are_numbered, named_values, roots
from rewards.math.sets import CLOSE, same_set
from rewards.math.units import named_thing, read_unit
from rewards.math.value import substituted, variables

if TYPE_CHECKING:
    from rewards.math.compare import Comparison

COLLECTIONS = ("list", "set", "tuple", "matrix", "union", "inter", "minus")
MAX_PAIRS = 50
"""Longer lists that do not hold constants alone are compared in order: each pair takes a verdict of its own."""
FEW = 5
"""Members of a list that is not worth sorting."""
_OTHERWISE = (("text", "otherwise"), ("text", "else"))
_INFINITE = (("sym", "\\infty"), ("neg", ("sym", "\\infty")))


def merged(tree: Tree) -> Tree:
    """Returns a union of sets that list their members as one such set, and R - {1} as a difference.

    Other trees stay as they are.
    """
    if tree[0] == "add" and len(tree) == 3 and tree[2][0] == "neg" and tree[2][1][0] == "set":
        return ("minus", tree[1], tree[2][1])
    if tree[0] != "union":
        return tree
    parts = [merged(part) for part in tree[1:]]
    if any(part[0] != "set" for part in parts):
        return ("union", *parts)
    return ("set", *(member for part in parts for member in part[1:]))


def is_interval(tree: Tree) -> bool:
    """Returns whether a pair in brackets can only be an interval: [1, 4], (1, 4] or (0, infinity), but not (1, 4)."""
    is_pair = tree[0] == "tuple" and len(tree) == 5
    return is_pair and (tree[1:3] != ("(", ")") or not {tree[3], tree[4]}.isdisjoint(_INFINITE))


def same_collection(gold: Tree, answer: Tree, rules: Comparison) -> bool | None:
    """Returns whether two answers are the same, one of them at least a collection."""
    kinds = (gold[0], answer[0])
    if "matrix" in kinds:
        return _same_matrix(gold, answer, rules)
    # (1, 2) may be a point or an open interval; written alike, both are the same either way.
    if kinds == ("tuple", "tuple"):
        return gold[1:3] == answer[1:3] and same_in_order(gold[3:], answer[3:], rules)
    if kinds in (("list", "tuple"), ("tuple", "list")):
        bare, bracketed = (gold, answer) if kinds[0] == "list" else (answer, gold)
        # A list may leave the brackets of a point out, but [1, 4] holds more than 1 and 4.
        if is_interval(bracketed):
            return same_set(gold, answer, rules.judge) if _holds_chains(bare) else False
        named = named_values(bare)
        values = bare[1:] if named is None else tuple(named.values())
        if bracketed[1:3] in (("(", ")"), ("[", "]")) and not any(part[0] == "chain" for part in values):
            return same_in_order(*((values, answer[3:]) if bare is gold else (gold[3:], values)), rules=rules)
    if set(kinds) <= {"list", "set"}:
        return _same_lists(gold, answer, rules)
    if kinds[0] == "set" and len(gold) == 2 and (kinds[1] not in COLLECTIONS or _are_points(gold[1], answer)):
        return rules.equal(gold[1], answer)
    if kinds[1] == "set" and len(answer) == 2 and (kinds[0] not in COLLECTIONS or _are_points(gold, answer[1])):
        return rules.equal(gold, answer[1])
    if kinds[0] == kinds[1] and same_in_order(*_operands(gold, answer), rules=rules):
        return True  # A \cup B
    if not {"union", "inter", "minus"}.isdisjoint(kinds):
        # One number against an intersection or difference of sets is the set of that number.
        gold, answer = (tree if tree[0] in (*COLLECTIONS, "sym") else ("set", tree) for tree in (gold, answer))
    return same_set(gold, answer, rules.judge)


def _are_points(gold: Tree, answer: Tree) -> bool:
    return all(tree[0] == "tuple" and tree[1:3] == ("(", ")") and not is_interval(tree) for tree in (gold, answer))


def _operands(gold: Tree, answer: Tree) -> tuple[Sequence[Tree], Sequence[Tree]]:
    """Returns the operands of two unions, intersections or differences, those of the former in one order."""
    if gold[0] == "minus":
        return gold[1:], answer[1:]
    return sorted(gold[1:], key=repr), sorted(answer[1:], key=repr)


def _same_matrix(gold: Tree, answer: Tree, rules: Comparison) -> bool | None:
    if gold[0] == answer[0]:
        if [len(row) for row in gold[1:]] != [len(row) for row in answer[1:]]:
            return False
        return same_in_order(sum(gold[1:], ()), sum(answer[1:], ()), rules)
    matrix, other = (gold, answer) if gold[0] == "matrix" else (answer, gold)
    if other[:3] != ("tuple", "(", ")") or any(len(row) != 1 for row in matrix[1:]):
        return False
    column = tuple(row[0] for row in matrix[1:])
    return same_in_order(*((column, answer[3:]) if matrix is gold else (gold[3:], column)), rules=rules)


def _same_lists(gold: Tree, answer: Tree, rules: Comparison) -> bool | None:
    answer = _with_parameter(answer, _parameter(answer), _parameter(gold))
    if gold[0] == answer[0] == "set":
        return same_members(_distinct(gold[1:], rules), _distinct(answer[1:], rules), rules)
    if all(part[0] == "tuple" for part in (*gold[1:], *answer[1:])):  # solutions, of which none counts twice
        return same_members(_distinct(gold[1:], rules), _distinct(answer[1:], rules), rules)
    if (solved := roots(gold)) and (others := roots(answer)) and solved[0] == others[0]:
        return same_members(solved[1], others[1], rules)
    if counted := _counted(gold, answer):
        return same_in_order(*counted, rules=rules)
    values, others = named_values(gold), named_values(answer)
    # Names fix an order for the values that they name, unless they only number the roots of one equation.
    if (values is None) != (others is None) and not _holds_chains(gold if values is None else answer):
        # x = 1, y = 2 and 1, 2
        sides = [tuple(gold[1:] if values is None else values.values())]
        sides.append(tuple(answer[1:] if others is None else others.values()))
        compare = same_members if are_numbered(values or others or {}) else same_in_order
        return compare(*sides, rules=rules)
    if values and others and are_numbered(values) and are_numbered(others):
        return same_members(tuple(values.values()), tuple(others.values()), rules)
    verdict = same_members(gold[1:], answer[1:], rules)
    is_set = any(part[0] in ("chain", "tuple") for part in (*gold[1:], *answer[1:]))
    return same_set(gold, answer, rules.judge) if verdict is False and is_set else verdict


def _parameter(tree: Tree) -> str | None:
    r"""Returns the letter that stands for all integers in `x = k\pi, k \in Z`, or None."""
    chains = [part for part in tree[1:] if part[0] == "chain" and part[2] == ("in",)]
    return chains[0][1][0][1] if len(chains) == 1 and chains[0][1][0][0] == "sym" else None


def _with_parameter(tree: Tree, name: str | None, new: str | None) -> Tree:
    return tree if None in (name, new) or name == new else substituted(tree, str(name), ("sym", new))


def _holds_chains(tree: Tree) -> bool:
    return any(part[0] == "chain" for part in tree[1:])


def _counted(gold: Tree, answer: Tree) -> tuple[Sequence[Tree], Sequence[Tree]] | None:
    """Returns both sides in the order of the gold, if they count things by name, such as chickens; else None."""
    things = [[_thing(part) for part in tree[1:]] for tree in (gold, answer)]
    counts = [None not in names and len(set(names)) == len(names) > 1 for names in things]
    if not any(counts) or any(_is_measured(part) for part in (*gold[1:], *answer[1:])):
        return None
    if all(counts) and sorted(map(str, things[0])) == sorted(map(str, things[1])):
        return gold[1:], [answer[1:][things[1].index(name)] for name in things[0]]
    return gold[1:], answer[1:]


def _thing(part: Tree) -> str | None:
    """Returns what a part of a list counts: chickens in `12 chickens` and in `chickens: 12`.

    Returns None if it does not say.
    """
    if part[0] == "chain" and part[2] == ("=",) and part[1][0][0] == "text":
        return named_thing(part[1][0][1])
    return named_thing(part[2]) if part[0] == "unit" else None


def _is_measured(part: Tree) -> bool:
    return part[0] == "unit" and read_unit(part[2]).dimension is not None


def same_in_order(gold: Sequence[Tree], answer: Sequence[Tree], rules: Comparison) -> bool | None:
    """Returns whether two lists hold the same, each at its place."""
    if len(gold) != len(answer):
        return False
    unknown = False
    for pair in zip(gold, answer, strict=True):
        verdict = rules.equal(*pair)
        if verdict is False:
            return False
        unknown |= verdict is None
    return None if unknown else True


def same_members(gold: Sequence[Tree], answer: Sequence[Tree], rules: Comparison) -> bool | None:
    """Returns whether two lists hold the same in any order.

    Equality is transitive, so that each element may take the first equal one that is left.
    """
    if len(gold) != len(answer):
        return False
    if len(gold) > FEW and (ordered := _sorted(gold)) and (others := _sorted(answer)):
        return same_in_order(ordered, others, rules)
    if len(gold) > MAX_PAIRS and not all(part[0] == "num" for part in (*gold, *answer)):
        return same_in_order(gold, answer, rules)
    left, unknown = list(answer), False
    for element in gold:
        # An unknown verdict is kept as a partner of last resort; a sure one ends the search.
        found: list[tuple[bool | None, int]] = []
        for at, other in enumerate(left):
            verdict = rules.equal(element, other)
            if verdict is not False:
                found.append((verdict, at))
            if verdict:
                break
        if not found:
            return False
        verdict, at = found[-1]
        unknown |= verdict is None
        left.pop(at)
    return None if unknown else True


def _sorted(members: Sequence[Tree]) -> list[Tree] | None:
    """Returns constants in order of size, so that each has one partner only; None if two are close together."""
    if any(variables(member) or member[0] in ("pct", "deg") for member in members):
        return None
    try:
        pairs = sorted(((float_of(member), at) for at, member in enumerate(members)))
    except NoSet:
        return None
    values = [value for value, _ in pairs]
    if any(right - left <= CLOSE * max(abs(left), abs(right)) for left, right in pairwise(values)):
        return None
    return [members[at] for _, at in pairs]


def _distinct(elements: Sequence[Tree], rules: Comparison) -> list[Tree]:
    if len(elements) > FEW and _sorted(elements):
        return list(elements)  # constants of which no two are close
    kept: list[Tree] = []
    for element in elements:
        if not any(rules.equal(element, other) for other in kept):
            kept.append(element)
    return kept


def same_cases(gold: Tree, answer: Tree, rules: Comparison) -> bool | None:
    """Returns whether two formulas in pieces have the same values under the same conditions, in any order."""
    if gold[0] != answer[0] or len(gold) != len(answer):
        return False
    rests = [[row for row in tree[1:] if row[1] in _OTHERWISE] for tree in (gold, answer)]
    if len(rests[0]) + len(rests[1]) == 1:  # "otherwise" on one side is the row that is left on the other
        rest, rows, others = (rests[0], gold, answer) if rests[0] else (rests[1], answer, gold)
        left = [row for row in others[1:] if not any(rules.equal(row[1], row_[1]) for row_ in rows[1:])]
        if len(left) != 1 or not rules.equal(rest[0][0], left[0][0]):
            return False
        gold, answer = (
            (tree[0], *(row for row in tree[1:] if row not in (rest[0], left[0]))) for tree in (gold, answer)
        )
    pairs = [tuple(("tuple", "(", ")", *row) for row in tree[1:]) for tree in (gold, answer)]
    return same_members(*pairs, rules=rules)
