"""Refusals of a setting that cannot work; each names the key, its value and the fix.

A check says what is good, and refuses everything else. The other way round, "refuse what is below 0", lets NaN pass,
because every comparison with NaN is false.
"""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from typing import TypeGuard

from rlkit.errors import UserError

LARGEST = 1e15
"""No setting means anything above it, and its square is still finite in fp32."""
MOST = 2**31 - 1
"""The largest count: it fits every integer type below us, and no run reaches it."""
MAX_SEED = 2**63 - 1
"""Seeds are stored as signed 64-bit integers."""
MAX_PROCESSES = 4096
"""No run has more engines, ranks or reward processes, nor threads in one of them: a larger number is a slip."""
SHOWN = 200
"""Characters of a value in a message."""


def is_number(value: object) -> TypeGuard[float]:
    """Says whether a value is a number that a tensor can hold: neither NaN, nor infinite, nor True."""
    return isinstance(value, int | float) and not isinstance(value, bool) and -LARGEST <= value <= LARGEST


def is_whole(value: object) -> TypeGuard[int]:
    """Says whether a value is a whole number; True and 2.0 are not."""
    return isinstance(value, int) and not isinstance(value, bool)


def number(
    key: str,
    value: float,
    *,
    least: float = -LARGEST,
    above: float = -LARGEST,
    most: float = LARGEST,
    below: float = LARGEST,
    fix: str = "",
) -> None:
    """Raises UserError unless `value` is a number inside all four bounds; no bound lets NaN or an infinity pass."""
    if is_number(value) and least <= value <= most and above < value < below:
        return
    low = f"at least {least:g}" if least > above else f"above {above:g}" if above > -LARGEST else ""
    high = f"at most {most:g}" if most < below else f"below {below:g}" if below < LARGEST else ""
    words = " and ".join(filter(None, (low, high))) or f"between -{LARGEST:g} and {LARGEST:g}"
    raise _refusal(key, value, words if is_number(value) else f"a finite number, {words}", fix)


def whole(key: str, value: int, *, least: int = 0, most: int = MOST, fix: str = "") -> None:
    """Raises UserError unless `value` is a whole number from `least` to `most`."""
    if is_whole(value) and least <= value <= most:
        return
    words = f"at most {most}" if is_whole(value) and value > most else f"at least {least}"
    raise _refusal(key, value, words if is_whole(value) else f"a whole number, {words}", fix)


def seed(key: str, value: int) -> None:
    """Raises UserError unless `value` can seed every random generator of a run."""
    whole(key, value, most=MAX_SEED, fix="any such number gives one run; 0 is the default")


def one_of(key: str, value: str, choices: Sequence[str]) -> None:
    """Raises UserError with the nearest choice, unless `value` is one of them."""
    if value not in choices:
        raise UserError(f"{key}={value!r} is unknown; use {' or '.join(choices)}{suggestion(value, choices)}")


ELSEWHERE = {"learning_rate": "lr", "beta": "kl_coef", "num_generations": "group_size", "kl_loss_coef": "kl_coef"}
"""What TRL and verl call a setting, and its name here."""


def suggestion(word: str, known: Sequence[str]) -> str:
    """Returns the known word nearest to a misspelt one, as the end of an error message; "" if none is near."""
    # A key is first looked for by its last part, which people know from elsewhere: algo.lr is algo.schedule.lr.
    group, _, last = word.rpartition(".")
    last = ELSEWHERE.get(last, last)
    ends = [key for key in known if group and key.endswith(f".{last}")]
    near = sorted(ends, key=lambda key: not key.startswith(group)) or difflib.get_close_matches(word, known, n=1)
    return f" (did you mean {near[0]!r}?)" if near else ""


def shown(value: object) -> str:
    """Returns a value as a message shows it: a number of 300 digits is cut, and says how many there are."""
    if isinstance(value, int) and abs(value) >= 10**SHOWN:
        return f"{value >> value.bit_length() - 64}... (a number of {value.bit_length()} bits)"
    text = str(value) if isinstance(value, int | float) else repr(value)
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}... ({len(text)} characters)"


def _refusal(key: str, value: object, words: str, fix: str) -> UserError:
    return UserError(f"{key}={shown(value)} must be {words}" + (f"; {fix}" if fix else ""))
