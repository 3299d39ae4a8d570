"""Units of measurement: what is measured, and in multiples of what."""

from __future__ import annotations

import re
from dataclasses import dataclass
from fractions import Fraction

from rewards.math.chinese import NO_UNITS

_TABLE = {
    "length": "m metre meter 1, mm millimeter millimetre 1/1000, cm centimeter centimetre 1/100, dm decimeter "
    "decimetre 1/10, km kilometer kilometre 1000, in inch inche 127/5000, ft foot feet 381/1250, yd yard 1143/1250, "
    "mi mile 201168/125, nmi 1852",
    "mass": "g gram gm 1, kg kilogram 1000, mg milligram 1/1000, lb pound 45359237/100000, oz ounce 45359237/1600000",
    "time": "s sec second 1, ms millisecond 1/1000, min minute 60, h hr hour 3600, day 86400, week 604800, month "
    "2629746, yr year 31556952",
    "volume": "l liter litre 1/1000, ml milliliter millilitre 1/1000000",
    "money": "dollar usd buck 1, cent 1/100",
    "euros": "euro eur 1",
    "pounds sterling": "sterling gbp 1",
    "yuan or yen": "yuan yen rmb cny jpy 1, jiao 1/10",
    "rupees": "rupee inr rs 1",
    "angle": "degree deg 1",
    "celsius": "celsius 1",
    "temperature": "kelvin 1",
    "fahrenheit": "fahrenheit 1",
    "speed": "mph 1397/3125, kmh kph 5/18",
    "force": "newton 1, kn 1000",
    "energy": "joule 1, kj 1000, kwh 3600000, ev 801088317/5000000000000000000000000000",
    "power": "watt 1, kw 1000",
    "voltage": "volt 1",
    "current": "ampere amp 1",
    "pressure": "pa pascal 1, kpa 1000, atm 101325",
    "amount": "mol mole 1",
    "frequency": "hz hertz 1",
}
SCALES = {
    "hundred": 100, "thousand": 10**3, "myriad": 10**4, "million": 10**6, "billion": 10**9, "trillion": 10**12,
    "dozen": 12,
}  # fmt: skip
_LETTERS = {"N": "newton", "J": "joule", "W": "watt", "V": "volt", "A": "amp", "K": "kelvin", "L": "l"}
"""Units of one capital letter; the small ones m, g, s, h and l are in the table."""
_POWERS = {"square": 2, "sq": 2, "squared": 2, "cubic": 3, "cu": 3, "cubed": 3}
_NAMES: dict[str, tuple[str, Fraction]] = {}
for _kind, _line in _TABLE.items():
    for _entry in _line.split(","):
        *_names, _size = _entry.split()
        _NAMES |= {_name: (_kind, Fraction(_size)) for _name in _names}
_BASE = {"volume": ("length", 3), "speed": ("length", 1)}
_NO_UNITS = frozenset(
    re.findall(
        "[a-z]+",
        "is are was were be not no nor wrong incorrect false true right correct maybe perhaps either or and if else "
        "but instead except about than minus plus at least most over under to from by because since then so hence "
        "never cannot more less fewer above below between half third quarter import guess answer answers solution "
        "solutions versus vs unless other another possibly probably likely whichever also alternatively though "
        "although however while whereas given when assuming one two three four five six seven eight nine ten eleven "
        "twelve thirteen fourteen fifteen sixteen seventeen eighteen nineteen twenty thirty forty fifty sixty seventy "
        "eighty ninety factorial halves halved thirds fourths fifths sixths sevenths eighths ninths tenths hundredths "
        "thousandths tens score doubled tripled mod modulo",
    )
)
"""Words that say more of a number than what it counts."""
MAX_WORDS = 5
MAX_LETTERS = 30
MAX_UNKNOWN = 2
"""Words that are no unit: "children tickets"."""
_NAUTICAL = re.compile(r"nautical\s+miles?", re.IGNORECASE)
_WORD = r"[^\W\d_]+"
_EXPONENT = re.compile(r"\^\s*\{?\s*-?\d")
_PIECE = re.compile(rf"{_WORD}|\^\s*\{{?\s*(-?\d)|[/*.]|\\cdot")
# A unit that is written without \text, at the end of an answer: "m/s^2", "km/h", "cm^3".
_SYMBOL = (
    r"(?:[kcdm]?m|k?g|mg|ms|m?[lL]|k?[NJWV]|k?Pa|kWh|[KAsh]|hr|min|mol|Hz|mi|ft|in|yd|lb|oz|sec|rad|[kMG]?eV|k?cal)"
)
_POWER = r"(?:\s*\^\s*(?:\{\s*-?\d\s*\}|-?\d))?"
_SIGN = rf"(?:\s*(?P<per>/|\\cdot|\*)\s*|\s+(?={_SYMBOL}\s*\^\s*\{{?\s*-))"
_BARE = re.compile(
    rf"(?P<number>.*[\d}})])(?P<space>[\s~]*)(?P<unit>{_SYMBOL}{_POWER}(?:{_SIGN}{_SYMBOL}{_POWER})*)", re.DOTALL
)
_AREA = re.compile(r"m\s*\^\s*\{?\s*[23]")
_QUOTIENT = re.compile(rf"\\frac\s*\{{\s*({_SYMBOL}{_POWER})\s*\}}\s*\{{\s*({_SYMBOL}{_POWER})\s*\}}$")


