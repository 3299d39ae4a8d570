from __future__ import annotations

import random
import time
from fractions import Fraction
from typing import get_args

import pytest
import sympy
from hypothesis import given, settings
from hypothesis import strategies as st

from rewards.math.compare import Comparison
from rewards.math.decide import Outcome, decide
from rewards.math.expressions import Symbolic, Tree
from rewards.math.judge import Judge, TooFine
from rewards.math.numerals import based, numeral, plain_number, repeating, without_separators
from rewards.math.parse import parse
from rewards.math.read import read
from rewards.math.sets import same_set
from rewards.math.text import Explodes, Unread, clean
from rewards.math.tokens import plain_text
from rewards.math.units import can_be_unit, is_unit, read_unit
from rewards.math.value import FLOATS, Evaluation, Undefined, exact, variables
from rewards.math.worker import arithmetic, judge

QUICK = Judge(arithmetic=FLOATS)
FINE = Judge(arithmetic=arithmetic(60), digits=60)
COMPARISON = Comparison(judge=QUICK, percent="either", units="optional")
X, Y = sympy.symbols("x y", positive=True)


def tree(text: str) -> Tree:
    return read(text)[0]


def random_expression(rng: random.Random, depth: int) -> sympy.Expr:
    """A sum, product, power, root or function of integers and two variables."""
    if depth == 0:
        return rng.choice(
            [X, Y, sympy.Integer(rng.randint(1, 9)), sympy.Rational(rng.randint(1, 9), rng.randint(2, 9))]
        )
    left, right = (random_expression(rng, depth - 1) for _ in range(2))
    return rng.choice(
        [
            lambda: left + right,
            lambda: left - right,
            lambda: left * right,
            lambda: left / (right + 11),
            lambda: left ** rng.randint(2, 3),
            lambda: sympy.sqrt(left**2 + 1),
            lambda: sympy.sin(left),
            lambda: sympy.exp(sympy.sin(left)),
            lambda: sympy.log(left**2 + 2),
            lambda: sympy.pi * left,
        ]
    )()


@pytest.mark.parametrize("seed", range(60))
def test_what_sympy_writes_is_read_with_the_value_sympy_gives_it(seed: int) -> None:
    rng = random.Random(seed)
    expression = random_expression(rng, 3)
    text = sympy.latex(expression, ln_notation=True)
    values = {"x": Fraction(rng.randint(1, 40), 16), "y": Fraction(rng.randint(1, 40), 16)}
    numbers = {name: FLOATS.number(value) for name, value in values.items()}
    ours = Evaluation(arithmetic=FLOATS, values=numbers)(tree(text))
    theirs = expression.subs({X: sympy.Rational(str(values["x"])), Y: sympy.Rational(str(values["y"]))})
    assert abs(ours - complex(sympy.N(theirs, 30))) <= 1e-9 * max(1.0, abs(ours)), text
    assert variables(tree(text)) == {str(symbol) for symbol in expression.free_symbols}


@pytest.mark.parametrize("seed", range(30))
def test_rewritten_expressions_are_equal_and_changed_ones_are_not(seed: int) -> None:
    rng = random.Random(seed)
    expression = random_expression(rng, 2) * (X + rng.randint(2, 9)) + random_expression(rng, 2)
    rewritten = sympy.expand(expression)
    left, right = (tree(sympy.latex(form, ln_notation=True)) for form in (expression, rewritten))
    changed = tree(sympy.latex(rewritten + sympy.Rational(1, 10**6), ln_notation=True))
    assert FINE.equal(left, right) is True
    assert FINE.equal(left, changed) is False
    assert QUICK.equal(left, right) in (True, None)  # floats never take equal for different
    assert QUICK.equal(left, changed) in (False, None)


