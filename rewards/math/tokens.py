"""Splits the text of an answer into tokens, and tells words from products of letters."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

from rewards.math.text import Explodes, Unread
from rewards.math.units import is_unit

WORDS = frozenset(re.findall("[a-z]+", "yes no true false none odd even both never always neither undefined dne"))
"""Short words that are no product of letters."""
_NAMES = "sin cos tan cot sec csc arcsin arccos arctan sinh cosh tanh coth ln log lg exp sqrt gcd lcm max min"
FUNCTIONS = frozenset(re.findall("[a-z]+", _NAMES))
_PLAIN = {"pi": r"\pi", "infinity": r"\infty", "theta": r"\theta", "sqrt": r"\sqrt", "deg": r"\circ"}
_TOKEN = re.compile(
    r"(?P<text>\\text\s*\{(?P<inner>[^{}]*)\})|\\(?P<env>begin|end)\s*\{(?P<name>[A-Za-z]+)\*?\}"
    r"|(?P<repeat>\d*\.\d*)(?:\\(?:overline|bar|dot)\s*\{?(?P<period>\d+)\}?|\((?P<plain>\d+)\))"
    r"|(?P<cmd>\\[A-Za-z]+|\\[{}%$&|#_\\])|(?P<dots>(?:\d+\.\d+)\s*\\ldots)"
    r"|(?P<sci>(?:\d+\.?\d*|\.\d+)[eE][-+]?\d+(?![\d.A-Za-z]))|(?P<num>\d+(?:\.\d+)?|\.\d+)"
    r"|(?P<word>[A-Za-z]{2,})|(?P<let>[A-Za-z])|(?P<op>\S)",
    re.ASCII,
)
_JOINING = re.compile(r"(.*?)[\s,]*\b(and/or|and|or)\s*", re.IGNORECASE | re.DOTALL)
_LABELLED = re.compile(r"\\text\s*\{[^{}]*(?::|\b(?:is|are|or|and|either|both))\s*\}\s*[-+]?[\\\d(]")
"""A text before a value, which is no part of it: \\text{Alice: } 12."""
_TO_DROP = ("either", "both", "respectively", "only", "the")
"""Texts that say nothing of the value."""


@dataclass(frozen=True, slots=True)
class Token:
    """Holds one piece of an answer. Example: `Token("num", "42")`."""

    kind: Literal["num", "let", "cmd", "text", "unit", "op", "begin", "end", "repeat"]
    value: str


def tokenize(text: str) -> list[Token]:
    """Returns the tokens of a cleaned text; raises Explodes on exponents such as 1E9999 and Unread on endless decimals.

    The words "and" and "or" become operators: they separate values, and tell conditions that must all hold from
    conditions of which one is enough.
    """
    tokens: list[Token] = []
    for match in _TOKEN.finditer(text):
        kind, value = match.lastgroup, match.group()
        if match["text"]:
            tokens += _text(match["inner"])
        elif match["env"]:
            tokens.append(Token("begin" if match["env"] == "begin" else "end", match["name"]))
        elif match["repeat"] is not None:
            tokens.append(Token("repeat", f"{match['repeat']}|{match['period'] or match['plain']}"))
        elif match["dots"]:
            tokens.append(Token("repeat", _period(match["dots"])))
        elif kind == "sci":
            if len(re.split("[eE]", value)[1].lstrip("+-")) > 3:
                raise Explodes(f"the exponent of {value[:40]}")
            tokens.append(Token("num", value))
        elif kind == "word":
            tokens += _word(value)
        else:
            assert kind in ("cmd", "num", "let", "op")
            tokens.append(Token(kind, value))
    return tokens


def plain_text(text: str) -> str | None:
    r"""Words alone, folded ("friday", "1:03 pm"); None if the cleaned text is not made of words.

    `\text{Friday}` and `Friday` are the same words. Letters that can be a product ("xy") are words only inside `\text`.
    """
    if _LABELLED.search(text):
        return None
    bare = re.sub(r"\\text\s*\{([^{}]*)\}", r" \1 ", text).replace("{", " ").replace("}", " ")
    bare = re.sub(r"(?<=[ap])\.\s?m\b\.?", "m", bare.strip().casefold())
    if re.fullmatch(r"\d{1,2}(?::\d\d)?\s*[ap]m", bare):
        return re.sub(r"\s+", "", bare)
    if not re.fullmatch(r"[^\W\d_](?:[^\W_]|[' \-.:/&,;])*", bare):
        return None
    words = re.findall(r"(?:[^\W\d_]|')+", bare)
    in_text = "\\text" in text and not re.sub(r"\\text\s*\{[^{}]*\}", "", text).strip(" ,;{}")
    if not in_text and ("_" in text or any(word in FUNCTIONS or word in ("pi", "infinity") for word in words)):
        return None
    written = re.findall(r"(?:[^\W\d_]|')+", text.replace("\\text", ""))
    if len(written) == 1 and text == written[0] and _is_short_word(text):
        return bare
    if in_text or any(len(w) > 3 or w.casefold() in WORDS or (len(w) > 2 and not w.islower()) for w in written):
        return re.sub(r"[\s.:/-]+", " ", re.sub(r"\s*[;&]\s*", ",", bare)).strip()
    return None


def _is_short_word(word: str) -> bool:
    """Returns whether three letters are a word such as "dog": products have no vowel, or are in alphabetical order."""
    return len(word) == 3 and not set("aeiou").isdisjoint(word) and list(word) != sorted(word)


def _text(inner: str) -> list[Token]:
    r"""Returns the tokens of `\text{ chickens and }`: what is named, and the word that separates values."""
    inner = inner.strip()
    if inner.strip(" ,.").casefold() in _TO_DROP:
        return []
    if inner.strip(" ,.").casefold() in ("where", "with", "for"):
        return [Token("op", ",")]
    if found := _JOINING.fullmatch(inner.rstrip(" ,.")):
        before = _text(found[1]) if found[1].strip(" ,.") else []
        return [*before, Token("op", "or" if "or" in found[2].casefold() else "and")]
    if inner.endswith((",", ";")) and len(inner) > 1:
        return [*_text(inner[:-1]), Token("op", inner[-1])]
    return [Token("text", inner)] if inner.strip(" ,.") else [Token("op", ",")] if "," in inner else []


def _word(word: str) -> list[Token]:
    if word in _PLAIN:
        return [Token("cmd", _PLAIN[word])]
    if word in FUNCTIONS:
        return [Token("cmd", "\\" + word)]
    if word in ("and", "or"):
        return [Token("op", word)]
    if word in ("either", "both", "the"):
        return []
    if is_unit(word):
        return [Token("unit", word)]
    if len(word) > 3 or word.casefold() in WORDS or (len(word) > 2 and not word.islower()):
        return [Token("text", word)]
    for name in FUNCTIONS:  # only one letter may follow: sinx is sin x, but singe is a word
        if word.startswith(name) and len(word) == len(name) + 1:  # sinx
            return [Token("cmd", "\\" + name), Token("let", word[-1])]
    return [Token("let", letter) for letter in word]


def _period(dots: str) -> str:
    """Returns 0.1666... as 0.1 with a period of 6; raises Unread if the digits do not show what goes on."""
    whole, _, digits = dots.partition("\\")[0].strip().partition(".")
    for length in range(1, len(digits) // 2 + 1):
        period = digits[-length:]
        times = 3 if length == 1 else 2
        if digits.endswith(period * times):
            while digits.endswith(period * 2):
                digits = digits[:-length]
            return f"{whole}.{digits[:-length]}|{period}"
    raise Unread("an ellipsis after digits without a period")
