"""Tables of LaTeX commands and signs."""

from __future__ import annotations

RELATIONS = {
    "=": "=", "<": "<", ">": ">", "\\le": "<=", "\\ge": ">=", "\\lt": "<", "\\gt": ">", "\\ne": "!=", "\\approx": "~",
    "\\in": "in", "\\sim": "~", "\\simeq": "~", "\\equiv": "mod", "\\to": "->", "\\rightarrow": "->", "\\mapsto": "->",
}  # fmt: skip
"""Relations, by token."""
SETS = {"\\cup": "union", "\\cap": "inter", "\\setminus": "minus", "\\backslash": "minus"}
"""Operations on sets, by LaTeX command."""
CLOSING = {
    "(": (")", "]"), "[": (")", "]"), "\\{": ("\\}",),
    "\\langle": ("\\rangle",), "\\lfloor": ("\\rfloor",), "\\lceil": ("\\rceil",),
}  # fmt: skip
"""What may close each opening bracket; (1, 2] is an interval."""
SYMBOLIC = {"\\int", "\\sum", "\\prod", "\\lim", "\\det", "\\oint", "\\iint", "\\nabla", "\\partial", "\\mid", "\\iff"}
"""Commands that only a computer algebra system can work out."""
ENDS = {
    *")]},;:+-/*&^_!%'=<>", "\\}", "\\\\", "\\rangle", "\\rfloor", "\\rceil", "\\%", "\\&", "\\pm", "\\mp",
    "\\cdot", "\\times", "\\div", "\\choose", "\\ldots", "\\pmod", "\\circ",
    *RELATIONS, *SETS,
}  # fmt: skip
"""Tokens that no factor starts with."""
MATRICES = {"pmatrix", "bmatrix", "matrix", "Bmatrix", "smallmatrix", "array"}
"""Environments that hold a matrix; a vmatrix is its determinant, a number."""
