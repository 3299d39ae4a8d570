r"""Turns the text of an answer into tokens: one spelling for LaTeX, Unicode and plain notation.

What is not covered: LaTeX macros and environments other than matrices; numbers in words.
"""

from __future__ import annotations

import re
import unicodedata
from dataclasses import dataclass
from typing import Literal

from rewards.math.units import is_unit

MAX_CHARACTERS = 1_000
"""Longer answers are refused unread; the longest gold of MATH has 159."""
WORDS = frozenset(re.findall("[a-z]+", "yes no true false none odd even both never always neither undefined dne"))
"""Short words that are no product of letters."""
_NAMES = "sin cos tan cot sec csc arcsin arccos arctan sinh cosh tanh coth ln log lg exp sqrt gcd lcm max min"
FUNCTIONS = frozenset(re.findall("[a-z]+", _NAMES))
_GREEK = re.findall(
    "[a-z]+",
    "alpha beta gamma delta epsilon zeta eta theta iota kappa lambda mu nu xi pi rho sigma tau phi chi psi omega",
)
_PLAIN = {"pi": r"\pi", "infinity": r"\infty", "theta": r"\theta", "sqrt": r"\sqrt", "deg": r"\circ"}
_SIGNS = {
    "\u2212": "-", "\u2013": "-", "\u2014": "-", "\u00d7": r"\times ", "\u00b7": r"\cdot ", "\u22c5": r"\cdot ",
    "\u00f7": "/", "\u2044": "/", "\u221a": r"\sqrt ", "\u221e": r"\infty ", "\u2264": r"\le ", "\u2265": r"\ge ",
    "\u2260": r"\ne ", "\u2248": r"\approx ", "\u2208": r"\in ", "\u222a": r"\cup ", "\u2229": r"\cap ",
    "\u2205": r"\emptyset ", "\u2200": r"\forall ", "\u00b0": r"^\circ ", "\u00b1": r"\pm ", "\u2213": r"\mp ",
    "\u2102": r"\mathbb{C}", "\u211d": r"\mathbb{R}", "\u2124": r"\mathbb{Z}", "\u2115": r"\mathbb{N}",
    "\u2220": r"\angle ", "\u25b3": r"\triangle ", "\u2026": r"\ldots ", "\u22ef": r"\ldots ", "\u27e8": r"\langle ",
    "\u27e9": r"\rangle ", "\u230a": r"\lfloor ", "\u230b": r"\rfloor ", "\u2308": r"\lceil ", "\u2309": r"\rceil ",
    "\u00a0": " ", "\u202f": " ", "\u2009": " ", "\u2019": "'", "\u03c6": r"\phi ",
}  # fmt: skip
_UPRIGHT = re.compile(r"\\(?:text(?:bf|it|rm|sf|tt|normal|up)?|mbox|hbox|mathrm|operatorname\*?|mathsf)\s*(?=\{)")
_STYLED = re.compile(
    r"\\(?:mathbf|mathit|boldsymbol|bm|mathcal|vec|hat|overrightarrow|pmb|underline|boxed|fbox)\s*(?=[{A-Za-z\\])"
)
_NO_TEXT = re.compile(
    r"\\text\s*+\{\s*+([ei]|(?:arc)?(?:sin|cos|tan|cot|sec|csc)|ln|log|lcm|gcd|max|min|(?:[\d.+-]++\s*+)*+)\s*+\}"
)
_COMMANDS = (
    (re.compile(r"\\(?:left|right|[bB]igg?[lrm]?)(?![A-Za-z])\s*\.?"), ""),
    (re.compile(r"\\(?:displaystyle|textstyle|limits|nolimits|rm|bf|it)(?![A-Za-z])"), " "),
    (re.compile(r"(?<=\d)\s*(?:,\s*\\!|\{\s*,\s*\})\s*(?=\d{3}(?!\d))"), ""),
    (re.compile(r"(?<=\d)(?:\\[,;: ]|~)(?=\d{3}(?!\d))"), ""),
    (re.compile(r"\\(?:phantom|hspace|vspace|label|tag)\s*\*?\{[^{}]*\}"), " "),
    (re.compile(r"\\(?:quad|qquad|thinspace|enspace)(?![A-Za-z])|(?<!\\)\\[,;:! ]|~|\\\\\s*$"), " "),
    (_UPRIGHT, r"\\text"),
    (_STYLED, ""),
    (_NO_TEXT, r" \1 "),
    (re.compile(r"\\(?:dfrac|tfrac|cfrac)(?![A-Za-z])"), r"\\frac"),
    (re.compile(r"\\[dt]binom(?![A-Za-z])"), r"\\binom"),
    (re.compile(r"\\(?:l|r)?vert(?![A-Za-z])"), "|"),
    (re.compile(r"\\lbrace(?![A-Za-z])"), r"\\{"),
    (re.compile(r"\\rbrace(?![A-Za-z])"), r"\\}"),
    (re.compile(r"\\(?:leq|leqslant)(?![A-Za-z])|<="), r"\\le "),
    (re.compile(r"\\(?:geq|geqslant)(?![A-Za-z])|>="), r"\\ge "),
    (re.compile(r"\\(?:neq)(?![A-Za-z])|!="), r"\\ne "),
    (re.compile(r"\\(?:varnothing)(?![A-Za-z])"), r"\\emptyset"),
    (re.compile(r"\\var(?=epsilon|theta|phi|rho|sigma)"), r"\\"),
    (re.compile(r"\\(?:ldots|cdots|dots|dotsc)(?![A-Za-z])|\.\.\.+"), r"\\ldots "),
    (re.compile(r"\\degree(?:s)?(?![A-Za-z])|\^\s*\{\s*\\circ\s*\}"), r"^\\circ "),
    (re.compile(r"\\(?:bmod|mod)(?![A-Za-z])|\\pmod\s*(?=\{)"), r"\\pmod"),
    (re.compile(r"\*\*"), "^"),
    (re.compile(r"\\text\s*\{\s*(?:percent|per cent|pct)\s*\}|\b(?:percent|pct)\b"), r"\\%"),
    (re.compile(r"\\\$\s*(-?)\s*(\d[\d,]*(?:\.\d+)?|\.\d+)"), r"\1\2\\text{dollars}"),
)  # fmt: skip
_WRAPPED = re.compile(r"\$\$(.*)\$\$|\$([^$]*)\$|\\\((.*)\\\)|\\\[(.*)\\\]|\*\*(.*)\*\*|`(.*)`", re.DOTALL)
_LEAD = re.compile(
    r"(?:\\text\s*\{)?\s*(?:so|thus|hence|therefore)?,?\s*(?:the\s+)?(?:final\s+)?answer\s+is\s*:?\s*\}?", re.I
)
_SAID = re.compile(r"\\text\w*\s*\{([^{}]*)\}")
_ABOUT = re.compile(r"(?:\\approx|\\text\s*\{\s*(?:approximately|about)\s*\}|approximately\b|about\b)\s*")
_TRAILING = re.compile(r"\s*(?:\\\\|\\,|(?<!\\)[,;]|(?<!\.)\.)$")
_BARE_UNIT = re.compile(r"([-+]?[\d.,/]+) ([mgshlL])")
_MONEY = {"\u20ac": "euro", "\u00a3": "sterling"}
_CURRENCY = re.compile("([\u20ac\u00a3])\\s*([0-9][0-9.,]*)")
_FRENCH = re.compile(r"([\]\[])([^\[\](){}]+,[^\[\](){}]+)([\]\[])")
_TOKEN = re.compile(
    r"(?P<text>\\text\s*\{(?P<inner>[^{}]*)\})|\\(?P<env>begin|end)\s*\{(?P<name>[A-Za-z]+)\*?\}"
    r"|(?P<repeat>\d*\.\d*)(?:\\(?:overline|bar|dot)\s*\{?(?P<period>\d+)\}?|\((?P<plain>\d+)\))"
    r"|(?P<cmd>\\[A-Za-z]+|\\[{}%$&|#_\\])|(?P<dots>(?:\d+\.\d+)\s*\\ldots)"
    r"|(?P<sci>(?:\d+\.?\d*|\.\d+)[eE][-+]?\d+(?![\d.A-Za-z]))|(?P<num>\d+(?:\.\d+)?|\.\d+)"
    r"|(?P<word>[A-Za-z]{2,})|(?P<let>[A-Za-z])|(?P<op>\S)",
    re.ASCII,
)


