r"""Gives the text of an answer one spelling: LaTeX without delimiters, colours, sizes, spacing and closing words.

What is not covered: LaTeX macros of the writer's own; numbers in words.
"""

from __future__ import annotations

import re

from rewards.math.chinese import translated
from rewards.math.signs import ascii_text

MAX_CHARACTERS = 1_000
"""Longer answers are refused unread; the longest gold of MATH has 159."""
_UPRIGHT = re.compile(
    r"\\(?:text(?!color)[a-z]*|mbox|hbox|mathrm|mathsf|mathtt|mathnormal|emph|operatorname\*?)\s*(?=\{)"
)
_STYLED = re.compile(
    r"\\(?:mathbf|mathit|boldsymbol|bm|mathcal|vec|hat|overrightarrow|pmb|underline|uline|underbrace|boxed|fbox"
    r"|ensuremath|bold|mathop|mathord|smash)(?![A-Za-z])\s*(?=[{A-Za-z\\\d])"
)
_COLOURS = (
    (re.compile(r"\\f?colorbox(?:\[[^\]]*\])?\s*(?:\{[^{}]*\}\s*){1,2}(?=\{)"), " "),
    (re.compile(r"\\(?:text|math)?color(?:\[[^\]]*\])?\s*\{[^{}]*\}"), " "),
    (re.compile(r"\\bbox\s*(?:\[[^\]]*\])?\s*(?=\{)"), " "),
)
_SIZES = re.compile(
    r"\\(?:tiny|scriptsize|footnotesize|small|normalsize|large|Large|LARGE|huge|Huge|displaystyle|textstyle"
    r"|scriptstyle|limits|nolimits|rm|bf|it|em|bfseries|itshape|mathstrut|strut|centering|boldmath)(?![A-Za-z])"
)
_NESTED = re.compile(r"\\text\s*\{([^{}]*)\\text\s*\{([^{}]*)\}([^{}]*)\}")
_FORMULA_IN_TEXT = re.compile(r"\\text\s*\{\s*\$([^$]*)\$\s*\}")
# Text with digits is an answer that was set in text as a whole: \text{12 chickens and 18 rabbits}.
_NUMBER_IN_TEXT = re.compile(r"\\text\s*\{((?=[^{}]*\d)(?![^{}]*_)[^{}]*)\}(?!\s*_)")
_NO_TEXT = re.compile(
    r"\\text\s*+\{\s*+([ei]|(?:arc)?(?:sin|cos|tan|cot|sec|csc)|ln|log|lcm|gcd|(?:max|min)(?=\s*\}\s*[({\\_]))\s*+\}"
)
_MONEY = {
    "\\$": "dollars", "US\\$": "dollars", "USD": "dollars", "\\euro": "euros", "\\texteuro": "euros", "EUR": "euros",
    "\\pounds": "sterling", "\\textsterling": "sterling", "GBP": "sterling", "\\yen": "yuan", "\\textyen": "yuan",
    "\\rupees": "rupees", "Rs.": "rupees", "Rs": "rupees", "\\textdollar": "dollars",
}  # fmt: skip
_CURRENCY = "|".join(
    re.escape(sign) + ("(?![A-Za-z])" if sign[-1].isalpha() else "") for sign in sorted(_MONEY, key=len, reverse=True)
)
_AMOUNT = r"-?\s*(?:\d+(?:,\d{3})*(?:\.\d+)?|\.\d+)"
_PRICES = (
    (re.compile(rf"(-?)\s*(?:\\text\s*\{{\s*)?({_CURRENCY})\s*\}}?\s*({_AMOUNT})"), (3, 2)),
    (re.compile(rf"(-?)({_AMOUNT})\s*({_CURRENCY})"), (2, 3)),
)
_ORDINAL = r"\\text\s*\{\s*(?:st|nd|rd|th)\s*\}"
# The order matters: a pattern may rely on what those before it have written.
_COMMANDS = (
    (re.compile(r"\\(?:left|right|middle|[bB]igg?[lrm]?)(?![A-Za-z])\s*\.?"), ""),
    (re.compile(r"(?<=\d)\s*(?:,\s*\\!|\{\s*,\s*\})\s*(?=\d{3}(?!\d))"), ""),
    (re.compile(r"(?<=\d)(?:\\[,;: ]|~)(?=\d{3}(?!\d))"), ""),
    (re.compile(r"\\(?:phantom|hspace|vspace|label|tag)\s*\*?\{[^{}]*\}"), " "),
    (re.compile(r"(?:\\(?:q?quad|hfill)\s*)+\\(?:blacksquare|square|Box|qed)\s*$"), ""),  # the end of a proof
    (re.compile(r"\\q?quad|\\(?:thinspace|enspace|space)(?![A-Za-z])|(?<!\\)\\[,;:! ]|~|\\\\\s*$"), " "),
    (re.compile(r"\{\s*\}(?=\s*\^)"), ""),
    (re.compile(r"\\(?:dfrac|tfrac|cfrac)(?![A-Za-z])"), r"\\frac"),
    (re.compile(r"\\[dt]binom(?![A-Za-z])"), r"\\binom"),
    (re.compile(r"\\(?:l|r)?vert(?![A-Za-z])"), "|"),
    (re.compile(r"\\lbrace(?![A-Za-z])"), r"\\{"),
    (re.compile(r"\\rbrace(?![A-Za-z])"), r"\\}"),
    (re.compile(r"\\(?:leq|leqslant|leqq)(?![A-Za-z])|<="), r"\\le "),
    (re.compile(r"\\(?:geq|geqslant|geqq)(?![A-Za-z])|>="), r"\\ge "),
    (re.compile(r"\\neq(?![A-Za-z])|!=|\\not\s*="), r"\\ne "),
    (re.compile(r"\\(?:varnothing|O)(?![A-Za-z])"), r"\\emptyset"),
    (re.compile(r"\\var(?=epsilon|theta|phi|rho|sigma)"), r"\\"),
    (re.compile(r"\\(?:ldots|cdots|dots|dotsc)(?![A-Za-z])|\.\.\.+"), r"\\ldots "),
    (re.compile(r"\\degree(?:s)?(?![A-Za-z])|\^\s*\{\s*\\circ\s*\}"), r"^\\circ "),
    (re.compile(r"\^\s*\\circ\s*(?:\\text\s*\{\s*([CF])\s*\}|\b([CF])\b)"), lambda found: _temperature(found)),
    (re.compile(r"(?<=[\d}])\s*(k?)\\Omega(?![A-Za-z])"), r"\\text{\1ohm}"),
    (re.compile(r"\\mu\s*(?:\\text\s*\{\s*([a-zA-Z])\s*\}|([mgsLFAVC])\b)"), r"\\text{micro\1\2}"),
    (
        re.compile(r"(?<=\d)\s*\(\s*(?:\\text\s*\{\s*([A-Za-z^\d ]{1,12}|[^\W\d_]{1,2})\s*\}|([ckmd]m|kg))\s*\)$"),
        r"\\text{\1\2}",
    ),
    (re.compile(r"\\(?:bmod|mod)(?![A-Za-z])|\\pmod\s*(?=\{)"), r"\\pmod"),
    (re.compile(r"\^\s*\{((?:\s*(?:\\prime|'))+)\s*\}|\^\s*(\\prime|')"), lambda found: _primes(found)),
    (re.compile(r"\*\*"), "^"),
    (re.compile(r"\\(?:ast|star)(?![A-Za-z])"), "*"),
    (re.compile(r"\\(?:Longrightarrow|longrightarrow)(?![A-Za-z])"), r"\\to "),
    (re.compile(r"\\text\s*\{\s*(?:percent|per cent|pct)\s*\}|\b(?:percent|pct)\b"), r"\\%"),
    # x between a number and a power of ten is a sign of multiplication
    (re.compile(r"(?<=[\d.])\s*(?:[xX]|\\text\s*\{\s*[xX]\s*\})\s*(?=10\s*\^)"), r"\\times "),
    (re.compile(r"^(\d+)\s+(?:to|\\text\s*\{\s*to\s*\})\s+(\d+)$"), r"\1:\2"),
    # the numbers of combinations and of arrangements
    (
        re.compile(
            r"(?<![A-Za-z\\])(?:([CA])|\\text\s*\{\s*([CA])\s*\})_\s*(?:\{\s*(\d{1,3})\s*\}|(\d))\s*\^\s*(?:\{\s*(\d{1,3})\s*\}|(\d))"
        ),
        lambda found: _count(found),
    ),
    # 14^{\text{th}}, 2nd: an ordinal is its number
    (re.compile(rf"(?<=\d)\s*(?:\^\s*\{{\s*{_ORDINAL}\s*\}}|\^?\s*{_ORDINAL})"), " "),
    (re.compile(r"(?<=\d)(?:\s*\^\s*\{\s*(?:st|nd|rd|th)\s*\}|(?:st|nd|rd|th)\b)"), " "),
    (re.compile(r"\\frac\s*\{\s*\\text\s*\{([^{}]*)\}\s*\}\s*\{\s*\\text\s*\{([^{}]*)\}\s*\}"), r"\\text{\1/\2}"),
    # behind the sign of membership, a bare letter is a set of numbers: k \in Z
    (
        re.compile(r"\\in\s*(?:\\text\s*)?(?:\{\s*([RZNQC])\s*\}|([RZNQC]))(?![A-Za-z'(])"),
        lambda found: rf"\in \mathbb{{{found[1] or found[2]}}}",
    ),
    # N^*, N_+ and Z^+ are the positive integers
    (
        re.compile(
            r"\\mathbb\s*(?:\{\s*N\s*\}\s*[\^_]\s*(?:\{\s*[*+]\s*\}|[*+])|\{\s*Z\s*\}\s*[\^_]\s*(?:\{\s*\+\s*\}|\+))"
        ),
        r"\\mathbb{N}_+",
    ),
    # k\pi (k \in Z): a condition in brackets behind a value
    (
        re.compile(r"(?<=[\da-z)}\]])\s*\(([^()]*(?:\\(?:in|le|ge|ne)(?![A-Za-z])|[<>])[^()]*)\)(?=\s*(?:\\\})?$)"),
        r", \1",
    ),
    (re.compile(r"(?<=[\d)}\]])(or|and)(?=[A-Z(\d\\]|[a-z]\s*[=(<>])"), r" \1 "),
)
_SYSTEM = re.compile(
    r"\\left\s*\\\{\s*\\begin\s*\{(array|aligned|gathered|matrix)\}(?:\s*\{[^{}]*\})?(.*)\\end\s*\{\1\}\s*\\right\s*\.?",
    re.DOTALL,
)
_WRAPPED = re.compile(r"\$\$(.*)\$\$|\$([^$]*)\$|\\\((.*)\\\)|\\\[(.*)\\\]|\*\*(.*)\*\*|__(.*)__|`(.*)`", re.DOTALL)
_LEAD = re.compile(
    r"(?:\\text\s*\{)?\s*(?:so|thus|hence|therefore)?,?\s*(?:the\s+)?(?:final\s+)?answer\s+is\s*:?\s*\}?", re.I
)
_SAID = re.compile(r"\\text\w*\s*\{([^{}]*)\}")
_ABOUT = re.compile(r"(?:\\approx|\\text\s*\{\s*(?:approximately|about)\s*\}|approximately\b|about\b)\s*")
_TRAILING = re.compile(r"\s*(?:\\\\|\\,|(?<!\\)[,;]|(?<!\.)\.)$")
_STARS = re.compile(r"^\*+|(?<![\^_*])\*+$")  # N^* keeps its own
_FRENCH = re.compile(r"([\]\[])([^\[\](){}]+,[^\[\](){}]+)([\]\[])")


