"""The answer is a number, compared exactly.

What is not covered: fractions such as 3/4, per cent, exponents, units, numbers in words.
"""

from __future__ import annotations

import re
from fractions import Fraction
from typing import Any

from rewards.base import Reward, thought_is_open
from rewards.extract import extract_answer

MAX_CHARACTERS = 400
"""Longer than any sensible number; Python takes quadratic time to read huge ones, and refuses above 4,300 digits."""
_NUMBER = re.compile(r"([+-]?)\$?([+-]?)((?:[0-9]{1,3}(?:,[0-9]{3})+|[0-9]+)(?:\.[0-9]*)?|\.[0-9]+)")


def number(completion: str, answer: str, prompt: Any = "") -> Reward:
    """Gives 1 if the last complete `<answer>...</answer>` after the thinking equals `answer` as a number, else 0.

    Reasons: correct, wrong, no_answer, unparsable; gold_unparsable has no value, for then nothing can be said.
    """
    gold = parse_number(answer)
    if gold is None:
        return Reward(None, "gold_unparsable", logs={"gold": str(answer)[:80]})
    text = extract_answer(completion, thinking=thought_is_open(prompt))
    if text is None:
        return Reward(0.0, "no_answer")
    value = parse_number(text)
    if value is None:
        return Reward(0.0, "unparsable")
    return Reward(1.0, "correct") if value == gold else Reward(0.0, "wrong")


def parse_number(text: str) -> Fraction | None:
    """Reads `42`, `-1,234.50`, `+7`, `$3` or `.5` exactly; None for anything else."""
    text = str(text).strip()
    match = _NUMBER.fullmatch(text) if len(text) <= MAX_CHARACTERS else None
    if match is None or (match[1] and match[2]):
        return None
    return Fraction(f"{match[1] or match[2]}{match[3].replace(',', '')}")
