"""Evaluates the part of a test that surrounds a call of the candidate, as in `abs(f(1.5) - 0.5) < 1e-6`.

It interprets a few kinds of expressions, and is not eval: a test is trusted, but the value in it is not, and none of
these takes much more than linear time in the size of that value. Whatever is missing here runs in the tester instead.
"""

from __future__ import annotations

import ast
import math
import operator
from collections.abc import Callable, Iterator
from fractions import Fraction
from typing import Any

from sandbox import wire

Ask = Callable[[ast.Call, str], Any]
"""A function that puts a call to the candidate; with a name it gets what that builtin function makes of the value."""

_OPERATORS: dict[type[ast.AST], Callable[..., Any]] = {
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
    ast.Is: operator.is_,
    ast.IsNot: operator.is_not,
    ast.In: lambda item, container: item in container,
    ast.NotIn: lambda item, container: item not in container,
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Div: operator.truediv,
    ast.Mult: operator.mul,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
    ast.Pow: operator.pow,
    ast.USub: operator.neg,
    ast.UAdd: operator.pos,
    ast.Not: operator.not_,
}
_LINEAR = (ast.Add, ast.Sub, ast.Div)
"""Binary operators that a candidate's value cannot make slow or huge."""
_FUNCTIONS: dict[str, Callable[..., Any]] = {
    "abs": abs,
    "all": all,
    "any": any,
    "bool": bool,
    "float": float,
    "frozenset": lambda values=(): wire.unique(values),
    "int": int,
    "len": len,
    "list": list,
    "math.fabs": math.fabs,
    "math.isclose": math.isclose,
    "math.isnan": math.isnan,
    "round": round,
    "set": lambda values=(): set(wire.unique(values)),
    "sorted": sorted,
    "str": str,
    "sum": lambda values: _sum(values),
    "tuple": tuple,
}
_THROUGH = {
    "all": "all", "any": "any", "bool": "bool", "frozenset": "list", "len": "len", "list": "list", "set": "list",
    "sorted": "sorted", "sum": "sum", "tuple": "tuple",
}  # fmt: skip
"""What is applied where the value is if it stands around a call: a range cannot cross, but its elements can."""
_KEYWORDS = ("rel_tol", "abs_tol", "reverse")
_CONTAINERS: dict[type[ast.AST], Callable[[list[Any]], Any]] = {ast.List: list, ast.Tuple: tuple}

MOST_FRACTIONS = 1000
"""A sum of fractions has the digits of all their denominators, and takes quadratic time in them."""
_REDUCING = ("all", "any", "bool", "len", "sum")


def _sum(values: Any) -> Any:
    if len(values) > MOST_FRACTIONS and any(isinstance(value, Fraction) for value in values):
        raise ValueError(f"a sum of more than {MOST_FRACTIONS} values with fractions among them")
    return sum(values)


def is_candidate(node: ast.AST, function: str) -> bool:
    """Whether a node calls the candidate's function."""
    return isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == function


def asks(node: ast.AST, function: str) -> bool:
    """Whether there is a call of the candidate in a node."""
    return any(is_candidate(child, function) for child in ast.walk(node))


def can_evaluate(node: ast.AST | None, function: str) -> bool:
    """Whether `evaluate` knows everything in an expression, apart from the arguments of the candidate."""
    match node:
        case ast.Constant():
            return True
        case ast.List(elts=parts) | ast.Tuple(elts=parts) | ast.Set(elts=parts) | ast.BoolOp(values=parts):
            pass
        case ast.Dict(keys=keys, values=values):
            parts = [*keys, *values]
        case ast.UnaryOp(op=op, operand=operand) if type(op) in _OPERATORS:
            parts = [operand]
        case ast.BinOp(left=left, op=op, right=right) if type(op) in _OPERATORS:
            if not isinstance(op, _LINEAR) and asks(node, function):
                return False
            parts = [left, right]
        case ast.Compare(left=left, ops=ops, comparators=others) if all(type(op) in _OPERATORS for op in ops):
            parts = [left, *others]
        case ast.Call() if is_candidate(node, function):
            return not any(isinstance(arg, ast.Starred) for arg in node.args) and all(k.arg for k in node.keywords)
        case ast.Call(func=called, args=args, keywords=keywords) if ast.unparse(called) in _FUNCTIONS:
            if not all(keyword.arg in _KEYWORDS for keyword in keywords):
                return False
            if len(args) != 1 and ast.unparse(called) == "sum":  # lists can be added, too, in quadratic time
                return False
            parts = [*args, *(keyword.value for keyword in keywords)]
            # How many digits `round` keeps must be the test's own: ten to that power is a number on the way.
            if any(asks(arg, function) for arg in args[1:]) and ast.unparse(called) == "round":
                return False
        case _:
            return False
    return all(can_evaluate(part, function) for part in parts)


