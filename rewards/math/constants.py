"""Renames constants of integration: x^2 + C is x^2 + c, and two constants go by the order of their names."""

from __future__ import annotations

import re

from rewards.math.expressions import Tree
from rewards.math.value import substituted, variables

_CONSTANT = re.compile("[Cc](?:_[0-9])?")
_ARGUMENTS = {"x", "y", "t", "u"}


def with_constants_of(gold: Tree, answer: Tree) -> Tree:
    """Returns the answer with its constants under the names that the gold's have; as it is where they do not match.

    Beside other letters than x, y, t and u a C is no such constant: it may be an angle, and c a length.
    """
    names, others = _constants(gold), _constants(answer)
    if (
        not names
        or names == others
        or len(names) != len(others)
        or names[0] == "c"
        or (len(names) == 1 and names != ["C"])
    ):
        return answer
    for at, name in enumerate(others):
        answer = substituted(answer, name, ("sym", f"constant {at}"))
    for at, name in enumerate(names):
        answer = substituted(answer, f"constant {at}", ("sym", name))
    return answer


def _constants(tree: Tree) -> list[str]:
    names = variables(tree)
    found = sorted(name for name in names if _CONSTANT.fullmatch(name))
    rest = names.difference(found)
    return found if rest and rest <= _ARGUMENTS else []
