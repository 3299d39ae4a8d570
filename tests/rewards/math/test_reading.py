from __future__ import annotations

import random

import pytest
import sympy

from rewards.math.chinese import translated
from rewards.math.choices import chosen
from rewards.math.constants import with_constants_of
from rewards.math.expressions import Tree
from rewards.math.inequalities import NoSet, solution
from rewards.math.judge import Judge
from rewards.math.names import are_numbered, is_name, is_sought, named_values, roots
from rewards.math.read import read
from rewards.math.sets import same_set
from rewards.math.signs import ascii_text
from rewards.math.text import clean
from rewards.math.units import named_thing, with_bare_unit
from rewards.math.value import FLOATS

QUICK = Judge(arithmetic=FLOATS)
X = sympy.Symbol("x", real=True)


def tree(text: str) -> Tree:
    return read(text)[0]


@pytest.mark.parametrize(
    ("text", "plain"),
    [
        ("2\u00b9\u00b2", "2^{12}"),
        ("10\u207b\u2074", "10^{-4}"),
        ("2\u207f\u207a\u00b9", "2^{n+1}"),
        ("x\u2081\u2082", "x_{12}"),
        ("x\u2099\u208b\u2081", "x_{n-1}"),
        ("x\u00b2y\u00b3", "x^{2}y^{3}"),
        ("3\u00b9\u2044\u2082", r"3\frac{1}{2}"),
        ("\u00bd", r"\frac{1}{2}"),
        ("\u33a1", "m^2"),
        ("\uff13\uff0b\uff14\uff1d\uff17", "3+4=7"),
        ("25\u2103", r"25^\circ\text{C}"),
        ("\u0664\u0662", "\u0664\u0662"),  # digits of another script have no plain form here
        ("\u221b2", r"\sqrt[3] 2"),
        ("plain", "plain"),
    ],
)
def test_signs_become_latex(text: str, plain: str) -> None:
    assert ascii_text(text) == plain


@pytest.mark.parametrize(
    ("text", "english"),
    [
        ("24\u5143", r"24\text{ yuan}"),
        ("24\u4e2a", "24"),
        ("24\u5e73\u65b9\u5398\u7c73", r"24\text{ cm^2}"),
        ("60\u5343\u7c73/\u5c0f\u65f6", r"60\text{ km/h}"),
        ("300\u4e07\u5143", r"300\text{ myriad yuan}"),
        ("3\u62165", r"3\text{ or }5"),
        ("3\u548c5", r"3\text{ and }5"),
        ("\u548c\u4e3a24", "\\text{ \u548c\u4e3a}24"),  # "the sum is 24"
        ("\u65e0\u89e3", r"\text{no solution}"),
        ("\u661f\u671f\u4e94", "\\text{\u661f\u671f\u4e94}"),
        ("\u7b54\u6848\u662f24", "24"),
        ("30\u5206\u4e4b7", r"\frac{7}{30}"),
        ("\u9009A", "A"),
        ("\u5145\u5206\u4e0d\u5fc5\u8981\u6761\u4ef6", "\\text{\u5145\u5206\u4e0d\u5fc5\u8981}"),
        ("no Chinese", "no Chinese"),
    ],
)
def test_chinese_words_become_english(text: str, english: str) -> None:
    assert translated(text) == english


@pytest.mark.parametrize(
    ("text", "with_unit", "is_product"),
    [
        ("12.5 m/s", r"12.5\text{m/s}", False),
        ("12.5m^2", r"12.5\text{m^2}", True),
        ("12.5 m^{2}", r"12.5\text{m^2}", False),
        (r"2\sqrt{3} cm", r"2\sqrt{3}\text{cm}", False),
        (r"x = 3 kg", r"x = 3\text{kg}", False),
        ("5 m", r"5\text{m}", False),
        ("5m", None, None),  # 5 times m
        ("x m", None, None),
        ("5x m", None, None),
        ("5 n", None, None),
        ("5 m + 1", None, None),
    ],
)
def test_units_without_text(text: str, with_unit: str | None, is_product: bool | None) -> None:
    assert with_bare_unit(text) == (None if with_unit is None else (with_unit, is_product))


