"""Works out what an expression is worth: exactly as a fraction, or numerically at any precision.

An `Arithmetic` supplies the numbers: those of cmath in the caller's process, those of mpmath in a worker. Sizes are
checked before each operation, so that no text can make a value explode. What is not covered: functions of a complex
variable off their principal branch. Inside expressions with variables, even roots and logarithms of negative numbers
are undefined.
"""

from __future__ import annotations

import cmath
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any

from rewards.math.expressions import Tree
from rewards.math.text import Explodes

MAX_BITS = 100_000
"""An exact integer may have so many bits, which is about 30,000 digits."""
MAX_WORK = 2 * MAX_BITS
"""All large intermediate results of one text together may have so many bits: to reduce fractions takes long."""
MAX_LOG = 100_000.0
"""A power is worked out if its natural logarithm is no larger."""
MAX_FACTORIAL = 3_000
CONSTANTS = frozenset(("\\pi", "e", "i", "\\infty"))


class Undefined(ValueError):
    """A value that does not exist, such as 1/0."""


class TooLong(Exception):
    """More steps than the caller's process should take; a worker, which can be killed, has to say."""


@dataclass(slots=True)
class Steps:
    """What the comparison of two answers may still cost, in nodes of their trees. Example: `Steps(1000)`."""

    left: float = math.inf

    def take(self, count: int) -> None:
        """Counts some steps; raises TooLong when none are left."""
        self.left -= count
        if self.left < 0:
            raise TooLong


def walk(tree: Tree) -> Iterator[Tree]:
    """Yields every node of a tree."""
    left = [tree]
    while left:
        node = left.pop()
        if node and isinstance(node[0], str):  # else it is a row of a matrix, or the members of a chain
            yield node
        left += [child for child in node if isinstance(child, tuple)]


def variables(tree: Tree) -> set[str]:
    """Returns the names of the symbols that can take any value."""
    return {node[1] for node in walk(tree) if node[0] == "sym"} - CONSTANTS


def substituted(tree: Tree, name: str, new: Tree) -> Tree:
    """Returns the tree with another tree in place of every symbol of that name."""
    if tree == ("sym", name):
        return new
    return tuple(substituted(part, name, new) if isinstance(part, tuple) else part for part in tree)


def folded(tree: Tree) -> Tree:
    """Returns the number that a tree exactly is; the tree itself if it has no such value.

    Raises Explodes and Undefined.
    """
    value = exact(tree, {})
    return tree if value is None else ("num", value)


@dataclass(slots=True)
class Work:
    """What exact arithmetic may still cost; one object can be shared by several calls. Example: `Work()`."""

    bits_left: int = MAX_WORK
    steps: Steps = field(default_factory=Steps)

    def checked(self, number: Fraction) -> Fraction:
        """Returns the number itself; raises Explodes if it, or all that came before, is too large."""
        top, bottom = number.numerator.bit_length(), number.denominator.bit_length()
        if max(top, bottom) > 1_000:
            self.bits_left -= top + bottom
            if max(top, bottom) > MAX_BITS or self.bits_left < 0:
                raise Explodes(f"numbers of more than {MAX_BITS} bits")
        return number


def exact(tree: Tree, values: Mapping[str, Fraction], work: Work | None = None) -> Fraction | None:
    """Returns the value as a fraction, None if it has no such form; raises Explodes and Undefined."""
    kind, work = tree[0], work or Work()
    work.steps.take(1)
    if kind in ("num", "dec"):
        return tree[1]
    if kind == "sym":
        return values.get(tree[1])
    if kind not in _EXACT and kind != "fn":
        return None
    parts = []
    for child in tree[2:] if kind == "fn" else tree[1:]:
        part = exact(child, values, work)
        if part is None:
            return None
        parts.append(part)
    if kind == "add":
        result = parts[0]
        for part in parts[1:]:
            result = work.checked(result + part)
        return result
    function = _EXACT_FUNCTIONS.get(tree[1]) if kind == "fn" else _EXACT[kind]
    value = function(*parts) if function else None
    return value if value is None else work.checked(value)


def _divide(top: Fraction, bottom: Fraction) -> Fraction:
    if not bottom:
        raise Undefined("a division by zero")
    return top / bottom


def _power(base: Fraction, exponent: Fraction) -> Fraction | None:
    if exponent.denominator != 1:
        return None
    power = int(exponent)
    size = max(base.numerator.bit_length(), base.denominator.bit_length())
    # The size of the result is known before it is worked out, so that 9^(9^9) costs nothing.
    if size > 1 and abs(exponent) * size > MAX_BITS:
        raise Explodes(f"a power of more than {MAX_BITS} bits")
    if not base and exponent < 0:
        raise Undefined("a negative power of zero")
    if abs(base) == 1:
        return base if exponent % 2 else Fraction(1)
    return base**power if power else Fraction(1)