class Unread(ValueError):
    """Text that is not an answer this package can read."""


class Explodes(ValueError):
    """Text whose value is too large to be worked out."""


def clean(text: str) -> str:
    """Returns a text without delimiters, spacing, emphasis and final full stop; raises Explodes if it is too long."""
    text = text.strip()
    if len(text) > MAX_CHARACTERS:
        raise Explodes(f"{len(text)} characters, above {MAX_CHARACTERS}")
    text = re.sub(r"\s{2,}", " ", text)  # patterns with two runs of blanks side by side take quadratic time
    if "\\begin" not in text:  # there two backslashes end a row; here they are one that was escaped twice
        text = re.sub(r"\\\\(?=[A-Za-z])", r"\\", text)
    # Signs come first, because all later patterns know ASCII only; then what stands around the answer; then money, as
    # long as a dollar can still be told from the bounds of a formula.
    text = translated(ascii_text(text)).strip()
    text = _unwrapped(text)
    text = _priced(text)
    text = re.sub(r"(?<!\\)\$", "", text)
    text = _SYSTEM.sub(r"\\begin{cases}\2\\end{cases}", text)
    text = _plain_style(text)
    for pattern, replacement in _COMMANDS:
        text = pattern.sub(replacement, text)
    if french := _FRENCH.fullmatch(text.strip()):
        text = french[1].replace("]", "(") + french[2] + french[3].replace("[", ")")
    return text.strip()


