"""Refusals that name the key, its value and the fix."""

from __future__ import annotations

import difflib
from collections.abc import Sequence


def one_of(key: str, value: str, choices: Sequence[str]) -> None:
    """ValueError with the nearest choice, unless `value` is one of them."""
    if value not in choices:
        raise ValueError(f"{key}={value!r} is unknown; use {' or '.join(choices)}{suggestion(value, choices)}")


def at_least(key: str, value: float, least: float) -> None:
    """ValueError if `value` is below `least`."""
    if value < least:
        raise ValueError(f"{key}={value} must be at least {least}")


def suggestion(word: str, known: Sequence[str]) -> str:
    """The known word nearest to a misspelt one, as the end of an error message; "" if none is near."""
    near = difflib.get_close_matches(word, known, n=1)
    return f" (did you mean {near[0]!r}?)" if near else ""
