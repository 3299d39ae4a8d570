r"""Finds the last formula or number of a text in which nothing says where its answer is.

A formula is taken whole or not at all: of `x \geq 5`, `2√3`, `(0, 5]` and `cm^2` no part is an answer.
"""

from __future__ import annotations

import re

_LETTER = r"(?<![A-Za-z\\])[A-Za-z](?![A-Za-z])"
_GREEK = "(?<![\u0370-\u03ff])[\u0370-\u03ff](?![\u0370-\u03ff])"
_SIGN = "[\u00bc-\u00be\u2150-\u215f\u221a-\u221c\u221e\u2205\u2102\u2115\u211a\u211d\u2124]"
"""Fractions such as 1/2 in one sign, roots, infinity, the empty set, and sets of numbers."""
_RAISED = "[\u00b0\u00b2\u00b3\u00b9\u2032\u2070-\u209c]"
_GROUP = r"\{[^{}\n]*+(?:\{[^{}\n]*+\}[^{}\n]*+)*+\}"
_UNITS = "(?:[ckmd]m|kg|mg|m[lL]|ft)(?![A-Za-z])"
_TAIL = r"(?<=[0-9])[A-Za-z]{1,3}(?![A-Za-z])"  # 3xy, 5cm
_FUNCTION = (
    r"(?<![A-Za-z\\])(?:log_[0-9a-z]\s?"
    r"|(?:(?:arc)?(?:sin|cos|tan|cot|csc)|ln|log|lg|sqrt)(?=\s?[0-9({\\^_a-z\u221a\u03c0])\s?"
    r"|pi(?![A-Za-z])|[A-Za-z]{2,20}(?=\()(?!\w+\((?:e?s|[A-Za-z]{3,})\)))"
)
_INSIDE = rf"{_GROUP}|\\(?:[A-Za-z]+|[^A-Za-z{{}}])|{_LETTER}|{_TAIL}|{_FUNCTION}|[^A-Za-z()\[\]\\\n]"
_SET = rf"\\\{{(?:{_INSIDE}|[()\[\]])*+\\\}}"
_BRACKETS = rf"[(\[](?:{_INSIDE})*+[)\]]"
for _ in range(3):  # so deep may brackets stand in each other
    _BRACKETS = rf"[(\[](?:{_SET}|{_INSIDE}|{_BRACKETS})*+[)\]]"
_MATRIX = r"\\begin\{\w+\}.{0,500}?\\end\{\w+\}"
# Behind a command, a blank is no end: \geq 5.
_GOES_ON = rf"[0-9({{\[\\|\u03c0\u221a]|[-+.][0-9]|[-+]?[ \t]?\\|[-+]?{_LETTER}"
_COMMAND = rf"\\(?:[dtc]?frac\s?[0-9]\s[0-9]|[A-Za-z]+(?:[ \t]++(?={_GOES_ON}))?|[%$])"
_FIRST = (
    rf"(?:{_MATRIX}|{_SET}|{_COMMAND}|{_GROUP}|{_BRACKETS}|[0-9]|\.(?=[0-9])|{_FUNCTION}|{_LETTER}|{_GREEK}|{_SIGN}|\|)"
)
_NEXT = (  # what continues a value, but begins none
    rf"(?:{_FIRST}|,(?=[0-9])|{_TAIL}|\^[-+]?(?=[0-9A-Za-z{{(\\])|_(?=[0-9A-Za-z{{\\])|{_RAISED}|[!'%]|\\[,;:! ]"
    rf"|\s(?:{_UNITS}|(?=\\[A-Za-z{{]|(?!x\s?10)[b-z](?![A-Za-z])|[\u03c0\u221a]|pi(?![A-Za-z]))))"
)
_ATOM = rf"{_FIRST}{_NEXT}*+"
_OPERATOR = (
    "(?:[<>!]=|[-=]>|[-+*/=<>:\u2010-\u2014\u2212\u00b1\u2213\u00d7\u00b7\u22c5\u00f7\u2044\u2215\u2236\u2264\u2265\u2266"
    "\u2267\u2a7d\u2a7e\u2260\u2248\u2261\u2208\u222a\u2229\u2216\u2228\u2227\u2192]|x(?=\\s?10)|(?<=[)\\]]),(?=\\s?[(\\[])|\u5206\u4e4b)"
)
_MINUS = "[-+\u2212\u00b1\u2213]"
_VALUE = re.compile(
    r"\$\$(.+?)\$\$|\$(?![\s$])([^$\n]+?)(?<!\s)\$(?![0-9])|\\\((.+?)\\\)|\\\[(.+?)\\\]"
    rf"|(?<![0-9A-Za-z)}}\]][\^_/])(?:(?<![\w)}}])[-+\u2212\u00b1])?\$?(?<![0-9A-Za-z\\]){_ATOM}"
    rf"(?:\s?{_OPERATOR}\s?{_MINUS}?{_ATOM})*+",
    re.DOTALL,
)
_WORTH = re.compile(rf"[0-9]|\\[A-Za-z]|{_SIGN}|\u03c0")


def last_value(text: str, begin: int) -> tuple[int, int] | None:
    """Returns the place of the last formula between dollars, or of the last run of signs with a number in it."""
    found = None
    for match in _VALUE.finditer(text, begin):
        if match.lastindex or _WORTH.search(match.group()):
            found = match.span(match.lastindex or 0)
    return found