class Unread(ValueError):
    """Text that is not an answer this package can read."""


class Explodes(ValueError):
    """Text whose value is too large to be worked out."""


@dataclass(frozen=True, slots=True)
class Token:
    """One piece of an answer. Example: `Token("num", "42")`."""

    kind: Literal["num", "let", "cmd", "text", "unit", "op", "begin", "end", "repeat"]
    value: str


def clean(text: str) -> str:
    """One spelling: no delimiters, spacing commands, emphasis or final full stop; raises Explodes if it is too long."""
    text = text.strip()
    if len(text) > MAX_CHARACTERS:
        raise Explodes(f"{len(text)} characters, above {MAX_CHARACTERS}")
    text = re.sub(r"\s{2,}", " ", text)  # patterns with two runs of blanks side by side take quadratic time
    if "\\begin" not in text:  # there two backslashes end a row; here they are one that was escaped twice
        text = re.sub(r"\\\\(?=[A-Za-z])", r"\\", text)
    text = _CURRENCY.sub(lambda match: rf"{match[2]}\text{{{_MONEY[match[1]]}}}", text)
    text = re.sub(r"[^\x00-\x7f]", _ascii, text).strip()
    for _ in range(4):
        before = text
        text = _TRAILING.sub("", text.strip().strip("*"))
        for lead in (_LEAD, _ABOUT):
            if match := lead.match(text):
                text = text[match.end() :]
        if (said := _SAID.fullmatch(text)) and _LEAD.match(said[1]):
            text = said[1]
        if (wrapped := _WRAPPED.fullmatch(text)) and not wrapped[wrapped.lastindex or 0].endswith("\\"):
            text = wrapped[wrapped.lastindex or 0]
        if text == before:
            break
    text = _BARE_UNIT.sub(r"\1\\text{\2}", text) if _BARE_UNIT.fullmatch(text) else text
    text = re.sub(r"(?<!\\)\$(?=\s*-?[\d.])", r"\\$", text)
    text = re.sub(r"(?<!\\)\$", "", text)
    for pattern, replacement in _COMMANDS:
        text = pattern.sub(replacement, text)
    if french := _FRENCH.fullmatch(text.strip()):
        text = french[1].replace("]", "(") + french[2] + french[3].replace("[", ")")
    return text.strip()


