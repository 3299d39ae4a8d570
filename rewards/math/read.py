"""From the text of an answer to its trees."""

from __future__ import annotations

import re

from rewards.math.numerals import numeral, plain_number, without_separators
from rewards.math.parse import Tree, parse
from rewards.math.text import clean, plain_text

_CHOICE = re.compile(
    r"\\text\s*\{\s*\(?([A-J])[).:]*\s*\}[).:]*\s*(\S.*)|\\text\s*\{\s*\(?([A-J])[).:]\s*([^{}]+)\}|\(?([A-J])[).:]\s+(\S.*)",
    re.DOTALL,
)
_SPOKEN: dict[str, Tree] = {
    **dict.fromkeys(("all real numbers", "all reals", "real numbers", "the real numbers"), ("sym", "\\mathbbR")),
    **dict.fromkeys(("no solution", "no solutions", "there is no solution", "empty set", "the empty set"), ("set",)),
}
_OTHER_CHOICE = re.compile(r"\(\s*[A-J]\s*\)|\b[A-J][).:]|\\text\s*\{\s*\(?[A-J]\b|^\s*[A-J]\s*$|\b(?:or|and)\b")


def read(text: str) -> tuple[Tree, ...]:
    """The readings of an answer, most often one: "70,110" is a number or a list, "(B) 42" is a choice or a number.

    Raises Explodes for what is too long, deep or large, Symbolic for integrals and the like, Unread for anything else.
    """
    if (readings := plain_number(text)) is not None:
        return readings
    text = clean(text)
    if (choice := _CHOICE.fullmatch(text)) and not _OTHER_CHOICE.search(
        rest := choice[2] or choice[4] or choice[6] or ""
    ):
        return (("text", (choice[1] or choice[3] or choice[5]).casefold()), *_read(rest))
    return _read(text)


def _read(text: str) -> tuple[Tree, ...]:
    if (words := plain_text(text)) is not None:
        if words in _SPOKEN:
            return (_SPOKEN[words],)
        parts = [part.strip() for part in re.split(r",|\band\b", words) if part.strip()]
        return (("text", words),) if len(parts) < 2 else (("list", *(("text", part) for part in parts)),)
    if (tree := numeral(text)) is not None:
        return (tree,)
    return tuple(parse(reading) for reading in without_separators(text))
