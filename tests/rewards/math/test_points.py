from __future__ import annotations

import time
from fractions import Fraction

import pytest

from rewards.math.compare import Comparison
from rewards.math.decide import decide, stated_sides
from rewards.math.judge import Judge, points
from rewards.math.numerals import without_separators
from rewards.math.read import read
from rewards.math.text import clean
from rewards.math.value import FLOATS
from rewards.math.worker import arithmetic, judge

QUICK = Judge(arithmetic=FLOATS)
COMPARISON = Comparison(judge=QUICK, percent="either", units="optional")
PRIMES = (7, 11, 13, 17, 19, 23, 29, 31, 37, 41, 43, 47)


@pytest.mark.parametrize("count", [1, 2, 3, 5, 9])
def test_every_variable_takes_both_signs_odd_and_even_integers_and_all_sizes(count: int) -> None:
    names = "abcdhjkmn"[:count]
    for shift in range(20):
        tried = list(points(read("+".join(names))[0], ("num", Fraction(shift))))
        for name in names:
            values = [point[name] for point in tried]
            whole = {value for value in values if value.denominator == 1}
            assert {value % 2 for value in whole if value > 0} == {value % 2 for value in whole if value < 0} == {0, 1}
            for sign in (1, -1):
                for size in (0.3, 7, 50, 1000):
                    assert any(0.7 * size <= sign * value <= 1.6 * size for value in values), (name, sign, size)
        for other in names[1:3]:
            pairs = [(point[names[0]], point[other]) for point in tried]
            assert len({(left > 0, right > 0) for left, right in pairs}) == 4
            whole_pairs = [pair for pair in pairs if {value.denominator for value in pair} == {1}]
            assert len({(left % 2, right % 2) for left, right in whole_pairs}) == 4


def test_a_formula_in_pieces_never_passes_for_one_piece() -> None:
    pairs = [(f"{k}|x|", f"{k}x") for k in range(1, 60)]
    pairs += [(f"x^{{{2 * k + 1}}}|x|", f"x^{{{2 * k + 2}}}") for k in range(60)]
    pairs += [(f"{k}|xy|", f"{k}xy") for k in range(1, 60)]
    pairs += [(f"{k}(-1)^n", str(k)) for k in range(1, 30)] + [(f"{k}(-1)^{{n+m}}", str(k)) for k in range(1, 30)]
    assert [pair for pair in pairs if decide(*pair, COMPARISON) != "wrong"] == []


@pytest.mark.parametrize(
    ("left", "right", "verdict"),
    [
        (r"\sqrt{x-10}", "(x-10)^{1/2}", True),
        (r"\sqrt{x-10}", "(x-11)^{1/2}", False),
        (r"\ln(x-10^9)", r"\ln(-10^9+x)", True),
        (r"2\ln(x-10^8)", r"\ln((x-10^8)^2)", True),
        (r"\sqrt{-x^2-1}", "(-1-x^2)^{1/2}", True),
        (r"\sqrt{-x^2-1}", "x", None),
        (r"\ln(-1-x^2)+\ln(-2-x^2)", r"\ln((1+x^2)(2+x^2))", None),  # only off the real line are there values
        (r"\gcd(x, 6)", r"\gcd(6, x)", None),
        (r"\cosh(x)^2-\sinh(x)^2", "1", True),
        (r"\sqrt{x^6+1}-x^3", r"\frac{1}{\sqrt{x^6+1}+x^3}", True),
        (r"e^x + |x+3|", "e^x + x + 3", False),
    ],
)
def test_no_evidence_is_never_a_difference(left: str, right: str, verdict: bool | None) -> None:
    trees = read(left)[0], read(right)[0]
    assert Judge(arithmetic=arithmetic(400), digits=400).equal(*trees) is verdict
    assert QUICK.equal(*trees) in (None, verdict)


def test_a_ratio_without_values_is_not_known() -> None:
    fine = Judge(arithmetic=arithmetic(60), digits=60)
    assert fine.ratio(read(r"y-\sqrt{x-3000}")[0], read(r"(x-3000)^{1/2}-y")[0]) == -1
    assert fine.ratio(read(r"y-\sqrt{x-3000}")[0], read(r"y-\sqrt{x-3001}")[0]) == 0
    assert fine.ratio(read(r"\sqrt{-1-x^2}")[0], read(r"\sqrt{-2-x^2}")[0]) is None


def test_a_worker_asks_algebra_where_no_digits_tell() -> None:
    request = {"gold": r"\gcd(n, 6)", "answer": r"\gcd(6, n)", "percent": "either", "units": "optional"}
    assert judge(request) == "undecided"
    assert judge(request | {"algebra": True}) != "undecided"


HUGE = [
    r"\binom{10^{260}}{3000}",
    r"\binom{10^{25000}}{3000}",
    "+".join(f"1/{prime}^{{8000}}" for prime in PRIMES),
    "+".join(f"1/{prime}^{{{power}}}" for prime, power in zip(PRIMES * 5, range(20000, 20060), strict=True)),
    "x(" + "+".join(f"1/{prime}^{{8000}}" for prime in PRIMES * 5) + ")",
    r"\lcm(" + ",".join(f"{prime}^{{9000}}" for prime in PRIMES * 5) + ")",
    "/".join(f"{prime}^{{9000}}" for prime in PRIMES * 5),
]


@pytest.mark.parametrize("text", HUGE, ids=range(len(HUGE)))
def test_large_numbers_do_not_keep_the_caller_busy(text: str) -> None:
    assert len(text) <= 1000
    start = time.process_time()  # what else the machine does is not counted
    assert decide("42", text, COMPARISON) in ("guard", "undecided", "wrong")
    assert time.process_time() - start < 3.0


def test_runs_of_blanks_take_linear_time() -> None:
    start = time.perf_counter()
    for _ in range(3):
        clean(r"\text{" + " " * 900 + "x")
        clean(r"\text{" + "~" * 900 + "x")
        clean(r"\text{1" + "~" * 900 + "x")
        without_separators("(" + " " * 495 + "," * 495)
    assert time.perf_counter() - start < 0.5
    assert clean(r"\text{ 12  + 3 }x") == "12 + 3  x" and clean(r"\text{sin} x") == "sin  x"


@pytest.mark.parametrize(
    ("text", "sides"),
    [
        ("42", ["42"]),
        ("x = 42", ["42"]),
        ("41 = 42", ["41", "42"]),
        (r"S = \sum_{k=1}^{3} k = 6", [r"\sum_{k=1}^{3} k", "6"]),
        (r"f(x) = \int_0^x t \, dt", [r"\int_0^x t   dt"]),
        (r"\pi \approx 3.14", [r"\pi", "3.14"]),
        (r"\{x \mid x = 2\} \ne 1", [r"\{x \mid x = 2\} \ne 1"]),
        (r"x \le 3", [r"x \le 3"]),
    ],
)
def test_sides_of_an_equation(text: str, sides: list[str]) -> None:
    assert stated_sides(text) == sides