def tokenize(text: str) -> list[Token]:
    """The tokens of a cleaned text; raises Explodes on exponents such as 1E9999 and Unread on other letters."""
    tokens: list[Token] = []
    for match in _TOKEN.finditer(text):
        kind, value = match.lastgroup, match.group()
        if match["text"]:
            tokens.append(Token("text", match["inner"].strip()))
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
    bare = re.sub(r"\\text\s*\{([^{}]*)\}", r" \1 ", text).replace("{", " ").replace("}", " ")
    bare = re.sub(r"(?<=[ap])\.\s?m\b\.?", "m", bare.strip().casefold())
    if re.fullmatch(r"\d{1,2}(?::\d\d)?\s*[ap]m", bare):
        return re.sub(r"\s+", "", bare)
    if not re.fullmatch(r"[a-z][a-z0-9' \-.:/&,;]*", bare):
        return None
    words = re.findall("[a-z']+", bare)
    in_text = "\\text" in text and not re.sub(r"\\text\s*\{[^{}]*\}", "", text).strip(" ,;{}")
    if not in_text and ("_" in text or any(word in FUNCTIONS or word in ("pi", "infinity") for word in words)):
        return None
    written = re.findall("[A-Za-z']+", text.replace("\\text", ""))
    if len(written) == 1 and text == written[0] and _is_short_word(text):
        return bare
    if in_text or any(len(w) > 3 or w.casefold() in WORDS or (len(w) > 2 and not w.islower()) for w in written):
        return re.sub(r"[\s.:/-]+", " ", re.sub(r"\s*[;&]\s*", ",", bare)).strip()
    return None


def _is_short_word(word: str) -> bool:
    """Whether three letters are a word such as "dog": products have no vowel, or are in the order of the alphabet."""
    return len(word) == 3 and not set("aeiou").isdisjoint(word) and list(word) != sorted(word)


def _ascii(match: re.Match[str]) -> str:
    sign = match.group()
    if sign in _SIGNS:
        return _SIGNS[sign]
    name = unicodedata.name(sign, "")
    form = unicodedata.normalize("NFKC", sign)
    if name.startswith("VULGAR FRACTION") and "\u2044" in form:
        top, _, bottom = form.partition("\u2044")
        return rf"\frac{{{top}}}{{{bottom}}}"
    for script, mark in (("SUPERSCRIPT", "^"), ("SUBSCRIPT", "_")):
        if name.startswith(script) and form.replace("\u2212", "-").isascii():
            return f"{mark}{{{form}}}"
    greek = name.removeprefix("GREEK SMALL LETTER ").lower()
    if greek in _GREEK:
        return rf"\{greek} "
    return form if form.isascii() and unicodedata.category(sign)[0] in "NPZ" else sign


def _word(word: str) -> list[Token]:
    if word in _PLAIN:
        return [Token("cmd", _PLAIN[word])]
    if word in FUNCTIONS:
        return [Token("cmd", "\\" + word)]
    if word in ("and", "or"):
        return [Token("op", ",")]
    if is_unit(word):
        return [Token("unit", word)]
    if len(word) > 3 or word.casefold() in WORDS or (len(word) > 2 and not word.islower()):
        return [Token("text", word)]
    for name in FUNCTIONS:
        if word.startswith(name) and len(word) == len(name) + 1:  # sinx
            return [Token("cmd", "\\" + name), Token("let", word[-1])]
    return [Token("let", letter) for letter in word]


def _period(dots: str) -> str:
    """0.1666... is 0.1 with 6 for ever, if the digits show a period; else nobody can say what goes on."""
    whole, _, digits = dots.partition("\\")[0].strip().partition(".")
    for length in range(1, len(digits) // 2 + 1):
        period = digits[-length:]
        times = 3 if length == 1 else 2
        if digits.endswith(period * times):
            while digits.endswith(period * 2):
                digits = digits[:-length]
            return f"{whole}.{digits[:-length]}|{period}"
    raise Unread("an ellipsis after digits without a period")
