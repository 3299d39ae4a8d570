"""Says whether an answer means the same as the gold answer: each kind of answer goes to the file that compares it.

Every verdict is True, False, or None where the judge of values could not tell.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Literal

from rewards.math.expressions import Tree
from rewards.math.judge import Judge
from rewards.math.lists import COLLECTIONS, merged, same_cases, same_collection, same_members
from rewards.math.quantities import same_quantity, same_ratio, same_residue
from rewards.math.relations import same_relation
from rewards.math.value import Steps, walk

Percent = Literal["either", "value", "ignore"]
Units = Literal["optional", "required", "ignore"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """Holds the rules of one verifier, and compares by them.

    Example: `Comparison(judge=Judge(arithmetic=FLOATS), percent="either", units="optional")`
    """

    judge: Judge
    percent: Percent
    """20% is 0.2; under "either" also 20, under "ignore" only 20."""
    units: Units
    """Two different units are never equal unless ignored; "optional" lets either side leave its unit out."""

    def limited(self, steps: int) -> Comparison:
        """Returns the same rules with a judge that gives up after so many steps; it raises TooLong then."""
        return replace(self, judge=replace(self.judge, steps=Steps(steps)))

    def equal(self, gold: Tree, answer: Tree) -> bool | None:
        """Returns whether the answer says what the gold says; raises Explodes, Undefined and TooLong."""
        self.judge.steps.take(1)
        if gold == answer:
            return True
        if gold[0] == answer[0] == "num":
            return False
        gold, answer = plain(gold), plain(answer)
        if _is_number_set(gold) or _is_number_set(answer):
            gold, answer = _number_set(gold), _number_set(answer)
            if gold == answer:
                return True
        kinds = {gold[0], answer[0]}
        if "text" in kinds:
            return _spelled(gold) is not None and _spelled(gold) == _spelled(answer)
        if "logic" in kinds:
            return gold[:2] == answer[:2] and same_members(gold[2:], answer[2:], self)
        if not kinds.isdisjoint(("chain", "those")):
            return same_relation(gold, answer, self)
        if "cases" in kinds:
            return same_cases(gold, answer, self)
        if not kinds.isdisjoint(COLLECTIONS) or _is_number_set(gold):
            return same_collection(gold, answer, self)
        if "ratio" in kinds:
            return same_ratio(gold, answer, self)
        if "mod" in kinds:
            return same_residue(gold, answer, self)
        if not kinds.isdisjoint(("based", "clock")):
            return False
        return same_quantity(gold, answer, self)


def plain(tree: Tree) -> Tree:
    """Returns the tree with plus-minus signs as two values, and with unions of listed members as one such list."""
    return merged(_both_signs(tree))


def _is_number_set(tree: Tree) -> bool:
    return tree[0] == "sym" and tree[1].startswith("\\mathbb")


def _number_set(tree: Tree) -> Tree:
    """Returns a bare R as the set of real numbers, which it is beside such a set; other trees as they are."""
    return ("sym", f"\\mathbb{tree[1]}") if tree[0] == "sym" and tree[1] in "RZNQC" else tree


def _spelled(tree: Tree) -> str | None:
    r"""Returns the letters of a text or of a name: `\text{(B)}`, `(B)` and `B` are spelled alike."""
    if tree[0] == "text":
        return re.sub(r"[\s().:\"'-]+", " ", tree[1].casefold()).strip().removeprefix("the ")
    if tree[0] == "sym" and len(tree[1]) == 1:
        return tree[1].casefold()
    if tree[0] == "mul" and (left := _spelled(tree[1])) is not None and (right := _spelled(tree[2])) is not None:
        return left + right
    return None


def _both_signs(tree: Tree) -> Tree:
    """Returns the two readings of a tree with plus-minus signs as a list; upper and lower signs go together."""
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