def evaluate(node: ast.AST, function: str, ask: Ask) -> Any:
    """Returns the value of an expression that `can_evaluate` accepts, in Python's order; raises what Python would."""

    def value(part: ast.AST) -> Any:
        return evaluate(part, function, ask)

    match node:
        case ast.Constant(value=constant):
            return constant
        case ast.Set(elts=parts):
            return set(wire.unique(map(value, parts)))
        case ast.List(elts=parts) | ast.Tuple(elts=parts):
            return _CONTAINERS[type(node)]([value(part) for part in parts])
        case ast.Dict(keys=keys, values=values):
            return {value(k): value(v) for k, v in zip(keys, values, strict=True) if k}
        case ast.UnaryOp(op=op, operand=operand):
            return _OPERATORS[type(op)](value(operand))
        case ast.BinOp(left=left, op=op, right=right):
            return _OPERATORS[type(op)](value(left), value(right))
        case ast.BoolOp(op=op, values=parts):
            result = None
            for part in parts:
                result = value(part)
                if bool(result) is isinstance(op, ast.Or):
                    break
            return result
        case ast.Compare(left=left, ops=ops, comparators=others):
            first, result = value(left), True
            for op, other in zip(ops, others, strict=True):
                second = value(other)
                result = _OPERATORS[type(op)](first, second)
                if not result:
                    break
                first = second
            return result
        case ast.Call() if is_candidate(node, function):
            return ask(node, "")
        case ast.Call(func=called, args=args, keywords=keywords):
            settings = {str(keyword.arg): value(keyword.value) for keyword in keywords}
            name = ast.unparse(called)
            match args:
                case [ast.Call() as inner] if name in _THROUGH and is_candidate(inner, function):
                    found = ask(inner, _THROUGH[name])
                    return found if name in _REDUCING else _FUNCTIONS[name](found, **settings)
            return _FUNCTIONS[name](*map(value, args), **settings)
    raise AssertionError(f"can_evaluate() accepts {ast.unparse(node)!r}, evaluate() does not know it")


def truth_alone(node: ast.expr, function: str) -> ast.expr:
    """Returns a test in which `bool` stands around each call of the candidate of which only the truth counts.

    So a function may return anything that is true or false, such as a match of `re`, which cannot cross.
    """
    match node:
        case ast.UnaryOp(op=ast.Not(), operand=operand):
            return ast.UnaryOp(ast.Not(), truth_alone(operand, function))
        case ast.BoolOp(op=op, values=parts):
            return ast.BoolOp(op, [truth_alone(part, function) for part in parts])
        case _ if is_candidate(node, function):
            return ast.Call(ast.Name("bool", ast.Load()), [node], [])
    return node


def constant(node: ast.AST) -> Any:
    """Returns the value of an expression that asks the candidate nothing."""
    return evaluate(node, "", _no_candidate)


def constants(node: ast.AST, function: str) -> Iterator[ast.expr]:
    """Yields the parts of an expression that are the test's own, each as large as it can be without asking."""
    if isinstance(node, ast.expr) and not asks(node, function) and can_evaluate(node, function):
        yield node
        return
    for child in ast.iter_child_nodes(node):
        yield from constants(child, function)


def _no_candidate(call: ast.Call, through: str) -> Any:
    raise AssertionError(f"{ast.unparse(call)!r} is no constant")
