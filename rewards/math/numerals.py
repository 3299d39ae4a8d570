"""Reads numerals: bases other than ten, periods, separators of thousands."""

from __future__ import annotations

import re
from fractions import Fraction
from typing import Any

from rewards.math.text import MAX_CHARACTERS, Unread

_NUMERAL = re.compile(
    r"(-?)\s*(?:[(\[]|\\(?:overline|text)\s*\{)?\s*([0-9][0-9A-Z]*(?:\.[0-9A-Z]+)?|[A-Z][0-9A-Z]+)\s*[)\]}]?\s*"
    r"_\s*[{(]*\s*(?:\\text\s*\{\s*)?([0-9]{1,2}|[a-z]+)[\s})]*"
)
_BASES = {"two": 2, "three": 3, "four": 4, "five": 5, "six": 6, "seven": 7, "eight": 8, "nine": 9, "ten": 10}
_PLAIN = re.compile(r"\s*(-?)([0-9]{1,3}(?:,[0-9]{3})+|[0-9]+)(\.[0-9]+)?\s*")
_COMMAS = re.compile(r"(?<![\d.,])\d{1,3}(?:,\d{3})+(?![\d,])")
_SPACES = re.compile(r"(?<![\d.,(\[{] )(?<![\d.,(\[{])\d{1,3}(?: \d{3})+(?! ?[\d/])")
_BRACKETED = re.compile(r"[(\[{][-\d.\s]*,[-\d.,\s]*[)\]}]")


def plain_number(text: str) -> tuple[tuple[Any, ...], ...] | None:
    """Returns the readings of `-1,234.50` and the like, which most answers are; None for anything else.

    They are those of `read.read`, in a tenth of the time.
    """
    match = _PLAIN.fullmatch(text) if len(text) <= MAX_CHARACTERS else None
    if match is None:
        return None
    sign, digits, places = match.groups()
    groups = digits.split(",")
    number = ("dec" if places else "num", Fraction(f"{sign}{''.join(groups)}{places or ''}"))
    if len(groups) == 1:
        return (number,)
    first, last = (
        ("num", Fraction(sign + groups[0])),
        ("dec" if places else "num", Fraction(groups[-1] + (places or ""))),
    )
    return number, ("list", first, *(("num", Fraction(group)) for group in groups[1:-1]), last)


def numeral(text: str) -> tuple[Any, ...] | None:
    """Returns a whole text such as `4210_{7}` or `1AF_{16}` as a tree; None if it is no such numeral."""
    match = _NUMERAL.fullmatch(text)
    base = base_of(match[3]) if match else None
    try:
        return based(match[1] + match[2], base) if match and base else None
    except Unread:
        return None


def base_of(subscript: str) -> int | None:
    """Returns the base that a subscript names, in digits or in letters; None for any other subscript."""
    return _BASES.get(subscript) or (int(subscript) if re.fullmatch("[0-9]{1,2}", subscript) else None)


def based(digits: str, base: int) -> tuple[Any, ...]:
    """Returns a numeral with its base; raises Unread for digits that the base lacks. In base 10 it is the number."""
    sign, digits = digits.startswith("-"), digits.lstrip("-")
    if not re.fullmatch(r"[0-9A-Za-z]+(?:\.[0-9A-Za-z]+)?", digits):
        raise Unread(f"{digits[:20]} is no numeral")
    if not 2 <= base <= 36 or any(int(digit, 36) >= base for digit in digits if digit != "."):
        raise Unread(f"{digits[:20]} has digits that base {base} lacks")
    digits = digits.lstrip("0") or "0"
    if base == 10:
        return ("num", Fraction(digits) * (-1 if sign else 1))
    return ("based", ("-" if sign else "") + digits, base)


def worth(tree: tuple[Any, ...]) -> tuple[Any, ...]:
    """Returns a numeral with its base as the number that it is worth; other trees as they are."""
    if tree[0] != "based" or "." in tree[1]:
        return tree
    return ("num", Fraction(int(tree[1], tree[2])))


def without_separators(text: str) -> tuple[str, ...]:
    """Returns the texts without separators of thousands.

    One with commas may also be a list, which is the second reading.
    """
    text = _SPACES.sub(lambda match: match.group().replace(" ", ""), text)
    flat = text if _BRACKETED.search(text) else _COMMAS.sub(lambda match: match.group().replace(",", ""), text)
    return (text,) if flat == text else (flat, text)


def repeating(digits: str) -> Fraction:
    """Returns the exact value of a decimal with a period: 0.1|6 is 0.1666... = 1/10 + 6/90."""
    start, _, period = digits.partition("|")
    whole, _, places = start.partition(".")
    size = 10 ** len(places)
    tail = Fraction(int(period), size * (10 ** len(period) - 1))
    return Fraction(int(whole or 0) * size + int(places or 0), size) + tail
