"""Finds out which code of a benchmark's tests runs, and whether any of it can fail.

Tests assert in many ways: by `assert`, in a helper that a loop calls, by `np.testing.assert_allclose`, in the methods
of a TestCase. A test that asserts in none would pass any program, so that must be told before a program is judged by
it. What is read here is trusted but never run: names are followed, types and values are not.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterable, Mapping, Sequence

Function = ast.FunctionDef | ast.AsyncFunctionDef
Definitions = Mapping[str, Sequence[Function | ast.ClassDef]]
"""Functions and classes by name, those inside others as well: a method is found by the name in `self.method()`."""

_RUNNERS = ("pytest.main", "unittest.main")
_ASSERTING = re.compile(r"_*assert|fail(?:If|Unless)|(?:fail|raises|exit|_exit|quit|abort|eq_|ok_)$")
"""The names of functions by which libraries for tests fail, such as assertEqual, assert_allclose, pytest.raises."""
_FIXTURES = ("setUp", "tearDown", "setUpClass", "tearDownClass")


def definitions(trees: Iterable[ast.Module]) -> Definitions:
    """Returns everything that the tests define."""
    found: dict[str, list[Function | ast.ClassDef]] = {}
    for tree in trees:
        for node in ast.walk(tree):
            if isinstance(node, Function | ast.ClassDef):
                found.setdefault(node.name, []).append(node)
    return found


def entries(tree: ast.Module) -> list[ast.FunctionDef]:
    """Returns the functions that a test runner calls: HumanEval's `check(candidate)`, pytest's `test_...()`."""
    wanted = {"check": 1}
    found = [node for node in tree.body if isinstance(node, ast.FunctionDef)]
    return [node for node in found if num_required(node) == wanted.get(node.name, 0 if is_test(node) else None)]


def test_cases(tree: ast.Module) -> list[ast.ClassDef]:
    """Returns the classes whose methods a test runner calls: those of unittest which have tests."""
    names = {"TestCase", "IsolatedAsyncioTestCase"}
    found = []
    for node in tree.body:
        if isinstance(node, ast.ClassDef) and names & {_last_name(base) for base in node.bases}:
            names.add(node.name)
            found.append(node)
    return [node for node in found if any(is_test(method) for method in node.body)]


def is_script(tree: ast.Module) -> bool:
    """Whether no runner is needed, so that the code below `if __name__ == "__main__"` is meant to run."""
    return not entries(tree) and not test_cases(tree)


def body(tree: ast.Module) -> list[ast.stmt]:
    """Returns the statements in the order in which they run; those of functions that a runner calls come last."""
    called = entries(tree)
    outer: list[ast.stmt] = []
    for node in tree.body:
        if is_main_guard(node):
            assert isinstance(node, ast.If)
            outer += node.body if is_script(tree) else []
        elif node not in called and not is_runner(node, tree):
            outer.append(node)
    methods = [node for case in test_cases(tree) for node in case.body if is_test(node) or _is_fixture(node)]
    return outer + [statement for function in (*called, *methods) for statement in getattr(function, "body", ())]


def is_runner(node: ast.stmt, tree: ast.Module) -> bool:
    """Whether a statement does what is done here anyway, as `check(f)` and `unittest.main()` do."""
    if not (isinstance(node, ast.Expr) and isinstance(node.value, ast.Call)):
        return False
    called = ast.unparse(node.value.func)
    return called in _RUNNERS or (called == "check" and any(entry.name == "check" for entry in entries(tree)))


def running(statements: Iterable[ast.AST], defined: Definitions) -> list[ast.AST]:
    """Returns every node of the code that runs with these statements.

    The body of a function counts from where its name is used, also if that is not a call: `map(verify, cases)` calls
    it, too. So a little more may count than what runs, but a function that nothing names never does.
    """
    found: list[ast.AST] = []
    followed: set[str] = set()
    pending = list(statements)
    while pending:
        node = pending.pop()
        found.append(node)
        name = _last_name(node)
        if name in defined and name not in followed:
            followed.add(name)
            for definition in defined[name]:
                pending += _bodies(definition)
        if isinstance(node, Function):  # to define it runs only what stands around its body
            decorators = {_last_name(decorator) for decorator in node.decorator_list} & defined.keys()
            pending += [*node.decorator_list, node.args, *(node.body if decorators else ())]
        else:
            pending += ast.iter_child_nodes(node)
    return found


def can_fail(nodes: Iterable[ast.AST], defined: Definitions, renamed: Mapping[str, str]) -> bool:
    """Whether one of these nodes asserts; `renamed` has the names of `from numpy.testing import assert_equal as eq`."""
    for node in nodes:
        name = _last_name(node)
        known = "" if name in defined else renamed.get(name, name)  # what the tests define was followed
        if isinstance(node, ast.Assert | ast.Raise) or _ASSERTING.match(known):
            return True
    return False


def renamed_imports(trees: Iterable[ast.Module]) -> dict[str, str]:
    """Returns what each name stands for that an `import ... as name` gives."""
    nodes = [node for tree in trees for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
    return {alias.asname: alias.name for node in nodes for alias in node.names if alias.asname}


def _last_name(node: ast.AST) -> str:
    """Returns the name that a node reads, such as `assertEqual` of `self.assertEqual`; "" if it reads none."""
    match node:
        case ast.Name(id=name, ctx=ast.Load()) | ast.Attribute(attr=name):
            return name
    return ""


def _bodies(definition: Function | ast.ClassDef) -> list[ast.stmt]:
    """Returns what runs when a function is called or, of a class, without its methods being named."""
    if isinstance(definition, Function):
        return definition.body
    methods = [node for node in definition.body if isinstance(node, Function) and node.name.startswith("__")]
    return [statement for method in methods for statement in method.body]


def num_required(function: ast.FunctionDef) -> int:
    """Returns how many arguments a call must give, -1 if some of them must be given by name."""
    arguments = function.args
    if any(default is None for default in arguments.kw_defaults):
        return -1
    return len(arguments.posonlyargs) + len(arguments.args) - len(arguments.defaults)


def is_test(node: ast.AST) -> bool:
    """Whether a node is a function whose name makes it a test."""
    return isinstance(node, Function) and node.name.startswith("test")


def _is_fixture(node: ast.AST) -> bool:
    return isinstance(node, Function) and node.name in _FIXTURES


def is_main_guard(node: ast.stmt) -> bool:
    """Whether a statement is `if __name__ == "__main__"`."""
    return isinstance(node, ast.If) and ast.unparse(node.test).replace('"', "'") == "__name__ == '__main__'"
