r"""Measure how much of the thought is written in the target language, which the script of its letters tells.

What is not covered: languages that share a script (English and French look alike), the answer outside the thought, and
Latin text hidden in code. Letters of code fences, formulas and LaTeX commands, tags, and letters that stand alone
(`x = 3`) are not counted, unless they are of a script that neither code nor formulas are written in.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Iterator, Sequence
from functools import cache

from rewards.base import Reward, Sample

SCRIPTS = {
    "LATIN": "en de fr es it pt nl sv da no fi pl cs hu ro tr vi id",
    "CJK": "zh ja",
    "IDEOGRAPHIC": "zh ja",
    "HIRAGANA": "ja",
    "KATAKANA": "ja",
    "HANGUL": "ko",
    "CYRILLIC": "ru uk bg sr",
    "GREEK": "el",
    "ARABIC": "ar fa ur",
    "HEBREW": "he",
    "DEVANAGARI": "hi mr ne",
    "BENGALI": "bn",
    "THAI": "th",
}
"""The first word of a letter's Unicode name, and the languages that are written with such letters."""

_IN_CODE = {"LATIN", "GREEK"}
"""Scripts of programs and formulas, whatever language is spoken around them."""
_PAIRS = (("```", "```"), ("$$", "$$"), (r"\[", r"\]"), (r"\(", r"\)"), (r"\begin{", r"\end{"))
_INLINE = re.compile(r"\$[^$\n]*\$|`[^`\n]*`|\\[A-Za-z]+|</?[A-Za-z]+>")
_LATIN = r"[A-Za-z\u00c0-\u024f]"
_ALONE = re.compile(rf"(?<!{_LATIN})[A-Za-z\u0370-\u03ff](?!{_LATIN})")


class LanguageShare:
    """The share of the letters of the thought that belong to the script of `language`, from 0 to 1.

    share = letters of the target's scripts / letters, over the text between `<think>` and the last `</think>`; over all
    of it where a tag is missing. (DeepSeek-R1, arXiv:2501.12948, section 2.3.2, counts words: scripts without spaces
    have none.) Code and formulas add no letters of the target, of Latin or of Greek, but those of any other script. A
    thought with fewer than `min_characters` letters earns 0.
    """

    independent = True

    def __init__(self, language: str = "en", min_characters: int = 20) -> None:
        """Raises ValueError for a language whose script is not known.

        With `min_characters=0` a thought without letters (nothing, dots, one formula) earns the whole reward.
        """
        known = sorted({name for names in SCRIPTS.values() for name in names.split()})
        if language not in known:
            raise ValueError(f"language={language!r} is not known; use one of {', '.join(known)}")
        self.scripts = {script for script, names in SCRIPTS.items() if language in names.split()}
        self.min_characters = min_characters

    def __call__(self, samples: Sequence[Sample]) -> list[Reward]:
        """Judges each sample. Reasons: measured, no_letters, too_short; the logs count the letters of each script."""
        return [self._one(sample.completion) for sample in samples]

    def _one(self, completion: str) -> Reward:
        thought = thought_of(completion)
        letters = _count(prose_of(thought))
        # A thought in another language must not earn more between ``` or $ than it does without.
        letters |= {script: n for script, n in _count(thought).items() if script not in self.scripts | _IN_CODE}
        if letters.total() < self.min_characters:
            return Reward(0.0, "too_short")
        if not letters:
            return Reward(1.0, "no_letters")
        own = sum(letters[script] for script in self.scripts)
        return Reward(own / letters.total(), "measured", logs=dict(letters))


def thought_of(completion: str) -> str:
    """Returns the text between the first `<think>` and the last `</think>`, without the blanks around it.

    Without `<think>` it starts at the beginning, as the prompt may have opened it; without `</think>` it has no end.
    """
    before, closed, _ = completion.rpartition("</think>")
    text = before if closed else completion
    _, opened, inside = text.partition("<think>")
    return (inside if opened else text).strip()


def prose_of(text: str) -> str:
    """Removes code, formulas, LaTeX commands, tags and letters that stand alone, in time linear in the length."""
    for opener, closer in _PAIRS:
        text = " ".join(_outside(text, opener, closer))
    return _ALONE.sub(" ", _INLINE.sub(" ", text))


@cache
def script_of(letter: str) -> str:
    """Returns the first word of a letter's Unicode name ("LATIN", "CJK"); wide, narrow and styled forms count alike."""
    words = unicodedata.name(unicodedata.normalize("NFKC", letter)[:1], "").replace("-", " ").split()
    return words[0] if words else ""


def _count(text: str) -> Counter[str]:
    """Counts the letters of each script."""
    letters: Counter[str] = Counter()
    for character, count in Counter(text).items():
        if character.isalpha():
            letters[script_of(character)] += count
    return letters


def _outside(text: str, opener: str, closer: str) -> Iterator[str]:
    start = 0
    while (begin := text.find(opener, start)) >= 0:
        end = text.find(closer, begin + len(opener))
        if end < 0:  # never closed: searching again from the next opener would take quadratic time
            break
        yield text[start:begin]
        start = end + len(closer)
    yield text[start:]
