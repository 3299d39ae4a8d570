"""Writes and reads the values that cross between the judge and a sandboxed process, as JSON with tags for types.

Nothing that arrives can run code or lie about itself: `loads` makes only None, bool, int, float, complex, Decimal,
Fraction, str, bytes, date, time, datetime, timedelta, Ellipsis, list, tuple, dict, set and frozenset, whatever was
sent. No pickle, no repr, no eval.
What is not covered: shared references (each use is a copy), iterators, and objects of any other type.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Iterable
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from fractions import Fraction
from typing import Any

MAX_DEPTH = 200
"""How many containers may be inside each other; this also stops at a list that contains itself."""
MAX_BYTES = 4 << 20
"""How long a message may be, unless whoever sends or awaits it names another size."""
ANSWER_BYTES = 64 << 20
"""The most that a program may answer with; a session's own limit, which follows what is expected, is mostly smaller."""
MAX_VALUES = 1 << 19
"""How many values may be in a message of MAX_BYTES; a longer one may have another for every two bytes, which is the
least that one takes. Without this limit a list that holds another twice, which does the same, and so on, would be small
in memory and take for ever to write."""
MAX_INT_BITS = 1 << 20
"""The judge compares and sometimes divides integers; with this many bits that takes half a second at most."""
MAX_DIGITS = 4300
"""How many digits a Decimal may have, before and behind its point; Python writes integers in as many."""
MAX_FRACTION_BITS = 1 << 14
"""Of numerator and denominator. To reduce a fraction takes quadratic time, and so does to add two."""
MAX_EQUAL_HASHES = 64
"""How many elements of a set may have the same hash: a set of n such values takes n * n / 2 comparisons to build."""
_ENVELOPE_DEPTH = 4
"""How many containers a message wraps around a value."""

_RAW: dict[type, Any] = {
    int: int.__index__,
    float: float.__float__,
    complex: complex.__complex__,
    str: str.__str__,
    bytes: bytes.__bytes__,
    tuple: lambda value: tuple(tuple.__iter__(value)),
    list: lambda value: list(list.__iter__(value)),
    dict: lambda value: dict(dict.items(value)),
    set: lambda value: set(set.__iter__(value)),
    frozenset: lambda value: frozenset(frozenset.__iter__(value)),
    Decimal: lambda value: Decimal(Decimal.__str__(value)),
    datetime: lambda value: datetime.fromisoformat(datetime.isoformat(value)),  # before date, which it extends
    date: lambda value: date.fromisoformat(date.isoformat(value)),
    time: lambda value: time.fromisoformat(time.isoformat(value)),
    timedelta: lambda value: timedelta(value.days, value.seconds, value.microseconds),
    Fraction: lambda value: Fraction(value.numerator, value.denominator),
}
"""For each builtin type, what reads the data in an instance of a subclass, whatever methods that overrides."""


class WireError(ValueError):
    """A value that cannot cross, or a message that cannot be read."""


class TooLarge(WireError):
    """A value of plain data that is too long, too deep or too large a number."""


def dumps(value: Any, max_bytes: int = MAX_BYTES) -> bytes:
    """Encodes a value; raises WireError if it, or anything in it, is not plain data or (TooLarge) is too large.

    An instance of a subclass (Counter, defaultdict, a named tuple, an IntEnum) crosses as the builtin that it extends,
    a numpy scalar as the number that it is.
    """
    most = MAX_VALUES + max(0, max_bytes - MAX_BYTES) // 2
    text = json.dumps(_Encoder(most).encode(value, 0), separators=(",", ":"))
    if len(text) > max_bytes:
        raise TooLarge(f"a message of {len(text)} bytes; at most {max_bytes} cross")
    return text.encode("ascii")


def loads(message: bytes, max_bytes: int = MAX_BYTES) -> Any:
    """Decodes a message from an untrusted process; raises WireError, and nothing else, if it is malformed."""
    if len(message) > max_bytes:
        raise TooLarge(f"a message of {len(message)} bytes; at most {max_bytes} cross")
    try:
        return _decode(json.loads(message), 0)
    except WireError:
        raise
    except (ValueError, TypeError, KeyError, ArithmeticError, StopIteration, RecursionError) as error:
        raise WireError(f"a malformed message: {type(error).__name__}") from None


def unique(values: Iterable[Any]) -> frozenset[Any]:
    """Returns untrusted values as a frozenset, in time linear in their number; raises WireError if hashes collide."""
    values = list(values)
    by_hash: dict[int, list[Any]] = {}
    for value in values:
        equal = by_hash.setdefault(hash(value), [])
        if value not in equal:
            equal.append(value)
        if len(equal) > MAX_EQUAL_HASHES:
            raise WireError(f"more than {MAX_EQUAL_HASHES} different elements of equal hash")
    return frozenset(values)


