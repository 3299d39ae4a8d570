"""Writes out what pytest collects beyond plain functions: methods of `Test...` classes, and parametrized tests.

Each becomes a function without arguments at the end of the module, which is called like any other test. So such tests
need no pytest in the sandbox, unless they use more of it, as `pytest.raises`.
What is not covered: fixtures, `pytest.param`, `indirect`, classes with a base, what is torn down after a test.
"""

from __future__ import annotations

import ast

from sandbox.judge.parsed import parsed
from sandbox.judge.running import is_main_guard, is_runner, is_test, num_required


def collected(tree: ast.Module) -> ast.Module:
    """Returns the module with a function for each test that only pytest would call, or the same one if there is none.

    It takes the marks off the nodes of the module that it is given.
    """
    added: list[ast.stmt] = []
    for node in tree.body:
        if isinstance(node, ast.FunctionDef) and is_test(node):
            added += _written_out(node, node.name, [], 0) if _parameters(node) else []
        elif isinstance(node, ast.ClassDef) and _is_collected(node):
            methods = [method for method in node.body if isinstance(method, ast.FunctionDef)]
            begin = [f"case = {node.name}()", *_fixtures(node.name, methods)]
            for method in methods:
                added += _written_out(method, f"case.{method.name}", begin, 1) if is_test(method) else []
    if not added:
        return tree
    kept = [node for node in tree.body if not is_main_guard(node) and not is_runner(node, tree)]
    body = [*kept, *added]
    if not any(isinstance(name, ast.Name) and name.id == "pytest" for node in body for name in ast.walk(node)):
        body = [node for node in body if not (isinstance(node, ast.Import) and ast.unparse(node) == "import pytest")]
    return parsed(ast.unparse(ast.Module(body=body, type_ignores=[])))


def _is_collected(node: ast.ClassDef) -> bool:
    """Whether pytest makes objects of a class to run its tests. Those of unittest have a base."""
    names = {method.name for method in node.body if isinstance(method, ast.FunctionDef)}
    has_base = any(ast.unparse(base) != "object" for base in node.bases) or node.keywords
    return node.name.startswith("Test") and not has_base and not names & {"__init__", "__new__"}


def _fixtures(owner: str, methods: list[ast.FunctionDef]) -> list[str]:
    """Returns the calls that prepare a test."""
    found = {method.name: num_required(method) for method in methods}
    calls = [f"{owner}.setup_class()"] if "setup_class" in found else []
    if "setup_method" in found:
        calls.append(f"case.setup_method({'None' if found['setup_method'] > 1 else ''})")
    return calls


def _written_out(function: ast.FunctionDef, called: str, begin: list[str], num_own: int) -> list[ast.stmt]:
    """Returns a function that calls a test once for each of its parameters, nothing if it needs others than these."""
    parameters = _parameters(function)
    names = [name for names, _, _ in parameters for name in names]
    if num_required(function) != num_own + len(names):
        return []
    function.decorator_list = [mark for mark in function.decorator_list if all(mark is not m for _, _, m in parameters)]
    places = {name: f"_{index}" for index, name in enumerate(names)}
    lines = [f"def test_{called.replace('.', '_')}__{function.lineno}():"]
    for names, values, _ in parameters:
        target = ", ".join(places[name] for name in names)
        lines.append(f"{' ' * len(lines)}for {target} in {ast.unparse(values)}:")
    arguments = ", ".join(f"{name}={place}" for name, place in places.items())
    indent = " " * len(lines)
    lines += [f"{indent}{line}" for line in (*begin, f"{called}({arguments})")]
    return parsed("\n".join(lines)).body


def _parameters(function: ast.FunctionDef) -> list[tuple[list[str], ast.expr, ast.expr]]:
    """Returns the names, the values and the mark of each `pytest.mark.parametrize` that can be written as a loop."""
    found: list[tuple[list[str], ast.expr, ast.expr]] = []
    for mark in function.decorator_list:
        match mark:
            case ast.Call(func=ast.Attribute(attr="parametrize"), args=[names, values, *_], keywords=keywords):
                plain = not any(keyword.arg in (None, "indirect") for keyword in keywords)
                known = _names(names)
                if plain and known and not any(ast.unparse(n) == "pytest.param" for n in ast.walk(values)):
                    found.append((known, values, mark))
    return found


def _names(node: ast.expr) -> list[str]:
    match node:
        case ast.Constant(value=str(text)):
            return [name.strip() for name in text.split(",") if name.strip()]
        case ast.List(elts=parts) | ast.Tuple(elts=parts):
            return [part.value for part in parts if isinstance(part, ast.Constant) and isinstance(part.value, str)]
    return []
