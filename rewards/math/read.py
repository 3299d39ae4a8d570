"""Turns the text of an answer into trees, one for each way to read it."""

from __future__ import annotations

import re

from rewards.math.choices import chosen
from rewards.math.numerals import numeral, plain_number, without_separators
from rewards.math.parse import Tree, parse
from rewards.math.text import Unread, clean
from rewards.math.tokens import plain_text
from rewards.math.units import with_bare_unit

_CHOICE = re.compile(
    r"\\text\s*\{\s*\(?([A-J])[).:]*\s*\}[).:]*\s*(\S.*)|\\text\s*\{\s*\(?([A-J])[).:]\s*([^{}\s][^{}]*)\}|\(?([A-J])[).:]\s+(\S.*)",
    re.DOTALL,
)
_LONE_CHOICE = re.compile(r"\(?([A-J])[).:]+")
_SPOKEN: dict[str, Tree] = {
    **dict.fromkeys(("all real numbers", "all reals", "real numbers", "the real numbers"), ("sym", "\\mathbbR")),
    **dict.fromkeys(("no solution", "no solutions", "there is no solution", "empty set", "the empty set"), ("set",)),
    **dict.fromkeys(("no real solution", "no real solutions", "there is no real solution"), ("set",)),
    "dne": ("text", "does not exist"),
}
_OTHER_CHOICE = re.compile(r"\(\s*[A-J]\s*\)|\b[A-J][).:]|\\text\s*\{\s*\(?[A-J]\b|^\s*[A-J]\s*$|\b(?:or|and)\b")


def read(text: str, is_gold: bool = False) -> tuple[Tree, ...]:
    """Returns the readings of an answer, most often one: "70,110" is a number or a list, "(B) 42" a choice or a number.

    An answer `8m^2` is 8 square metres or a product; a gold answer is the product. Raises Explodes for what is too
    long, deep or large, Symbolic for integrals and the like, Unread for anything else.
    """
    if (readings := plain_number(text)) is not None:  # most answers are; it saves nine tenths of the time
        return readings
    if choices := chosen(text, is_gold):  # a product or a list, or the choices of a question
        try:
            return (("text", f"choices {choices}"), *_read(clean(text), is_gold))
        except Unread:
            return (("text", f"choices {choices}"),)
    text = clean(text)
    # "(B) 42" is right whether the gold is B or 42, but "(A) or (B)" is no choice.
    if (choice := _CHOICE.fullmatch(text)) and not _OTHER_CHOICE.search(
        rest := choice[2] or choice[4] or choice[6] or ""
    ):
        return (("text", (choice[1] or choice[3] or choice[5]).casefold()), *_read(rest, is_gold))
    if lone := _LONE_CHOICE.fullmatch(text):
        return (("text", lone[1].casefold()),)
    return _read(text, is_gold)


def _read(text: str, is_gold: bool) -> tuple[Tree, ...]:
    if (words := plain_text(text)) is not None:
        if words in _SPOKEN:
            return (_SPOKEN[words],)
        parts = [part.strip() for part in re.split(r",|\band\b", words) if part.strip()]
        return (("text", words),) if len(parts) < 2 else (("list", *(("text", part) for part in parts)),)
    if (tree := numeral(text)) is not None:
        return (tree,)
    # A gold 5m^2 is read as its author most likely meant it; of an answer, either reading may be right.
    measured = with_bare_unit(text)
    if measured is None:
        return tuple(parse(reading) for reading in without_separators(text))
    with_unit, is_product = measured
    if is_gold:
        return (parse(text),) if is_product else tuple(map(parse, without_separators(with_unit)))
    readings = tuple(parse(reading) for reading in without_separators(with_unit))
    try:
        return (*readings, parse(text))
    except Unread:
        return readings