def _root(base: Fraction, order: Fraction) -> Fraction | None:
    if order == 2 and base >= 0:
        top, bottom = math.isqrt(base.numerator), math.isqrt(base.denominator)
        if top * top == base.numerator and bottom * bottom == base.denominator:
            return Fraction(top, bottom)
    return None


def _factorial(number: Fraction) -> Fraction | None:
    if number.denominator != 1:
        return None
    if number > MAX_FACTORIAL:
        raise Explodes(f"a factorial above {MAX_FACTORIAL}!")
    if number < 0:
        raise Undefined("the factorial of a negative integer")
    return Fraction(math.factorial(int(number)))


def _binomial(top: Fraction, bottom: Fraction) -> Fraction | None:
    if top.denominator != 1 or bottom.denominator != 1 or top < 0 or bottom < 0:
        return None
    count = min(bottom, top - bottom)
    if count > MAX_FACTORIAL or count * top.numerator.bit_length() > MAX_BITS:
        raise Explodes("a binomial coefficient of large numbers")
    return Fraction(math.comb(int(top), int(bottom)))


def _integers(function: Callable[..., int]) -> Callable[..., Fraction | None]:
    def apply(*parts: Fraction) -> Fraction | None:
        whole = all(part.denominator == 1 for part in parts)
        return Fraction(function(*map(int, parts))) if whole else None

    return apply


