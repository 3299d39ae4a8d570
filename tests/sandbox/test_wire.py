"""Values cross unchanged, as exact builtin types; nothing else crosses, and no message can hurt who reads it."""

from __future__ import annotations

import json
import math
import pickle
import time
from collections import Counter, OrderedDict, defaultdict, namedtuple
from datetime import UTC, date, datetime, timedelta, timezone
from datetime import time as clock
from decimal import Decimal
from enum import Enum, IntEnum
from fractions import Fraction
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sandbox import wire
from sandbox.wire import WireError, dumps, loads

LEAVES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.integers(-(10**60), 10**60),
    st.floats(allow_nan=False),
    st.complex_numbers(allow_nan=False),
    st.text(st.characters()),
    st.binary(max_size=20),
    st.just(...),
    st.decimals(-(10**30), 10**30),
    st.fractions(),
    st.dates(),
    st.times().map(lambda value: value.replace(fold=0)),  # which no comparison sees
    st.datetimes().map(lambda value: value.replace(fold=0)),
    st.timedeltas(),
)
KEYS = st.recursive(LEAVES, lambda keys: st.tuples(keys, keys) | st.frozensets(keys, max_size=3), max_leaves=5)
VALUES = st.recursive(
    LEAVES,
    lambda values: st.one_of(
        st.lists(values, max_size=4),
        st.lists(values, max_size=4).map(tuple),
        st.dictionaries(KEYS, values, max_size=4),
        st.sets(KEYS, max_size=4),
        st.frozensets(KEYS, max_size=4),
    ),
    max_leaves=20,
)


@pytest.mark.slow
@given(VALUES)
@settings(max_examples=150, deadline=None)
def test_a_value_comes_back_equal_and_of_the_same_types(value: object) -> None:
    assert written(loads(dumps(value))) == written(value)


def written(value: Any) -> str:
    """Everything about a value: 1 == 1.0 == True and 0.0 == -0.0, their texts are not; sets in one order."""
    if isinstance(value, dict):
        return f"dict{[(written(key), written(item)) for key, item in value.items()]}"
    if isinstance(value, list | tuple):
        return f"{type(value).__name__}{[written(item) for item in value]}"
    if isinstance(value, set | frozenset):
        return f"{type(value).__name__}{sorted(written(item) for item in value)}"
    return f"{type(value).__name__}{value!r}"


@pytest.mark.parametrize(
    "value",
    [
        True, 1, 1.0, -0.0, 2**63 - 1, 2**63, -(2**63), -(2**64), 10**5000, 1e308, 5e-324, math.inf, -math.inf, 1j,
        complex(-0.0, math.inf), "", "\0\ud800\U0001f40d", b"\0\xff", ..., (), [], {}, set(), frozenset(), ((),), [[]],
        {(1, (2,)): {frozenset({1}): b""}}, {1: "a", "1": "b", 1.5: None, None: ...}, {"t": [1]}, {"i": "0x1"},
        Decimal("4.50"), Decimal("-0"), Decimal("1e4000"), Decimal("Infinity"), Fraction(-1, 3), Fraction(2**16000, 3),
        date(1, 1, 1), date.max, datetime.max, datetime(2024, 2, 29, 1, 2, 3, 4), clock(23, 59, 59, 999_999),
        datetime(2024, 1, 1, tzinfo=timezone(timedelta(hours=5, minutes=30))), timedelta(-1, 5, 7), timedelta.max,
        {date(2024, 1, 1): [Decimal(1)]}, {Fraction(1, 2), Decimal("0.1")},
    ],
    ids=lambda value: f"{type(value).__name__}",
)  # fmt: skip
def test_corner_cases_keep_type_and_sign(value: object) -> None:
    assert pickle.dumps(loads(dumps(value))) == pickle.dumps(value)


def test_nan_crosses() -> None:
    assert math.isnan(loads(dumps([math.nan]))[0])


class Lies(int):
    def __eq__(self, other: object) -> bool:
        return True

    __hash__ = int.__hash__

    def __index__(self) -> int:
        return 99


class LyingList(list):
    def __iter__(self):
        return iter([99])

    def __len__(self) -> int:
        return 1


Pair = namedtuple("Pair", "a b")


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (Counter("aab"), {"a": 2, "b": 1}),
        (defaultdict(list, {1: [2]}), {1: [2]}),
        (OrderedDict(b=1, a=2), {"b": 1, "a": 2}),
        (Pair(1, Pair(2, 3)), (1, (2, 3))),
        (IntEnum("E", {"X": 7}).X, 7),
        (Enum("S", {"X": "red"}, type=str).X, "red"),
        (Lies(3), 3),
        (LyingList([1, 2]), [1, 2]),
        ({Lies(3): Lies(4)}, {3: 4}),
        (type("F", (float,), {})(0.5), 0.5),
        (type("B", (bytes,), {})(b"x"), b"x"),
        (type("D", (Decimal,), {})("0.50"), Decimal("0.50")),
        (type("Q", (Fraction,), {})(1, 2), Fraction(1, 2)),
        (type("Day", (date,), {})(2024, 1, 2), date(2024, 1, 2)),
        (type("Moment", (datetime,), {})(2024, 1, 2, 3), datetime(2024, 1, 2, 3)),
        (type("Span", (timedelta,), {})(1, 2, 3), timedelta(1, 2, 3)),
    ],
    ids=lambda value: type(value).__name__,
)
def test_a_subclass_crosses_as_the_data_in_it_whatever_its_methods_say(value: object, expected: object) -> None:
    back = loads(dumps(value))
    assert pickle.dumps(back) == pickle.dumps(expected)