def _unwrapped(text: str) -> str:
    """Returns the text without what stands around an answer: dollars, asterisks, "the answer is", a full stop."""
    # Each layer may hide another: **The answer is: $7$.**
    for _ in range(4):
        before = text
        text = _TRAILING.sub("", _STARS.sub("", text.strip()))
        for lead in (_LEAD, _ABOUT):
            if match := lead.match(text):
                text = text[match.end() :]
        if (said := _SAID.fullmatch(text)) and _LEAD.match(said[1]):
            text = said[1]
        if (wrapped := _WRAPPED.fullmatch(text)) and not wrapped[wrapped.lastindex or 0].endswith("\\"):
            text = wrapped[wrapped.lastindex or 0]
        if text == before:
            break
    return text


def _priced(text: str) -> str:
    r"""Returns the text with signs of money as units behind their number: `\$5`, `$5`, `5€` and `¥ 5`."""
    if not re.search(rf"\$|{_CURRENCY}", text):
        return text
    text = _FORMULA_IN_TEXT.sub(r" \1 ", _UPRIGHT.sub(r"\\text", text))
    text = re.sub(r"(?<!\\)\$(?!\s)([^$]+)(?<![\s\\])\$(?!\d)", r"\1", text)  # a formula, such as $5$ miles
    text = re.sub(r"(?<!\\)\$(?=\s*-?[\d.])|\\text\s*\{\s*\\?\$\s*\}", r"\\$", text)
    for pattern, (amount, sign) in _PRICES:
        text = pattern.sub(lambda found, a=amount, s=sign: rf"{found[1]}{found[a]}\text{{{_MONEY[found[s]]}}}", text)
    return text


