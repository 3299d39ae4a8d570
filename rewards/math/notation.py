"""Tables of LaTeX commands and signs."""

from __future__ import annotations

RELATIONS = {
    "=": "=", "<": "<", ">": ">", "\\le": "<=", "\\ge": ">=", "\\lt": "<", "\\gt": ">", "\\ne": "!=", "\\approx": "~",
    "\\in": "in", "\\notin": "notin",
    "\\sim": "~", "\\simeq": "~", "\\equiv": "mod", "\\to": "->", "\\rightarrow": "->", "\\mapsto": "->",
}  # fmt: skip
"""Relations, by token."""
INEQUALITIES = frozenset(("<", ">", "<=", ">=", "!=", "notin"))
"""Relations that a range of values fulfils."""
SETS = {"\\cup": "union", "\\cap": "inter", "\\setminus": "minus", "\\backslash": "minus"}
"""Operations on sets, by LaTeX command."""
OR, AND = frozenset(("or", "\\lor", "\\vee")), frozenset(("and", "\\land", "\\wedge"))
SEPARATORS = frozenset((",", ";", "\\&")) | OR | AND
"""What stands between two values."""
CLOSING = {
    "(": (")", "]"), "[": (")", "]"), "\\{": ("\\}",),
    "\\langle": ("\\rangle",), "\\lfloor": ("\\rfloor",), "\\lceil": ("\\rceil",),
}  # fmt: skip
"""What may close each opening bracket; (1, 2] is an interval."""
CLOSERS = frozenset(("}", *(closing for pair in CLOSING.values() for closing in pair)))
SYMBOLIC = {"\\int", "\\sum", "\\prod", "\\lim", "\\det", "\\oint", "\\iint", "\\nabla", "\\partial", "\\iff"}
"""Commands that only a computer algebra system can work out."""
ENDS = {
    *")]},;:+-/*&^_!%'=<>", "\\}", "\\\\", "\\rangle", "\\rfloor", "\\rceil", "\\%", "\\&", "\\pm", "\\mp",
    "\\cdot", "\\times", "\\div", "\\choose", "\\ldots", "\\pmod", "\\circ", "\\mid",
    *RELATIONS, *SETS, *SEPARATORS,
}  # fmt: skip
"""Tokens that no factor starts with."""
MATRICES = {"pmatrix", "bmatrix", "matrix", "Bmatrix", "smallmatrix", "array"}
"""Environments that hold a matrix; a vmatrix is its determinant, a number."""
SYSTEMS = {"cases", "dcases", "rcases", "aligned", "align", "gathered", "split"}
"""Environments that hold equations below each other, or a formula in pieces."""
ANSWERS = frozenset(
    (
        "list", "set", "tuple", "matrix", "union", "inter", "minus", "chain", "ratio", "unit", "mixed", "text", "clock",
        "based", "mod", "cases", "those", "logic",
    )
)  # fmt: skip
"""Kinds of trees that are not one value."""
ARITHMETIC = frozenset(("add", "mul", "neg", "div", "pow", "root", "fn", "abs", "fact"))
"""Kinds of trees that are worked out."""