@dataclass(frozen=True, slots=True, kw_only=True)
class Unit:
    """What a number counts. Example: cm^2 is `Unit(dimension=(("length", 2),), scale=Fraction(1, 10000))`.

    `dimension` is None for things that are merely named ("students"); `scale` is in SI units, dollars or degrees.
    """

    dimension: tuple[tuple[str, int], ...] | None
    scale: Fraction
    count: Fraction = Fraction(1)
    """The 1,000,000 of "million dollars"."""


def is_unit(word: str) -> bool:
    """Returns whether a bare word of two letters or more is a unit or a scale: "cm", "inches", "million"."""
    word = _singular(word.casefold())
    return (
        len(word) > 1
        and (word in _NAMES or word in SCALES or word in _POWERS or word == "per")
        and word not in ("in", "min", "pa", "rs", "kn", "kw", "kj", "hz", "atm")
    )


def with_bare_unit(text: str) -> tuple[str, bool] | None:
    r"""Returns `5 m/s` with its unit in `\text`, and whether it might be a product of letters instead.

    Returns None if there is no such unit. Only a number may stand before it, without any variable. One letter right
    behind the number, as in `5m`, is a variable.
    """
    # In a list each value has its unit: 3 m, 5 m.
    if "," in text and not re.search(r"[(\[{]", text):
        pieces = [with_bare_unit(piece.strip()) for piece in text.split(",")]
        return (", ".join(piece[0] for piece in pieces if piece), False) if all(pieces) else None
    found = _BARE.fullmatch(_QUOTIENT.sub(r" \1/\2", text))
    if found is None:
        return None
    # What states the value may have a name before it, as in v = 5 m/s; a letter inside it makes a product of all.
    value = re.split(r"=|\\approx", found["number"])[-1]
    if re.search(r"[A-Za-z]", re.sub(r"\\[A-Za-z]+", " ", value)):
        return None
    unit = found["unit"]
    if not found["space"] and not found["per"] and len(unit.partition("^")[0].strip()) == 1 and not _AREA.match(unit):
        return None
    is_product = not found["space"] and not found["per"] and len(unit.partition("^")[0].strip()) == 1
    return rf"{found['number']}\text{{{re.sub('[{}]', '', unit)}}}", is_product


def can_be_unit(text: str) -> bool:
    """Returns whether words behind a number only name what it counts: "42 apples", but not "42 is wrong"."""
    words = re.findall(_WORD, text)
    if not words:
        return False
    unknown = [word for word in words if not _is_known(word)]
    # Of 5 squared it is the number that is squared, and no unit.
    if (
        words[0].casefold() in ("squared", "cubed")
        or NO_UNITS.search(text)
        or any(len(word) > MAX_LETTERS for word in unknown)
    ):
        return False
    if unknown and (len(unknown) > MAX_UNKNOWN or re.search(r"[^\w\s^{}*/.\\-]", text)):
        return False
    return (
        len(words) <= MAX_WORDS
        and _NO_UNITS.isdisjoint(map(str.casefold, words))
        and not re.search(r"\d", _EXPONENT.sub("", text))
    )


def _is_known(word: str) -> bool:
    name = _singular(_LETTERS.get(word, word).casefold())
    return name in _NAMES or name in SCALES or name in _POWERS or name in ("per", "cdot", "of")


def read_unit(text: str) -> Unit:
    """Reads "cm^2", "square feet", "miles per hour" or "students"."""
    powers: dict[str, int] = {}
    scale, sign, power, known, last, number = Fraction(1), 1, 1, True, ("", Fraction(1), 0), Fraction(1)
    for match in _PIECE.finditer(_NAUTICAL.sub("nmi", text)):
        word = _LETTERS.get(match.group(), match.group()).casefold()
        name = _singular(word)
        # A power behind a unit belongs to that unit alone: in m/s^2 it is the second that is squared.
        if match[1] or word in ("squared", "cubed"):
            extra = (int(match[1]) if match[1] else _POWERS[word]) - 1
            powers[last[0]] = powers.get(last[0], 0) + extra * last[2]
            scale *= last[1] ** (extra * last[2])
        elif word in _POWERS:
            power = _POWERS[word]
        elif word in ("/", "per"):
            sign = -1
        elif name in SCALES:
            number *= SCALES[name]
        elif name in _NAMES:
            kind, size = _NAMES[name]
            last = (kind, size, sign)
            powers[kind] = powers.get(kind, 0) + sign * power
            scale, power = scale * size ** (sign * power), 1
        elif word not in ("*", ".", "\\cdot"):
            known = False
    for kind, (base, exponent) in _BASE.items():
        if kind in powers:
            count = powers.pop(kind)
            powers[base] = powers.get(base, 0) + count * exponent
            if kind == "speed":
                powers["time"] = powers.get("time", 0) - count
    dimension = tuple(sorted((kind, count) for kind, count in powers.items() if count))
    return Unit(dimension=dimension if known and dimension else None, scale=scale, count=number)


def named_thing(text: str) -> str | None:
    """Returns what a unit that is no measure counts ("chickens" is "chicken"); None for measures such as cm."""
    words = [word for word in re.findall(_WORD, text) if not _is_known(word)]
    return " ".join(word.casefold().removesuffix("s") for word in words) or None


def _singular(word: str) -> str:
    if word in _NAMES or word in SCALES or word in _POWERS:
        return word
    return word.removesuffix("s") if word.removesuffix("s") in _NAMES | SCALES else word.removesuffix("es")