class _Encoder:
    """Encodes one message and counts the values in it."""

    def __init__(self, most: int) -> None:
        self.most, self.count = most, 0

    def encode(self, value: Any, depth: int) -> Any:
        kind = type(value)
        self.count += 1
        if depth > MAX_DEPTH + _ENVELOPE_DEPTH or self.count > self.most:
            raise TooLarge(f"nested deeper than {MAX_DEPTH}, or more than {self.most} values")
        if value is None or kind is bool or kind is str:
            return value
        if kind is int:
            if value.bit_length() > MAX_INT_BITS:
                raise TooLarge(f"an integer of {value.bit_length()} bits; at most {MAX_INT_BITS} cross")
            # Python reads and writes hexadecimal in linear time, and refuses decimal above 4,300 digits.
            return value if value.bit_length() < 64 else {"i": hex(value)}
        if kind is float:
            return value if math.isfinite(value) else {"n": repr(value)}
        if kind is list:
            return [self.encode(item, depth + 1) for item in value]
        if kind is tuple or kind is set or kind is frozenset:
            return {kind.__name__[0]: [self.encode(item, depth + 1) for item in value]}
        if kind is dict:
            return {"d": [[self.encode(k, depth + 1), self.encode(v, depth + 1)] for k, v in value.items()]}
        if kind is complex:
            return {"c": [self.encode(value.real, depth + 1), self.encode(value.imag, depth + 1)]}
        if kind is bytes:
            return {"b": value.hex()}
        if value is ...:
            return {"e": 0}
        if kind is Decimal:
            if value.is_finite() and not _is_short(value):
                raise TooLarge(f"a Decimal of more than {MAX_DIGITS} digits")
            return {"m": str(value)}
        if kind is Fraction:
            if max(value.numerator.bit_length(), value.denominator.bit_length()) > MAX_FRACTION_BITS:
                raise TooLarge(f"a fraction of more than {MAX_FRACTION_BITS} bits")
            return {"q": [hex(value.numerator), hex(value.denominator)]}
        if kind in _DATES:
            return {"w": [kind.__name__, value.isoformat()]}
        if kind is timedelta:
            return {"w": ["timedelta", value.days, value.seconds, value.microseconds]}
        return self.encode(_plain(value), depth + 1)


_DATES: dict[type, Any] = {date: date.fromisoformat, datetime: datetime.fromisoformat, time: time.fromisoformat}


def _is_short(value: Decimal) -> bool:
    """Whether a finite Decimal has few digits, also if it is written without an exponent."""
    exponent = value.as_tuple().exponent
    return isinstance(exponent, int) and abs(exponent) <= MAX_DIGITS and abs(value.adjusted()) <= MAX_DIGITS


def _plain(value: Any) -> Any:
    kind = type(value)
    numpy = sys.modules.get("numpy")
    if numpy is not None and issubclass(kind, numpy.generic):
        return value.item()
    for base, raw in _RAW.items():
        if issubclass(kind, base):
            return raw(value)
    raise WireError(f"a value of type {kind.__name__}")


def _decode(tree: Any, depth: int) -> Any:
    if depth > MAX_DEPTH + _ENVELOPE_DEPTH:
        raise WireError(f"nested deeper than {MAX_DEPTH}")
    if isinstance(tree, list):
        return [_decode(item, depth + 1) for item in tree]
    if isinstance(tree, int) and tree.bit_length() > MAX_INT_BITS:
        raise WireError("an integer too long")
    if not isinstance(tree, dict):
        return tree
    # Whatever is sent, one of these cases makes the value, and each makes only values of builtin types. Elements of
    # sets and keys go through `unique`: a set of numbers that all have the same hash takes minutes to build.
    [(tag, data)] = tree.items()
    match tag, data:
        case "t", list():
            return tuple(_decode(item, depth + 1) for item in data)
        case "s", list():
            return set(unique(_decode(item, depth + 1) for item in data))
        case "f", list():
            return unique(_decode(item, depth + 1) for item in data)
        case "d", list():
            keys = [_decode(key, depth + 1) for key, _ in data]
            unique(keys)
            return dict(zip(keys, [_decode(value, depth + 1) for _, value in data], strict=True))
        case "i", str() if len(data) <= MAX_INT_BITS // 4 + 3:
            return int(data, 16)
        case "n", "nan" | "inf" | "-inf":
            return float(data)
        case "c", [real, imag]:
            return complex(*map(_real, (_decode(real, depth + 1), _decode(imag, depth + 1))))
        case "b", str():
            return bytes.fromhex(data)
        case "e", _:
            return ...
        case "m", str() if len(data) <= 2 * MAX_DIGITS + 20:
            number = Decimal(data)
            if number.is_finite() and not _is_short(number):
                raise WireError(f"a Decimal of more than {MAX_DIGITS} digits")
            return number
        case "q", [str(above), str(below)] if max(len(above), len(below)) <= MAX_FRACTION_BITS // 4 + 3:
            return Fraction(int(above, 16), int(below, 16))
        case "w", ["timedelta", int(days), int(seconds), int(microseconds)]:
            return timedelta(days, seconds, microseconds)
        case "w", [str(name), str(text)] if len(text) < 50:
            return next(read(text) for kind, read in _DATES.items() if kind.__name__ == name)
    raise WireError(f"an unknown tag {str(tag)[:20]!r}")


def _real(value: Any) -> float:
    if type(value) is not float:
        raise WireError("a complex number of other than two floats")
    return value
