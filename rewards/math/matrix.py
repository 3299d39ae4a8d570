"""Matrices in sums and products: 1/5 (1, -18) is (1/5, -18/5)."""

from __future__ import annotations

from collections.abc import Callable
from itertools import product

from rewards.math.expressions import Tree
from rewards.math.text import Explodes
from rewards.math.value import folded, walk

MAX_ENTRIES = 100
"""Of a matrix that takes part in a sum or product."""
MAX_NODES = 2_000
"""Of one entry: the formulas in a product of many matrices grow with a power of their number."""


def multiplied(tree: Tree) -> Tree:
    """The matrix that a sum or product of matrices and numbers is; other trees, and sums that do not fit, as they are.

    Raises Explodes if there are more than MAX_ENTRIES entries.
    """
    if tree[0] not in ("add", "mul", "neg", "div") or not any(node[0] == "matrix" for node in walk(tree)):
        return tree
    parts = [multiplied(part) for part in tree[1:]]
    if any(part[0] == "matrix" and len(part[1:]) * len(part[1]) > MAX_ENTRIES for part in parts):
        raise Explodes(f"a product of matrices of more than {MAX_ENTRIES} entries")
    result = parts[0]
    if tree[0] == "neg":
        return _each(result, lambda entry: ("neg", entry)) if result[0] == "matrix" else tree
    for part in parts[1:]:
        kinds = (result[0] == "matrix", part[0] == "matrix")
        if kinds == (False, False) or (tree[0] == "add" and not all(kinds)) or (tree[0] == "div" and kinds[1]):
            return (tree[0], *parts)
        if tree[0] == "add":
            if [len(row) for row in result[1:]] != [len(row) for row in part[1:]]:
                return (tree[0], *parts)
            rows = zip(result[1:], part[1:], strict=True)
            result = ("matrix", *(tuple(_entry(("add", *pair)) for pair in zip(*row, strict=True)) for row in rows))
        elif all(kinds):
            if len(result[1]) != len(part) - 1:
                return (tree[0], *parts)
            result = _product(result, part)
        elif kinds[0]:
            kind, factor = tree[0], part
            result = _each(result, lambda entry, kind=kind, factor=factor: (kind, entry, factor))
        else:
            factor = result
            result = _each(part, lambda entry, factor=factor: ("mul", factor, entry))
    return result


def _each(matrix: Tree, function: Callable[[Tree], Tree]) -> Tree:
    return ("matrix", *(tuple(_entry(function(entry)) for entry in row) for row in matrix[1:]))


def _entry(tree: Tree) -> Tree:
    """An entry as one number if it is one, so that it does not grow; raises Explodes for a formula that did."""
    tree = folded(tree)
    if sum(1 for _ in walk(tree)) > MAX_NODES:
        raise Explodes(f"an entry of more than {MAX_NODES} nodes")
    return tree


def _product(left: Tree, right: Tree) -> Tree:
    columns = list(zip(*right[1:], strict=True))
    entries = [
        _entry(("add", *(("mul", *pair) for pair in zip(row, column, strict=True))))
        for row, column in product(left[1:], columns)
    ]
    width = len(columns)
    return ("matrix", *(tuple(entries[at : at + width]) for at in range(0, len(entries), width)))
