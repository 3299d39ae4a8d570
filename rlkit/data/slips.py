"""Preferences whose truth is known: a worked solution beside one with a slip in it."""

from __future__ import annotations

import random
import re
from collections.abc import Mapping
from typing import Any

STEP = re.compile(r"(-?\d+)([+-])(\d+)=(-?\d+)")
"""A step of a chain of sums: "46-5=41"."""
SLIPS = (-10, -3, -2, -1, 1, 2, 3, 10)
"""By how much a result is wrong."""


def right_and_wrong(row: Mapping[str, Any], seed: str) -> tuple[str, str] | None:
    """Returns a right completion and a wrong one for a row with a worked `solution` and a whole number as `answer`.

    The wrong one has, as `seed` decides, a slip in one step, with what follows worked out from there (3 in 5); right
    steps and another answer; or no steps and a wrong guess. None for a row that has neither steps nor such an answer.
    """
    solution, answer = str(row.get("solution", "")), str(row.get("answer", ""))
    if not solution or not re.fullmatch(r"-?\d+", answer):
        return None
    draw = random.Random(seed)
    steps, other = [found.groups() for found in STEP.finditer(solution)], str(int(answer) + draw.choice(SLIPS))
    kind = draw.choice(("slip", "slip", "slip", "answer", "guess"))
    if kind == "slip" and steps:
        wrong = _slipped(steps, draw)
    else:
        wrong = completion("" if kind == "guess" else solution, other)
    return completion(solution, answer), wrong


def completion(thought: str, answer: str) -> str:
    """Writes a thought and an answer between their marks."""
    return f"<think>{thought}</think><answer>{answer}</answer>"


def _slipped(steps: list[tuple[str, ...]], draw: random.Random) -> str:
    """Works a chain of sums out again, with a slip in one of its steps."""
    place, slip, total, written = draw.randrange(len(steps)), draw.choice(SLIPS), int(steps[0][0]), []
    for number, (_, sign, term, _) in enumerate(steps):
        after = total + int(f"{sign}{term}") + (slip if number == place else 0)
        written.append(f"{total}{sign}{term}={after}")
        total = after
    return completion(" ".join(written), str(total))