def test_numpy_scalars_cross_as_numbers_and_arrays_do_not() -> None:
    numpy = pytest.importorskip("numpy")
    values = [numpy.int64(3), numpy.float32(0.5), numpy.bool_(True), numpy.str_("x"), numpy.complex64(1j)]
    assert pickle.dumps(loads(dumps(values))) == pickle.dumps([3, 0.5, True, "x", 1j])
    assert loads(dumps(numpy.datetime64("2020-01-01"))) == date(2020, 1, 1)
    for value in (numpy.arange(3), numpy.longdouble("0.1")):
        with pytest.raises(WireError):
            dumps(value)


def nested(depth: int) -> list:
    value: list = []
    for _ in range(depth - 1):
        value = [value]
    return value


endless: list = []
endless.append(endless)
doubled: list = []
for _ in range(60):
    doubled = [doubled, doubled]


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (object(), "type object"), (len, "builtin_function"), (int, "type type"), (range(3), "type range"),
        (iter([1]), "iterator"), ((n for n in [1]), "generator"), ({1: 2}.keys(), "dict_keys"),
        (Fraction(1, 2**20_000), "bits"), (Decimal("1e999999"), "digits"), (Decimal("1e-9999"), "digits"),
        (UTC, "timezone"), (NotImplemented, "NotImplementedType"), (bytearray(b"x"), "bytearray"),
        ([1, {2: (3, object())}], "type object"), (nested(300), "deeper than 200"), (endless, "deeper than 200"),
        (doubled, "more than"), (1 << (1 << 21), "bits"), ("x" * (5 << 20), "bytes"),
        (["\u2603" * 1000] * 1000, "bytes"), (memoryview(b"x"), "memoryview"),
    ],
    ids=lambda value: type(value).__name__,
)  # fmt: skip
def test_what_is_no_plain_data_or_too_large_is_refused(value: object, message: str) -> None:
    with pytest.raises(WireError, match=message):
        dumps(value)


def test_depth_200_crosses() -> None:
    assert loads(dumps(("value", nested(200)))) == ("value", nested(200))


MALFORMED = """
x|[|nul|{}|{"t":1}|{"t":[1],"l":[2]}|{"q":[]}|{"s":[[]]}|{"s":[{"d":[]}]}|{"d":[1]}|{"d":[[1]]}|{"d":[[1,2,3]]}
{"d":[[[],1]]}|{"i":5}|{"i":"x"}|{"i":""}|{"n":"1"}|{"n":1}|{"c":[1,2]}|{"c":[1.5]}|{"c":["1",2.0]}|{"b":"0"}|{"b":"zz"}
{"b":1}|{"t":null}|{"__class__":"x"}|{"f":[[[[]]]]}|[1,{"t":[{"x":1}]}]|{"n":"-nan"}
{"m":"1e999999999"}|{"m":"1e-5000"}|{"m":"x"}|{"m":1}|{"q":["0x1","0x0"]}|{"q":["1"]}|{"q":["x","0x1"]}|{"q":[1,2]}
{"w":["date","2024"]}|{"w":["tzinfo","x"]}|{"w":["datetime","2024-13-01"]}|{"w":["timedelta",9999999999,0,0]}|{"w":["time"]}
{"w":["timedelta",1,2]}|{"w":[]}|{"s":[{"m":"sNaN"}]}
"""
LARGE = [b"[" * 100_000, b"[" * 100_000 + b"]" * 100_000, b'{"t":[' * 150_000, b"1" * 5000, b" " * (5 << 20)]
LARGE += [b'{"m":"' + b"1" * 9000 + b'"}', b'{"q":["0x1","0x' + b"f" * 5000 + b'"]}']
LARGE += [b'{"i":"' + b"f" * 400_000 + b'"}', b"[" * 210 + b"]" * 210, b"", b"\xff"]


@pytest.mark.parametrize(
    "message", [*map(str.encode, MALFORMED.strip().replace("\n", "|").split("|")), *LARGE], ids=lambda m: repr(m[:20])
)
def test_malformed_messages_are_refused_and_nothing_else_happens(message: bytes) -> None:
    with pytest.raises(WireError):
        loads(message)


@given(st.binary(max_size=60) | st.text(st.sampled_from('{}[]",:tsfdicnbemqw0x1-. '), max_size=40).map(str.encode))
@settings(max_examples=500, deadline=None)
def test_any_bytes_give_plain_data_or_a_wire_error(message: bytes) -> None:
    try:
        value = loads(message)
    except WireError:
        return
    loads(dumps(value))


@pytest.mark.parametrize("tag", ["s", "f", "d"])
def test_elements_of_equal_hash_are_refused_before_they_cost_quadratic_time(tag: str) -> None:
    numbers = [k * (2**61 - 1) for k in range(1, 100_000)]  # the hash of each is 0
    items = [{"i": hex(n)} for n in numbers]
    message = json.dumps({tag: [[item, 0] for item in items] if tag == "d" else items}).encode()
    start = time.process_time()
    with pytest.raises(WireError, match="equal hash"):
        loads(message)
    assert time.process_time() - start < 5  # a plain set of them takes minutes


def test_unique_is_a_frozenset() -> None:
    assert wire.unique([1, 1.0, True, "a", -1, -2, *range(1000)]) == frozenset([1, "a", -1, -2, *range(1000)])
    assert wire.unique([7] * 1000) == {7}
    with pytest.raises(TypeError):
        wire.unique([[]])
