"""Decides whether what a program gives is what is expected, for values as JSON has them, and numbers as in contests."""

from __future__ import annotations

import math
import operator
import re
from collections.abc import Callable
from decimal import Decimal
from typing import Any

RELATIVE, ABSOLUTE = 1e-5, 1e-6
"""How far a number may be from the expected one: either of them is enough. The judges of APPS and CodeContests allow
1e-5; statements of problems mostly ask for 1e-6, and near 0 only that counts."""
_NUMBER = re.compile(r"[-+]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][-+]?[0-9]{1,4})?")
_INTEGER = re.compile(r"[-+]?[0-9]+")


def equal(returned: Any, expected: Any, same: Callable[[Any, Any], bool] = operator.eq) -> bool:
    """Whether a value is the expected one, but that a tuple may stand where a list is expected, at any depth.

    What is expected mostly comes from JSON, which has no tuples. `same` may take more for equal than Python does; it
    decides about what is in the containers.
    """
    return bool(returned == expected) or _matches(returned, expected, same)


def _matches(returned: Any, expected: Any, same: Callable[[Any, Any], bool]) -> bool:
    if isinstance(expected, list) and isinstance(returned, list | tuple):
        pairs = zip(returned, expected, strict=False)
        return len(returned) == len(expected) and all(_matches(one, other, same) for one, other in pairs)
    if isinstance(expected, dict) and isinstance(returned, dict):
        pairs = ((returned[key], value) for key, value in expected.items())
        return returned.keys() == expected.keys() and all(_matches(one, other, same) for one, other in pairs)
    return bool(same(returned, expected))


def close(returned: Any, expected: Any) -> bool:
    """Compares as `==` does, but that a float may be nearly what is expected; it is meant for `equal`.

    Where an integer is expected only the absolute difference counts: 1000000007.3 is not 1000000007.
    """
    if returned == expected:
        return True
    if type(returned) is not float or type(expected) not in (int, float):
        return False
    return math.isclose(returned, expected, rel_tol=RELATIVE * (type(expected) is float), abs_tol=ABSOLUTE)


def same_line(printed: str, expected: str) -> bool:
    """Whether a printed line has the words of the expected one, but that a float may be written differently, or nearly.

    `0.50` is `0.5` and `1e3` is `1000`. How much white space is between the words does not count, as with the judges of
    contests. Integers are compared as they are written: `0011` may be meant as text.
    """
    got, wanted = printed.split(), expected.split()
    pairs = zip(got, wanted, strict=False)
    return len(got) == len(wanted) and all(one == other or _same_number(one, other) for one, other in pairs)


def _same_number(printed: str, expected: str) -> bool:
    if not (_NUMBER.fullmatch(printed) and _NUMBER.fullmatch(expected)):
        return False
    is_integer = _INTEGER.fullmatch(expected) is not None
    if is_integer and _INTEGER.fullmatch(printed):
        return False
    try:  # decimals, which have no largest number and lose no digits of a long one
        got, wanted = Decimal(printed), Decimal(expected)
        room = Decimal(0) if is_integer else Decimal(RELATIVE) * abs(wanted)
        return abs(got - wanted) <= max(room, Decimal(ABSOLUTE))
    except ArithmeticError:  # more than a million digits
        return False
