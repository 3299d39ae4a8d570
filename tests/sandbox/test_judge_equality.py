"""What counts as the expected number, text and value."""

from __future__ import annotations

import math

import pytest

from sandbox.judge.equality import close, equal, same_line


@pytest.mark.parametrize(
    ("printed", "expected", "is_same"),
    [
        ("0.5", "0.50", True), ("1e3", "1000", True), ("1.0", "1", True), ("1", "1.000", True), ("-0.0", "0", True),
        ("0.30000000000000004", "0.3", True), ("1.41421356237", "1.41421", True), ("2.9999999999", "3", True),
        ("1e-9", "0.0", True), ("+1.5", "1.5", True), (".5", "0.5", True), ("5.", "5.0", True), ("1E3", "1000.0", True),
        ("100000.4", "100000.0", True), ("Case 1: 0.50", "Case 1: 0.5", True), ("1.0 2.50 x", "1 2.5 x", True),
        ("123456789012345678901.5", "123456789012345678901.50", True), ("1e400", "10e399", True),
        ("0.51", "0.5", False), ("3.14", "3.14159", False), ("0.0001", "0", False), ("0.00002", "0.00001", False),
        ("1000000007.3", "1000000007", False), ("3", "4", False), ("100001", "100000", False),
        ("50000000000000000", "50000000000000001", False), ("007", "7", False), ("0011", "11", False),
        ("99999.9", "100000", False), ("1.5e400", "1.5e401", False), ("nan", "nan.", False), ("nan", "0.0", False),
        ("inf", "1e999", False), ("1_0.0", "10.0", False), ("1,5", "1.5", False), ("0x10", "16.0", False),
        ("0.5 1", "0.5", False), ("0.5", "0.5 1", False), ("0.1 0.2", "0.1 0.3", False), ("no 0.50", "yes 0.5", False),
        ("1  2", "1 2", True), (" 1\t2", "1 2", True), ("a  b", "a b", True), ("0.50  1", "0.5 1", True),
        (" ", "", True),        ("12", "1 2", False), ("1 2 3", "1  2", False), ("a b", "ab", False),
        ("\u0661.0", "1.0", False), ("", "0.0", False), ("1e99999", "1e99998", False),
        ("1" * 1_100_000 + ".0", "1" * 1_100_000 + ".5", False),
    ],
    ids=lambda value: str(value)[:20],
)  # fmt: skip
def test_lines_are_the_same_word_by_word_and_floats_are_numbers(printed: str, expected: str, is_same: bool) -> None:
    assert same_line(printed, expected) is is_same
    assert same_line(expected, expected)


@pytest.mark.parametrize(
    ("returned", "expected", "is_equal", "is_close"),
    [
        (0.1 + 0.2, 0.3, False, True), ([0.1 + 0.2], [0.3], False, True), ((1, (0.1 + 0.2,)), [1, [0.3]], False, True),
        ({"a": (1 / 3,)}, {"a": [0.33333333]}, False, True), (2.9999999999, 3, False, True), (3, 3.0, True, True),
        (0.31, 0.3, False, False), (1000000007.3, 1000000007, False, False), (2, 3, False, False),
        (10**400, 1.0, False, False), ("0.30", "0.3", False, False), (math.nan, math.nan, False, False),
        (math.inf, math.inf, True, True), (math.inf, 1e308, False, False), (True, 1, True, True),
        (None, 0, False, False),
        ([1, 2], (1, 2), False, False), ((1, 2), [1, 2], True, True), ({1: (2,)}, {1: [2]}, True, True),
        ({1: 2}, {1: 2, 3: 4}, False, False), ([1], [1, 2], False, False), ({1, 2}, [1, 2], False, False),
        (((),), [[]], True, True), ("ab", ["a", "b"], False, False), ([[1.0]], [[1]], True, True),
        (0.3 + 0j, 0.3, True, True), ({1.5}, {1.5}, True, True),
    ],
)  # fmt: skip
def test_values_are_equal_or_nearly_so(returned: object, expected: object, is_equal: bool, is_close: bool) -> None:
    assert equal(returned, expected) is is_equal
    assert equal(returned, expected, close) is is_close


def test_deep_values_are_compared() -> None:
    deep, other = [0.3], (0.1 + 0.2,)
    for _ in range(199):
        deep, other = [deep], (other,)
    assert equal(deep, deep) and equal(other, deep, close) and not equal(other, deep)