@given(st.fractions(), st.fractions(), st.sampled_from("+-*/"))
def test_exact_arithmetic_is_that_of_fractions(left: Fraction, right: Fraction, sign: str) -> None:
    text = rf"\frac{{{left.numerator}}}{{{left.denominator}}} {sign} ({right})"
    if sign == "/" and not right:
        with pytest.raises(Undefined):
            exact(tree(text), {})
        return
    truth = {"+": left + right, "-": left - right, "*": left * right}.get(sign)
    assert exact(tree(text), {}) == (truth if truth is not None else left / right)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        (r"1\frac{4}{5}", Fraction(9, 5)),
        ("-1 1/2", Fraction(-3, 2)),
        (r"\frac123", Fraction(3, 2)),  # as TeX reads it: 1/2 times 3
        ("2^{-3}", Fraction(1, 8)),
        ("-2^2", Fraction(-4)),
        ("2^3^2", Fraction(512)),
        ("1/2/2", Fraction(1, 4)),
        ("6/2(3)", Fraction(9)),
        (r"\sqrt{\frac{9}{4}}", Fraction(3, 2)),
        (r"\binom{5}{2} + 3!", Fraction(16)),
        (r"\lfloor -\frac{7}{2} \rfloor", Fraction(-4)),
        (r"\gcd(12, 18) + \max(2, 5)", Fraction(11)),
        (r"|2 - |{-5}||", Fraction(3)),
        (r"50\%", Fraction(1, 2)),
        ("1.5e3", Fraction(1500)),
        ("--3", Fraction(3)),
        (r"\sqrt{2}", None),
        (r"\pi", None),
        ("x", None),
    ],
)
def test_values_computed_by_hand(text: str, value: Fraction | None) -> None:
    assert exact(tree(text), {}) == value


@pytest.mark.parametrize(
    ("text", "value"),
    [
        (r"\log_2 10", 3.3219280948873623),
        (r"\sin^2 30^\circ", 0.25),
        (r"\arctan 1", 0.7853981633974483),
        (r"\tan^{-1} 1", 0.7853981633974483),
        (r"\cot\frac{\pi}{4}", 1.0),
        (r"\sin\frac{\pi}{6}\cos\frac{\pi}{3}", 0.25),
        (r"2\cos 15^{\circ}", 1.9318516525781366),
        (r"\sqrt[3]{-8}", -2.0),
        (r"(-8)^{2/3}", 4.0),
        (r"e^{i\pi}", -1.0),
        (r"\left(\frac12\right)!", 0.886226925452758),
        (r"\ln e^3", 3.0),
    ],
)
def test_numbers_computed_elsewhere(text: str, value: float) -> None:
    for numbers in (FLOATS, arithmetic(60)):
        assert abs(Evaluation(arithmetic=numbers)(tree(text)) - value) < 1e-14


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("9^{9^9}", Explodes),
        ("3001!", Explodes),
        (r"\sqrt2^{10^9}", Explodes),
        (r"\exp(10^6)", Explodes),
        (r"1e99999", Explodes),
        ("x" * 1001, Explodes),
        ("(" * 50 + "1" + ")" * 50, Explodes),
        ("2^" * 50 + "2", Explodes),
        ("1/0", Undefined),
        ("0^{-1}", Undefined),
        (r"\ln 0", Undefined),
        ("(-1)!", Undefined),
        (r"\int_0^1 x dx", Symbolic),
        (r"\begin{vmatrix} 1 & 2 \\ 3 & 4 \end{vmatrix}", Symbolic),
        ("41 42", Unread),
        ("1//2", Unread),
        ("(1,2", Unread),
        ("1.5...", Unread),
        (r"\frac{1}", Unread),
        ("\U0001f600", Unread),
        ("", Unread),
        ("x!!", Unread),
        ("2_", Unread),
        ("19_8", Unread),
    ],
)
def test_what_is_refused(text: str, error: type[Exception]) -> None:
    start = time.perf_counter()
    with pytest.raises(error):
        value = tree(text)
        if exact(value, {}) is None:
            Evaluation(arithmetic=arithmetic(60))(value)
    assert time.perf_counter() - start < 1.0


def test_more_digits_are_asked_for_where_sizes_lie_far_apart() -> None:
    left, right = tree(r"\sqrt{2} + e^{-400}"), tree(r"\sqrt{2}")
    assert QUICK.equal(left, right) is None
    with pytest.raises(TooFine):
        FINE.equal(left, right)
    finer = Judge(arithmetic=arithmetic(1000), digits=1000)
    assert finer.equal(left, right) is False
    assert finer.equal(left, tree(r"e^{-400} + 2^{1/2}")) is True