def _plain_style(text: str) -> str:
    r"""Returns the text without colours and sizes.

    Upright fonts become `\text`, and no `\text` is left inside another or around digits.
    """
    if "\\" not in text:
        return text
    for pattern, replacement in _COLOURS:
        text = pattern.sub(replacement, text)
    text = _SIZES.sub(" ", text)
    text = _STYLED.sub("", _UPRIGHT.sub(r"\\text", text))
    for _ in range(3):
        before = text
        text = _NESTED.sub(r"\\text{\1\2\3}", text)
        text = re.sub(r"\\text\s*\{\s*\{([^{}]*)\}\s*\}", r"\\text{\1}", text)
        text = re.sub(r"\\text\s*\{((?:[^{}]|\^\s*\{\s*-?\d\s*\})*)\}", _without_braces, text)
        if text == before:
            break
    text = _NO_TEXT.sub(r" \1 ", text)
    return _NUMBER_IN_TEXT.sub(_without_text, text)


def _without_braces(found: re.Match[str]) -> str:
    r"""`\text{m/s^{2}}` as `\text{m/s^2}`, so that no braces stand inside a text."""
    return rf"\text{{{re.sub('[{}]', '', found[1])}}}"


def _without_text(found: re.Match[str]) -> str:
    """Returns the content of a text with digits, unless they are an exponent: units such as m/s^2 stay texts."""
    return found.group() if re.fullmatch(r"[^\d]*(?:\^\s*-?\d[^\d]*)+", found[1]) else f" {found[1]} "


def _primes(found: re.Match[str]) -> str:
    return "'" * len(re.findall(r"\\prime|'", found.group()))


def _temperature(found: re.Match[str]) -> str:
    scale = {"C": "celsius", "F": "fahrenheit"}[found[1] or found[2]]
    return rf"\text{{{scale}}}"


def _count(found: re.Match[str]) -> str:
    """`C_5^2` as 5 over 2, and `A_5^2` as 5!/3!; anything that counts nothing stays as it is."""
    of, some = int(found[3] or found[4]), int(found[5] or found[6])
    if some > of:
        return found.group()
    is_combination = "C" in (found[1], found[2])
    return rf"\binom{{{of}}}{{{some}}}" if is_combination else rf"\frac{{{of}!}}{{{of - some}!}}"
