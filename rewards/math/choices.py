r"""Reads answers to questions with several right choices: `ABD`, `A, B, D`, `①③`. Their order says nothing."""

from __future__ import annotations

import re

_WRAP = re.compile(r"[${}]|\\text\w*(?![A-Za-z])|\\mathrm|\\[,;: ()]|\\(?:bold|math)\w*")
_CIRCLED = re.compile(r"\\textcircled\s*\{?\s*([1-9])\s*\}?")
_JOIN = r"[\s,;.、\uff0c\uff1b。和与及]*(?:\band\b\s*)?"
_LETTERS = re.compile(rf"(?:故|应)?(?:选择?|选项)?[\s::]*\(?[A-H]\)?(?:{_JOIN}\(?[A-H]\)?)+[\s.。]*")
_CIRCLES = re.compile(rf"[\u2460-\u2468](?:{_JOIN}[\u2460-\u2468])+[\s.。]*")

MAX_LENGTH = 200
"""So many characters has no list of choices."""


def chosen(text: str, is_gold: bool = False) -> str | None:
    """Returns the choices in the order of the alphabet; None unless a text is nothing but two or more distinct ones.

    A gold has nothing between them: `A, C` may be a list of points.
    """
    if len(text) > MAX_LENGTH:
        return None
    bare = _WRAP.sub("", _CIRCLED.sub(lambda found: chr(0x245F + int(found[1])), text)).strip(" .")
    if is_gold and not re.fullmatch("[A-H]+|[\u2460-\u2468]+", bare):
        return None
    if not (_LETTERS.fullmatch(bare) or _CIRCLES.fullmatch(bare)):
        return None
    signs = re.findall("[A-H\u2460-\u2468]", bare)
    return "".join(sorted(signs)) if len(set(signs)) == len(signs) else None