@pytest.mark.parametrize(
    ("left", "right", "sign"),
    [
        ("2x - 4", "x - 2", 1),
        ("4 - 2x", "x - 2", -1),
        ("2x - 3", "x - 2", 0),
        (r"\sqrt{2} x - \sqrt{8}", "x - 2", 1),
        (r"\sqrt{2} x - \sqrt{7}", "x - 2", 0),
        ("x", "0", 0),
    ],
)
def test_ratios_of_expressions(left: str, right: str, sign: int) -> None:
    assert FINE.ratio(tree(left), tree(right)) == sign
    assert QUICK.ratio(tree(left), tree(right)) in (sign, None)


@pytest.mark.parametrize(
    ("text", "dimension", "scale"),
    [
        ("cm", {"length": 1}, Fraction(1, 100)),
        ("cm ^2", {"length": 2}, Fraction(1, 10_000)),
        ("square feet", {"length": 2}, Fraction(381, 1250) ** 2),
        ("cubic inches", {"length": 3}, Fraction(127, 5000) ** 3),
        ("meters squared", {"length": 2}, Fraction(1)),
        ("miles per hour", {"length": 1, "time": -1}, Fraction(201168, 125 * 3600)),
        ("mph", {"length": 1, "time": -1}, Fraction(201168, 125 * 3600)),
        ("kmh", {"length": 1, "time": -1}, Fraction(5, 18)),
        ("m / s ^2", {"length": 1, "time": -2}, Fraction(1)),
        ("liters", {"length": 3}, Fraction(1, 1000)),
        ("million dollars", {"money": 1}, Fraction(10**6)),
        ("cents", {"money": 1}, Fraction(1, 100)),
        ("apples", None, Fraction(1)),
        ("thousand people", None, Fraction(1000)),
    ],
)
def test_units(text: str, dimension: dict[str, int] | None, scale: Fraction) -> None:
    unit = read_unit(text)
    assert (unit.dimension and dict(unit.dimension), unit.scale * unit.count) == (dimension, scale)


def test_what_can_be_a_unit() -> None:
    assert [word for word in ("cm", "inches", "million", "per", "in", "m", "xy", "cat") if is_unit(word)] == [
        "cm", "inches", "million", "per"
    ]  # fmt: skip
    refused = ["apples or pears", "is wrong", "not", "apples 43", "a b c d e f", "if x", "cm^2 5"]
    assert [
        text for text in ["apples", "square feet", "cm ^ 2", "children tickets", *refused] if not can_be_unit(text)
    ] == refused


def random_set(rng: random.Random) -> tuple[str, sympy.Set]:
    """A union of one to three intervals or points between whole numbers, in LaTeX and for sympy."""
    texts, sets = [], []
    for _ in range(rng.randint(1, 3)):
        low = rng.randint(-3, 3)
        high = low + rng.randint(1, 3)
        kind = rng.choice(["point", "left", "right", "between", "between", "between"])
        opens, closes = rng.choice("(["), rng.choice(")]")
        if kind == "point":
            texts.append(rf"\{{{low}\}}")
            sets.append(sympy.FiniteSet(low))
        else:
            left, right = ("-oo" if kind == "left" else low), ("oo" if kind == "right" else high)
            opens, closes = ("(" if kind == "left" else opens), (")" if kind == "right" else closes)
            texts.append(f"{opens}{left},{right}{closes}".replace("oo", r"\infty"))
            sets.append(sympy.Interval(sympy.sympify(left), sympy.sympify(right), opens == "(", closes == ")"))
    return r" \cup ".join(texts), sympy.Union(*sets)


def test_unions_of_intervals_are_equal_when_sympy_says_so() -> None:
    rng = random.Random(5)
    pairs = [random_set(rng) for _ in range(80)]
    equal = 0
    for text, truth in pairs:
        for other, other_truth in rng.sample(pairs, 15):
            assert same_set(tree(text), tree(other), QUICK) is bool(truth == other_truth), (text, other)
            equal += truth == other_truth
        pieces = text.split(r" \cup ")
        assert same_set(tree(text), tree(r" \cup ".join([*pieces[::-1], pieces[0]])), QUICK) is True
    assert equal > 0