def test_a_gold_of_letters_is_a_product_where_an_answer_may_be_a_measure() -> None:
    assert len(read("8m^2")) == 2 and read("8m^2", is_gold=True) == (read("8m^2")[1],)


def test_what_is_counted_and_what_is_measured() -> None:
    assert named_thing("chickens") == named_thing("chicken") == "chicken" and named_thing("cm^2") is None


@pytest.mark.parametrize(
    ("text", "spelled"),
    [
        (r"\color{red}{\frac{1}{2}}", r"{\frac{1}{2}}"),
        (r"\Large \mathbf{5}", "{5}"),
        (r"\text{\textbf{Friday}}", r"\text{Friday}"),
        (r"\text{12 chickens}", "12 chickens"),
        (r"9.8\ \mathrm{m/s^{2}}", r"9.8 \text{m/s^2}"),
        ("$125$ miles", "125 miles"),
        ("\u00a5 5", r"5\text{yuan}"),
        (r"14^{\text{th}}", "14"),
        ("4.2 x 10^{-4}", r"4.2\times 10^{-4}"),
        ("3x^2", "3x^2"),
        (r"f^{\prime\prime}(0)", "f''(0)"),
        (r"25^\circ\text{C}", r"25\text{celsius}"),
        (r"k\in Z", r"k\in \mathbb{Z}"),
        (r"n\in \mathbf{N}^*", r"n\in \mathbb{N}_+"),
        (r"k\pi(k\in Z)", r"k\pi, k\in \mathbb{Z}"),
        (r"C_5^2", r"\binom{5}{2}"),
        (r"\mathrm{A}_{5}^{2}", r"\frac{5!}{3!}"),
        (r"C_2^5", r"C_2^5"),
        (r"5\qquad\blacksquare", "5"),
        ("3 to 4", "3:4"),
    ],
)
def test_one_spelling(text: str, spelled: str) -> None:
    assert " ".join(clean(text).split()) == spelled


def test_names() -> None:
    names = ["x", "f(x)", "|AB|", r"\frac{AO}{CO}", "V_1:V_2", "P(X=2)", r"\sin 2A", r"m_{\max}", "(x,y)", "f''(0)"]
    assert [text for text in [*names, "2x", "x+1", "x^2", "5", r"\frac{x}{2}"] if is_name(tree(text))] == names
    values = named_values(tree("x_1=3, x_2=5"))
    assert values and are_numbered(values)
    assert not are_numbered(named_values(tree("a_3=2, a_{37}=19")) or {})
    assert named_values(tree("x=x^2, y=2")) is None and named_values(tree("x=1, x=2")) is None


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("x=1,x=-3", ("x", (-3, 1))),
        ("x_1=1,x_2=-3", ("x", (-3, 1))),
        ("x=1,y=-3", None),
        ("x_1=1,x_3=-3", None),
        ("x=1,-3", None),
        ("2x=1,2x=-3", None),
        ("1,-3", None),
    ],
)
def test_roots_by_number_and_by_name(text: str, found: tuple[str, tuple[int, ...]] | None) -> None:
    read_as = roots(tree(text))
    assert (read_as and (read_as[0], tuple(sorted(int(value[1]) for value in read_as[1])))) == found


def test_sums_that_a_gold_may_give_the_value_of() -> None:
    sums = ["a+b", "a-b", "x+y+z", "a^2+b^2", "f(1)+f(2)", r"\sin A+\cos A", "AB+AC", r"\frac1a+\frac1b", r"\sqrt{a}"]
    curves = ["x+y", "x^2+y^2", "x^2+y^2+z^2", "x+z", "ab+bc", "3x+4y", "3a+4b", "a+1", "2a", r"\sqrt{a+b}", "x-y"]
    assert [text for text in [*sums, *curves] if is_sought(tree(text))] == sums