_EXACT: dict[str, Callable[..., Fraction | None]] = {
    "add": lambda *parts: Fraction(sum(parts)),  # never called: sums are checked term by term
    "mul": lambda left, right: left * right,
    "neg": lambda part: -part,
    "div": _divide,
    "pow": _power,
    "root": _root,
    "fact": _factorial,
    "abs": lambda part: abs(part),
    "pct": lambda part: part / 100,
}
_EXACT_FUNCTIONS: dict[str, Callable[..., Fraction | None]] = {
    "\\binom": _binomial,
    "\\gcd": _integers(math.gcd),
    "\\lcm": _integers(math.lcm),
    "\\max": lambda *parts: max(parts),
    "\\min": lambda *parts: min(parts),
    "\\lfloor": lambda part: Fraction(math.floor(part)),
    "\\lceil": lambda part: Fraction(math.ceil(part)),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Arithmetic:
    """Supplies complex numbers of one precision.

    Example: `FLOATS`; in a worker the same names come from mpmath.
    """

    number: Callable[[Fraction], Any]
    functions: Mapping[str, Callable[[Any], Any]]
    """sqrt, exp, log, gamma and the trigonometric functions, by LaTeX command; `log` is the natural one."""
    pi: Any
    i: Any
    noise: Any
    """The rounding error of a sum, relative to its largest term."""


@dataclass(slots=True, kw_only=True)
class Evaluation:
    """Works out expressions with one arithmetic and one value per variable, and notes the sizes it met."""

    arithmetic: Arithmetic
    values: Mapping[str, Any] = field(default_factory=dict)
    log_base: int = 0
    """The base of a `\\log` without one; 0 means e."""
    is_real: bool = False
    """Whether even roots and logarithms of negative numbers are undefined."""
    largest: Any = 1.0
    smallest: Any = 1.0
    steps: Steps = field(default_factory=Steps)

    def __call__(self, tree: Tree) -> Any:
        """Returns the value of a scalar tree.

        Raises Undefined, Explodes, OverflowError and, for other trees, TypeError.
        """
        self.steps.take(1)
        value = self._value(tree)
        size = abs(value)
        if size * 0 != 0:
            raise OverflowError("a value that the arithmetic cannot hold")
        self.largest = max(self.largest, size)
        self.smallest = min(self.smallest, size or 1.0)
        return value

    def _value(self, tree: Tree) -> Any:
        kind, number = tree[0], self.arithmetic.number
        if kind in ("num", "dec"):
            return number(tree[1])
        if kind == "sym":
            return self._symbol(tree[1])
        if kind == "fn":
            return self._function(tree[1], [self(child) for child in tree[2:]])
        if kind == "app":
            # An unknown f stands for any function: f(x + 1) and f(1 + x) must agree, f(x + 1) and f(x) + 1 must not.
            seed = sum(map(ord, tree[1]))
            return self.arithmetic.functions["\\sin"](self(tree[2]) * seed) + number(Fraction(seed, 7))
        parts = [self(child) for child in tree[1:]]
        if kind == "add":
            return self._chopped(sum(parts[1:], parts[0]), max(map(abs, parts)))
        if kind == "mul":
            return parts[0] * parts[1]
        if kind == "neg":
            return -parts[0]
        if kind == "div":
            if parts[1] == 0:
                raise Undefined("a division by zero")
            return parts[0] / parts[1]
        if kind in ("pow", "root"):
            return self._power(parts[0], parts[1] if kind == "pow" else 1 / parts[1])
        if kind == "fact":
            return self._gamma(parts[0] + 1)
        if kind == "abs":
            return number(Fraction(0)) + abs(parts[0])
        if kind == "pct":
            return parts[0] / 100
        if kind == "deg":
            return parts[0] * self.arithmetic.pi / 180
        raise TypeError(f"{kind} has no single value")

    def _chopped(self, value: Any, size: Any) -> Any:
        """Returns 0 for what is only the rounding error of numbers of this size, such as cos(pi/2)."""
        return value * 0 if abs(value) <= size * self.arithmetic.noise else value

    def _symbol(self, name: str) -> Any:
        if name == "\\pi":
            return self.arithmetic.pi
        if name == "e":
            return self.arithmetic.functions["\\exp"](self.arithmetic.number(Fraction(1)))
        if name == "i" and name not in self.values:
            return self.arithmetic.i
        if name not in self.values:
            raise Undefined(f"the value of {name[:20]}")
        return self.values[name]

    def _power(self, base: Any, exponent: Any) -> Any:
        if base == 0:
            if exponent.real <= 0 and exponent != 0:
                raise Undefined("a negative power of zero")
            return exponent**0 if exponent == 0 else base * 0
        if abs(exponent * self.arithmetic.functions["\\ln"](abs(base))) > MAX_LOG or abs(exponent) > 1e15:
            raise Explodes("a power beyond e^100000")
        is_whole = exponent.imag == 0 and exponent.real == round(float(exponent.real))
        if base.imag == 0 and base.real < 0 and exponent.imag == 0 and not is_whole:
            # (-8)^(1/3) is -2 in school, where cmath would take the complex root.
            odd = Fraction(float(exponent.real)).limit_denominator(99)
            if odd.denominator % 2 and abs(float(odd) - float(exponent.real)) < 1e-15:
                sign = -1 if odd.numerator % 2 else 1
                return sign * (-base) ** exponent
            if self.is_real:
                raise Undefined("an even root of a negative number")
        return base**exponent

    def _gamma(self, value: Any) -> Any:
        if value.imag != 0 or abs(value) > MAX_FACTORIAL:
            raise Explodes("the factorial of a large or complex number")
        if value.real <= 0 and value.real == round(float(value.real)):
            raise Undefined("the factorial of a negative integer")
        return self.arithmetic.functions["\\gamma"](value)

    def _function(self, name: str, parts: list[Any]) -> Any:
        functions = self.arithmetic.functions
        value = parts[0]
        if name in ("\\ln", "\\log", "\\lg"):
            if value == 0 or (self.is_real and value.real < 0):
                raise Undefined("a logarithm of nothing or less")
            base = parts[1] if len(parts) > 1 else 10 if name == "\\lg" else self.log_base if name == "\\log" else 0
            if base in (0, 1) and len(parts) > 1:
                raise Undefined("a logarithm to the base 0 or 1")
            result = functions["\\ln"](value) / functions["\\ln"](base) if base else functions["\\ln"](value)
            return self._chopped(result, 1)
        if name == "\\binom":
            top, bottom = parts
            return self._gamma(top + 1) / (self._gamma(bottom + 1) * self._gamma(top - bottom + 1))
        if name in ("\\max", "\\min"):
            if any(part.imag != 0 for part in parts):
                raise Undefined("the largest of complex numbers")
            return (max if name == "\\max" else min)(parts, key=lambda part: part.real)
        if name in ("\\lfloor", "\\lceil"):
            near = round(float(value.real))
            if abs(value.real - near) < 1e-9 and abs(value.real - near) > 0:
                raise OverflowError("a step between two numbers too close to tell apart")
            return self.arithmetic.number(Fraction((math.floor if name == "\\lfloor" else math.ceil)(value.real)))
        if name in ("\\cot", "\\sec", "\\csc", "\\coth"):
            below = functions[{"\\cot": "\\tan", "\\sec": "\\cos", "\\csc": "\\sin", "\\coth": "\\tanh"}[name]](value)
            if abs(below) < 1e-14:
                raise Undefined("a pole")
            return 1 / below
        if name == "\\exp" and abs(value) > MAX_LOG:
            raise Explodes("a power beyond e^100000")
        if name not in functions:
            raise Undefined(f"the function {name[:20]}")
        result = functions[name](value)
        return result if name == "\\exp" else self._chopped(result, max(1, abs(value)))


def _float(number: Fraction) -> complex:
    value = float(number)
    if number and not value:
        raise OverflowError("a number too small for a float")
    return complex(value)


FLOATS = Arithmetic(
    number=_float,
    functions={
        **{f"\\{name}": function for name, function in vars(cmath).items() if callable(function)},
        "\\arcsin": cmath.asin,
        "\\arccos": cmath.acos,
        "\\arctan": cmath.atan,
        "\\ln": cmath.log,
        "\\gamma": lambda value: complex(math.gamma(value.real)),
    },
    pi=complex(math.pi),
    i=1j,
    noise=1e-14,
)