@pytest.mark.parametrize("seed", range(4))
def test_products_of_matrices_are_those_of_sympy(seed: int) -> None:
    rng = random.Random(seed)
    size = [rng.randint(1, 3) for _ in range(3)]
    left = sympy.Matrix(size[0], size[1], lambda *_: rng.randint(-5, 5))
    right = sympy.Matrix(size[1], size[2], lambda *_: rng.randint(-5, 5))
    product = left * right
    changed = product + sympy.ones(*product.shape)
    written = rf"3{matrix(left)}{matrix(right)}"
    for truth, verdict in ((3 * product, "correct"), (3 * changed, "wrong")):
        assert decide(matrix(truth), written, COMPARISON) == "symbolic"
        request = {"gold": matrix(truth), "answer": written, "percent": "either", "units": "optional", "algebra": True}
        assert judge(request) == verdict


def matrix(entries: sympy.Matrix) -> str:
    return sympy.latex(entries, mat_str="pmatrix", mat_delim="")


def test_numerals() -> None:
    assert repeating("0.|3") == Fraction(1, 3) and repeating("0.1|6") == Fraction(1, 6)
    assert repeating("12.|45") == 12 + Fraction(45, 99) and repeating(".|9") == 1
    assert numeral("4210_{7}") == ("based", "4210", 7) and numeral(r"11_{\text{two}}") == ("based", "11", 2)
    assert numeral("54_{10}") == ("num", Fraction(54)) and numeral("-1F_{16}") == ("based", "-1F", 16)
    assert numeral("19_8") is None and numeral("A_1") is None and numeral("x_2") is None and numeral("12") is None
    with pytest.raises(Unread):
        based("12", 2)
    assert without_separators("1,234") == ("1234", "1,234") and without_separators("1 234 567") == ("1234567",)
    assert without_separators("(1,234)") == ("(1,234)",) and without_separators("1,23") == ("1,23",)


@given(st.from_regex(r"\s?-?([0-9]{1,3}(,[0-9]{3}){1,3}|[0-9]{1,20})(\.[0-9]{1,5})?\s?", fullmatch=True))
def test_plain_numbers_are_read_as_the_parser_reads_them(text: str) -> None:
    assert plain_number(text) == tuple(parse(reading) for reading in without_separators(clean(text)))


def test_spellings() -> None:
    assert clean(r"  $$\left(\dfrac{1}{2}\right)$$. ") == r"(\frac{1}{2})"
    assert clean("\u00bd\u03c0\u00b2") == r"\frac{1}{2}\pi ^{2}"
    assert clean("**The answer is: 7.**") == "7"
    assert plain_text(r"\text{Friday}") == plain_text("friday") == "friday"
    assert plain_text("9 a.m.") == "9am" and plain_text("xy") is None and plain_text("sin x") is None


@settings(max_examples=300, deadline=None)
@given(st.text(alphabet="0123456789+-*/^_=<>.,;:!|%$()[]{}\\xyabefinpqrstu \n", max_size=40))
def test_no_text_makes_a_verdict_fail(text: str) -> None:
    for gold, answer in (("42", text), (text, "42"), (text, text)):
        assert decide(gold, answer, COMPARISON) in get_args(Outcome)


PIECES = [
    r"\frac",
    r"\sqrt",
    "{",
    "}",
    "(",
    ")",
    "1",
    "2",
    "x",
    "+",
    "-",
    "^",
    "_",
    r"\pi",
    ",",
    r"\cup",
    "[",
    "]",
    r"\text{cm}",
]
PIECES += [
    r"\begin{pmatrix}",
    r"\end{pmatrix}",
    "&",
    r"\\",
    r"\{",
    r"\}",
    "=",
    "<",
    r"\pm",
    r"\sin",
    r"\log",
    "!",
    "|",
    r"\%",
    "^\\circ",
]


@settings(max_examples=500, deadline=None)
@given(st.lists(st.sampled_from(PIECES), max_size=14))
def test_whatever_is_read_equals_itself(pieces: list[str]) -> None:
    text = " ".join(pieces)
    assert decide(text, text, COMPARISON) in ("correct", "gold_unparsable")
    assert decide("42", text + " 41", COMPARISON) in get_args(Outcome)