@pytest.mark.parametrize(
    ("text", "choices"),
    [
        ("BAD", "ABD"),
        ("A, B and D", "ABD"),
        (r"\text{(A)(C)}", "AC"),
        ("\u2462\u2460", "\u2460\u2462"),
        (r"\textcircled{3},\textcircled{1}", "\u2460\u2462"),
        ("A", None),
        ("AA", None),
        ("A or B", None),
        ("AX", None),
        ("A," * 200 + "B", None),
    ],
)
def test_choices_have_no_order(text: str, choices: str | None) -> None:
    assert chosen(text) == choices
    assert chosen(text, is_gold=True) == (choices if text.isalpha() or text.isdigit() else None)


@pytest.mark.parametrize(
    ("gold", "answer", "is_same"),
    [
        ("x+C", "x+c", True),
        ("C_1x+C_2", "c_1x+c_2", True),
        ("C_1x+C_2", "c_2x+c_1", False),  # by the order of their names
        ("a+C", "a+c", False),  # a side and an angle
        ("C", "c", False),
        ("x+C", "x+C+c", False),
        ("c+x", "C+x", False),
        ("C_1x", "Cx", False),
    ],
)
def test_constants_of_integration(gold: str, answer: str, is_same: bool) -> None:
    assert (with_constants_of(tree(gold), tree(answer)) == tree(gold)) is is_same


def random_inequality(rng: random.Random) -> tuple[str, sympy.Set]:
    """A linear or quadratic inequality or one of an absolute value, in LaTeX, and its solutions by sympy."""
    a, b, c = rng.choice([-3, -2, -1, 1, 2, 3]), rng.randint(-4, 4), rng.randint(-6, 6)
    text, side = rng.choice(
        [
            (f"{a}x+({b})", a * X + b),
            (f"{a}x^2+({b})x", a * X**2 + b * X),
            (f"|{a}x+({b})|", sympy.Abs(a * X + b)),
            (f"x^2+({b})x+9", X**2 + b * X + 9),
        ]
    )
    sign, relation = rng.choice(
        [("<", sympy.Lt), (r"\le", sympy.Le), (">", sympy.Gt), (r"\ge", sympy.Ge), (r"\ne", sympy.Ne)]
    )
    truth = relation(side, c)
    if truth in (sympy.true, sympy.false):
        truth_set = sympy.S.Reals if truth == sympy.true else sympy.S.EmptySet
    elif sign == r"\ne":
        truth_set = sympy.S.Reals - sympy.solveset(side - c, X, sympy.S.Reals)
    else:
        truth_set = truth.as_set()
    return f"{text} {sign} {c}", truth_set


@pytest.mark.slow
def test_inequalities_have_the_solutions_that_sympy_finds() -> None:
    rng = random.Random(0)
    kinds = set()
    for _ in range(60):
        text, truth = random_inequality(rng)
        solved, _ = solution(tree(text), QUICK)
        if truth == sympy.S.Reals:
            assert same_set(solved, tree(r"\mathbb{R}"), QUICK), text
        elif truth == sympy.S.EmptySet:
            assert same_set(solved, tree(r"\emptyset"), QUICK), text
        else:
            written = sympy.latex(truth).replace(r"\left", "").replace(r"\right", "")
            assert same_set(solved, tree(written), QUICK) in (True, None), (text, written, solved)
            # the other sign has other solutions
            assert same_set(solved, tree(r"\mathbb{R}\setminus(" + written + ")"), QUICK) is False, text
        kinds.add(type(truth).__name__)
    assert {"Interval", "Union", "EmptySet", "Reals"} <= kinds


@pytest.mark.parametrize("text", [r"\sin x < 1", "x^3 > 8", "x < y", r"\frac{1}{x} > 2", "1 < 2", "x < 3 > 2"])
def test_what_is_not_solved(text: str) -> None:
    with pytest.raises(NoSet):
        solution(tree(text), QUICK)
