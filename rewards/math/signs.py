r"""Writes Unicode signs as LaTeX, so that all later steps read one alphabet: `2¹²` is `2^{12}`, `½` is `\frac{1}{2}`.

Letters of other alphabets stay as they are; Chinese words are translated in `chinese.py`.
"""

from __future__ import annotations

import re
import unicodedata

GREEK = re.findall(
    "[a-z]+",
    "alpha beta gamma delta epsilon zeta eta theta iota kappa lambda mu nu xi pi rho sigma tau phi chi psi omega",
)
_SIGNS = {
    "\u2010": "-", "\u2011": "-", "\u2012": "-", "\u2013": "-", "\u2014": "-", "\u2015": "-", "\u2212": "-",
    "\uff0d": "-", "\ufe63": "-", "\u00d7": r"\times ", "\u2715": r"\times ", "\u2217": "*", "\u00b7": r"\cdot ",
    "\u22c5": r"\cdot ", "\u2022": r"\cdot ", "\u30fb": r"\cdot ", "\u00f7": "/", "\u2044": "/", "\u2215": "/",
    "\u221a": r"\sqrt ", "\u221b": r"\sqrt[3] ", "\u221c": r"\sqrt[4] ",
    "\u221e": r"\infty ", "\u2264": r"\le ", "\u2265": r"\ge ", "\u2266": r"\le ",
    "\u2267": r"\ge ", "\u2a7d": r"\le ", "\u2a7e": r"\ge ", "\u2260": r"\ne ", "\u2248": r"\approx ",
    "\u2252": r"\approx ", "\u2261": r"\equiv ", "\u2208": r"\in ", "\u222a": r"\cup ", "\u2229": r"\cap ",
    "\u2216": r"\setminus ", "\u2205": r"\emptyset ", "\u00d8": r"\emptyset ", "\u2200": r"\forall ",
    "\u2228": r"\lor ", "\u2227": r"\land ", "\u00b0": r"^\circ ", "\u00ba": r"^\circ ", "\u02da": r"^\circ ",
    "\u2103": r"^\circ\text{C}", "\u2109": r"^\circ\text{F}", "\u00b1": r"\pm ", "\u2213": r"\mp ",
    "\u2102": r"\mathbb{C}", "\u211d": r"\mathbb{R}", "\u2124": r"\mathbb{Z}", "\u2115": r"\mathbb{N}",
    "\u211a": r"\mathbb{Q}", "\u2220": r"\angle ", "\u25b3": r"\triangle ",
    "\u22a5": r"\perp ", "\u2225": r"\parallel ", "\u2223": "|", "\u2026": r"\ldots ", "\u22ef": r"\ldots ",
    "\u27e8": r"\langle ", "\u27e9": r"\rangle ", "\u2329": r"\langle ", "\u232a": r"\rangle ",
    "\u230a": r"\lfloor ", "\u230b": r"\rfloor ", "\u2308": r"\lceil ", "\u2309": r"\rceil ", "\u2236": ":",
    "\u3001": ",", "\u3002": ".", "\uff61": ".", "\u00a0": " ", "\u3000": " ", "\u202f": " ", "\u2009": " ",
    "\u2019": "'", "\u2032": "'", "\u03c6": r"\phi ", "\u2206": r"\Delta ", "\u2211": r"\sum ", "\u220f": r"\prod ",
    "\u222b": r"\int ", "\u2192": r"\to ", "\uff5b": r"\{", "\uff5d": r"\}",
    "\u00a2": r"\text{cents}",
    "\u20ac": r"\euro ", "\u00a3": r"\pounds ", "\u00a5": r"\yen ", "\uffe5": r"\yen ", "\u20b9": r"\rupees ",
    "\u200b": "", "\u200c": "", "\u200d": "", "\u2060": "", "\ufeff": "", "\u00ad": "", "\ufe0f": "",
}  # fmt: skip
_UNICODE = re.compile(r"[^\x00-\x7f]+")


def _raised_or_lowered(script: str) -> dict[str, str]:
    """Returns the raised (or lowered) signs of Unicode, each with the plain sign that it is a small copy of."""
    found = {}
    for code in [
        *range(0x00B2, 0x00BA),
        *range(0x02B0, 0x0300),
        *range(0x1D2C, 0x1D6B),
        *range(0x2070, 0x209D),
        0x2C7C,
    ]:
        name, plain = unicodedata.name(chr(code), ""), unicodedata.normalize("NFKC", chr(code))
        plain = plain.replace("\u2212", "-")
        kind = unicodedata.decomposition(chr(code)).partition(" ")[0]
        if name and kind == script and len(plain) == 1 and plain.isascii():
            found[chr(code)] = plain
    return found


_RAISED, _LOWERED = _raised_or_lowered("<super>"), _raised_or_lowered("<sub>")
# A whole run is one exponent: read sign by sign, 2 with a raised 1 and a raised 2 would be (2^1)^2.
_FRACTION = re.compile(f"([{''.join(_RAISED)}]+)[/\u2044]([{''.join(_LOWERED)}]+)")
_RUNS = tuple((re.compile(f"[{''.join(table)}]+"), mark, table) for mark, table in (("^", _RAISED), ("_", _LOWERED)))


def ascii_text(text: str) -> str:
    """Returns the text with LaTeX in place of signs; the letters that remain are those of other alphabets."""
    if text.isascii():
        return text
    text = _FRACTION.sub(lambda found: _fraction(_plain(found[1], _RAISED), _plain(found[2], _LOWERED)), text)
    for run, mark, table in _RUNS:
        text = run.sub(lambda found, mark=mark, table=table: f"{mark}{{{_plain(found.group(), table)}}}", text)
    return _UNICODE.sub(lambda found: "".join(map(_ascii_sign, found.group())), text)


def _plain(run: str, table: dict[str, str]) -> str:
    return "".join(table[sign] for sign in run)


def _fraction(top: str, bottom: str) -> str:
    return rf"\frac{{{top}}}{{{bottom}}}"


def _ascii_sign(sign: str) -> str:
    if sign in _SIGNS:
        return _SIGNS[sign]
    name, form = unicodedata.name(sign, ""), unicodedata.normalize("NFKC", sign)
    if name.startswith("VULGAR FRACTION") and "\u2044" in form:
        top, _, bottom = form.partition("\u2044")
        return _fraction(top, bottom)
    greek = name.removeprefix("GREEK SMALL LETTER ").lower()
    if greek in GREEK:
        return rf"\{greek} "
    if name.startswith("GREEK CAPITAL LETTER ") and name.split()[-1].lower() in GREEK:
        return rf"\{name.split()[-1].title()} "
    if name.startswith("SQUARE ") and form[-1:] in "23":  # one sign for m^2
        return f"{form[:-1]}^{form[-1]}"
    # Full-width letters, digits and signs have a plain form; digits of other scripts, such as the Arabic ones, do not.
    return form if form.isascii() and form.isprintable() else sign
