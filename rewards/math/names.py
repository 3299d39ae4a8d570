"""Recognises what an answer may call its value: x, f(x), |AB|, P(X = 2), a ratio or a quotient such as V_1 : V_2."""

from __future__ import annotations

import re
from fractions import Fraction

from rewards.math.expressions import Tree
from rewards.math.value import variables

_ANGLES = frozenset(("\\sin", "\\cos", "\\tan", "\\cot", "\\sec", "\\csc"))
_ROOT = re.compile(r"([xyzt]|\\alpha|\\lambda)_([0-9]{1,2})")


def is_name(tree: Tree) -> bool:
    """Returns whether a tree names something that can have a value: x, f(x), |AB|, tan x, (x, y), AO/CO, "Area"."""
    kind, parts = tree[0], tree[1:]
    if kind == "tuple":
        return all(part[0] == "sym" for part in tree[3:])
    if kind == "pow":  # the inverse function, the square of a sine, a variance
        return is_name(parts[0]) and (
            parts[1] == ("num", Fraction(-1)) or parts[0][0] == "fn" or parts[0][1] in ("\\sigma", "\\chi")
        )
    if kind == "fn":  # ln x = 5 is to be solved for x
        return tree[1] not in ("\\ln", "\\log", "\\lg", "\\exp") and all(
            is_name(part) or (tree[1] in _ANGLES and variables(part)) or _is_choice(part) for part in tree[2:]
        )
    if kind == "abs" and len(variables(tree)) > 1:
        return True
    if kind == "mul" and parts[1][0] == "pow":  # the square of a side, AB^2
        return parts[1][2] == ("num", Fraction(2)) and all(
            part[0] == "sym" and part[1].isupper() for part in (parts[0], parts[1][1])
        )
    if kind in ("abs", "mul", "div", "ratio", "fact", "inter", "union", "minus"):
        return all(map(is_name, parts))
    return kind in ("sym", "app", "text")


def _is_choice(tree: Tree) -> bool:
    """Returns whether a tree is a set of names, of which the largest or smallest may be meant."""
    return tree[0] == "set" and all(map(is_name, tree[1:]))


def named_values(tree: Tree) -> dict[Tree, Tree] | None:
    """Returns the values of a list of equations, each with a name of its own on the left.

    Returns None for any other list.
    """
    if tree[0] != "list" or any(part[0] != "chain" or part[2] != ("=",) for part in tree[1:]):
        return None
    values = {part[1][0]: part[1][1] for part in tree[1:] if states_value(*part[1])}
    return values if len(values) == len(tree) - 1 else None


def states_value(name: Tree, value: Tree) -> bool:
    """Returns whether an equation states the value of a name: x = 2 does; 2x = 4 and x = x^2 are to be solved first."""
    if not is_name(name):
        return False
    is_derivative = name[0] == "div" and all(part[0] == "mul" and part[1] == ("sym", "d") for part in name[1:])
    return is_derivative or name[0] in ("text", "app") or variables(name).isdisjoint(variables(value))


def are_numbered(names: dict[Tree, Tree]) -> bool:
    """Returns whether the names only number the solutions of one equation, which have no order: x_1, x_2."""
    found = [_ROOT.fullmatch(name[1]) if name[0] == "sym" else None for name in names]
    numbers = [int(match[2]) for match in found if match]
    is_one = len({match[1] for match in found if match}) == 1
    return len(numbers) == len(names) > 1 and is_one and sorted(numbers) == list(range(1, len(numbers) + 1))


def roots(tree: Tree) -> tuple[str, tuple[Tree, ...]] | None:
    """Returns the name and the values of `x = 1 or x = -3` and of `x_1 = 1, x_2 = -3`; None for any other list."""
    if tree[0] != "list" or any(part[0] != "chain" or part[2] != ("=",) for part in tree[1:]):
        return None
    pairs = [part[1] for part in tree[1:]]
    if not all(states_value(*pair) for pair in pairs):
        return None
    names = {name for name, _ in pairs}
    if len(names) == len(pairs) and are_numbered(dict(pairs)):
        names = {("sym", name[1].partition("_")[0]) for name in names}
    name = names.pop()
    return None if names or name[0] != "sym" else (name[1], tuple(value for _, value in pairs))


def is_sought(tree: Tree) -> bool:
    """Returns whether a gold can be the value of this side: of a + b, f(1) + f(2) or a root.

    x + y = 7 and x^2 + y^2 = 10 are a line and a circle, and 3x + 4z = 12 is a line, too.
    """
    if tree[0] == "root":
        return tree[1][0] == "sym"
    is_curve = {"x", "y"} <= variables(tree) and any(node[0] == "pow" for node in tree[1:])
    is_curve |= variables(tree) <= {"x", "y", "z"} and len(variables(tree)) == 2
    return tree[0] == "add" and not is_curve and all(map(_is_part, tree[1:]))


def _is_part(tree: Tree) -> bool:
    """Returns whether a term has no number as a factor."""
    kind, parts = tree[0], tree[1:]
    if kind == "mul":  # AB is a length, ab a product
        return all(part[0] == "sym" and part[1].isupper() for part in parts)
    if kind in ("neg", "abs"):
        return all(map(_is_part, parts))
    if kind == "div":
        return (parts[0] == ("num", Fraction(1)) or _is_part(parts[0])) and _is_part(parts[1])
    return kind in ("sym", "app", "fn") or (kind in ("pow", "root") and _is_part(parts[0]))
