"""What the judge answered: a verdict in double brackets on the last line that has any, else none. Pure functions.

A judge thinks aloud, quotes the answers and repeats its instructions. So the verdict counts only behind its thought,
and a line with several different ones ("[[A]] or [[B]]") is no verdict: nothing is guessed.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

from rewards.extract import thought_end

_MARK = re.compile(r"\[\[([^\[\]\n]{1,40})\]\]")
_NUMBER = re.compile(r"-?[0-9]{1,9}(?:\.[0-9]{1,9})?")
PAIRS = {"A": 1.0, "B": 0.0, "C": 0.5}
YES_NO = {"YES": 1.0, "NO": 0.0}


@dataclass(frozen=True, slots=True, kw_only=True)
class Form:
    """How a verdict is written, and what it is worth, from 0 to 1.

    Example: `score(1, 10).read("Clear, but long. [[7]]")` is 2/3
    """

    ending: str
    """The sentence behind the rubric that asks for this form."""
    values: dict[str, float] | None
    """What each word is worth; None for a number between the two of `scale`."""
    scale: tuple[float, float]

    def read(self, answer: str) -> float | None:
        """Returns what the verdict is worth: v = (score - low) / (high - low), or that of its word; None without one.

        A score outside the scale is no verdict either.
        """
        word = last_verdict(answer)
        if word is None:
            return None
        if self.values is not None:
            return self.values.get(word.upper())
        low, high = self.scale
        if not _NUMBER.fullmatch(word) or not low <= float(word) <= high:
            return None
        return (float(word) - low) / (high - low)


def pairs() -> Form:
    """Asks which of two answers is better; 1 stands for the first, 0.5 for a tie."""
    ending = (
        "End with a line that holds nothing but your verdict: [[A]] if answer A is better, [[B]] if answer B is "
        "better, [[C]] if neither is."
    )
    return Form(ending=ending, values=PAIRS, scale=(0.0, 1.0))


def yes_no() -> Form:
    """Asks whether an answer fulfils the rubric."""
    ending = "End with a line that holds nothing but your verdict: [[YES]] or [[NO]]."
    return Form(ending=ending, values=YES_NO, scale=(0.0, 1.0))


def score(low: float, high: float) -> Form:
    """Asks for a number from `low` to `high`; raises ValueError if that is no range."""
    if not (math.isfinite(low) and math.isfinite(high) and low < high):
        raise ValueError(f"scale=[{low}, {high}]: give the lowest and the highest score, as [1, 10]")
    ending = f"End with a line that holds nothing but your score, from {low:g} to {high:g}: [[SCORE]]."
    return Form(ending=ending, values=None, scale=(low, high))


def last_verdict(answer: str) -> str | None:
    """Returns what the last line with double brackets holds in them; None if that is several things, or nothing."""
    end = thought_end(answer)
    if end is None:
        return None
    for line in reversed(answer[end:].splitlines()):
        if found := {mark.strip() for mark in _MARK.findall(line)}:
            return found.pop() if len(found) == 1 else None
    return None
