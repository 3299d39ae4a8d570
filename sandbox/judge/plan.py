"""Reads the tests of a benchmark, to say which asserts can be taken apart, and what the others need."""

from __future__ import annotations

import ast
import builtins
import sys
from collections.abc import Iterable, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from functools import lru_cache

from sandbox.calls import NAME
from sandbox.judge.cases import TestsError
from sandbox.judge.collect import collected
from sandbox.judge.expressions import can_evaluate, is_candidate
from sandbox.judge.parsed import parsed
from sandbox.judge.running import (
    Definitions,
    body,
    can_fail,
    definitions,
    entries,
    is_runner,
    is_script,
    is_test,
    num_required,
    renamed_imports,
    running,
    test_cases,
)

_ASSIGNMENTS = (ast.Assign, ast.AugAssign, ast.AnnAssign)
_DEFINITIONS = (ast.FunctionDef, ast.ClassDef, ast.AsyncFunctionDef)
_IMPORTS = (ast.Import, ast.ImportFrom)
_SKIPPED = (*_ASSIGNMENTS, *_DEFINITIONS, *_IMPORTS, ast.Pass)
"""Statements that matter only if an assert uses what they define."""
_BUILTINS = frozenset(vars(builtins))


@dataclass(frozen=True, slots=True, kw_only=True)
class Split:
    """An assert that is evaluated here, around calls of the candidate."""

    test: ast.expr
    """What has to hold; the candidate has its own name in it, not `candidate`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Whole:
    """Test source that runs as it is, in the tester."""

    source: str
    imports: list[str]
    """Modules that it takes for imported: `sys.getsizeof(...)`."""
    remotes: list[str]
    """Names that must be the candidate's, because no test defines them."""
    runner: str = ""
    """What a test runner does after it: `check(candidate)`."""
    as_script: bool = True
    """Whether `__name__` is `"__main__"` in it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """Tests in the order in which they run."""

    inputs: str
    """Statements that build arguments out of the candidate's own classes, such as `root = Node(1)`."""
    cases: tuple[Split | Whole, ...]


def plan(asserts: Sequence[str], entry_point: str) -> Plan:
    """Reads the strings as one module.

    Raises TestsError if one cannot be parsed, if nothing in them can fail, if they never call the candidate, or if they
    define or import its name themselves.
    """
    return _plan(tuple(asserts), entry_point)


@lru_cache(maxsize=64)  # a group of completions is judged by one row, whose tests may be a megabyte of literals
def _plan(asserts: tuple[str, ...], entry_point: str) -> Plan:
    written = [_parse(index, source) for index, source in enumerate(asserts)]
    trees = [collected(tree) for tree in written]
    asserts = tuple(
        source if tree is before else ast.unparse(tree)
        for source, before, tree in zip(asserts, written, trees, strict=True)
    )
    module = [part for tree in trees for statement in body(tree) for part in _unpacked(statement)]
    _check_name(trees, entry_point)
    bound = frozenset(name for tree in trees for name in bound_names(tree)) - {entry_point}
    reader = _Reader(entry_point, definitions(trees), renamed_imports(trees))
    is_asked = False
    cases: list[Split | Whole] = []
    inputs: list[ast.stmt] = []
    setup: list[str | ast.stmt] = []
    for source, tree in zip(asserts, trees, strict=True):
        nodes = running(body(tree), reader.defined)
        if not can_fail(nodes, reader.defined, reader.renamed):
            setup += [source] if body(tree) else []
            continue
        is_asked = is_asked or reader.asks(nodes, tree)
        tests = reader.asserted(tree)
        needed = _inputs(tests, entry_point, module, bound) if tests else None
        if needed is None:
            cases.append(_whole(setup, source, tree, bound | {entry_point, "candidate"}))
        else:
            inputs += [statement for statement in needed if statement not in inputs]
            cases += [Split(test=test) for test in tests]
        setup += [statement for statement in tree.body if isinstance(statement, _SKIPPED)]
    if not cases:
        why = f"so that any program would pass{_left_out(trees)}"
        raise TestsError(f"the {len(asserts)} tests of {entry_point!r} assert nothing, {why}")
    if not is_asked:
        raise TestsError(f"the {len(asserts)} tests never call {entry_point!r}: name the function that they test")
    return Plan(inputs="\n".join(ast.unparse(statement) for statement in inputs), cases=tuple(cases))


def _left_out(trees: Sequence[ast.Module]) -> str:
    """Says why a test is not run, if nothing gives it its arguments."""
    nodes = [node for tree in trees for node in ast.walk(tree)]
    run = [node for tree in trees for entry in entries(tree) for node in ast.walk(entry)]
    called = [node.func for node in run if isinstance(node, ast.Call)]
    names = {ast.unparse(function).rpartition(".")[2] for function in called}
    asking = [n.name for n in nodes if isinstance(n, ast.FunctionDef) and is_test(n) and num_required(n)]
    left = [name for name in asking if name not in names]
    rule = "pytest.mark.parametrize alone, without pytest.param and indirect, and its class has no base and no __init__"
    return f" ({left[0]!r} is not run: arguments of a test come from {rule})" if left else ""


def _check_name(trees: Sequence[ast.Module], entry_point: str) -> None:
    """Refuses tests that have a function of that name, which they may mean where we would ask the candidate."""
    kept = [statement for tree in trees for statement in [*tree.body, *body(tree)]]
    found = [node for statement in kept for node in _outside_functions(statement)]
    if any(entry_point in _bound_by(node) for node in found if isinstance(node, (*_DEFINITIONS, *_IMPORTS))):
        raise TestsError(f"the tests define or import {entry_point!r} themselves: give the function that they test")


def _outside_functions(statement: ast.AST) -> Iterable[ast.AST]:
    yield statement
    if not isinstance(statement, _DEFINITIONS):
        for child in ast.iter_child_nodes(statement):
            yield from _outside_functions(child)


def _parse(index: int, source: str) -> ast.Module:
    try:
        return parsed(source)
    except (SyntaxError, ValueError) as error:
        raise TestsError(f"asserts[{index}] is no Python: {error}") from None


@dataclass(frozen=True, slots=True)
class _Reader:
    """Knows what has to be known of all strings to read one of them."""

    entry_point: str
    defined: Definitions
    renamed: Mapping[str, str]

    def aliases(self, tree: ast.Module) -> set[str]:
        """Returns the names by which tests call the candidate."""
        arguments = [argument.arg for entry in entries(tree) for argument in entry.args.args[:1]]
        return {self.entry_point, "candidate", *arguments}

    def asks(self, nodes: Iterable[ast.AST], tree: ast.Module) -> bool:
        """Whether these nodes use the candidate, under whatever name; a line that only names it does not."""
        aliases = self.aliases(tree)
        idle = {id(statement.value) for statement in body(tree) if isinstance(statement, ast.Expr)}
        names = [node for node in nodes if isinstance(node, ast.Name) and node.id in aliases and id(node) not in idle]
        return bool(names) or any(isinstance(n, ast.Attribute) and n.attr == self.entry_point for n in nodes)

    def asserted(self, tree: ast.Module) -> list[ast.expr]:
        """Returns what a string of tests asserts, if that is all it does and can be taken apart, or else nothing."""
        statements = body(tree)
        others = [statement for statement in statements if not isinstance(statement, ast.Assert)]
        if test_cases(tree) or not all(isinstance(s, _SKIPPED) or _is_idle(s) for s in others):
            return []
        nodes = running(others, self.defined)
        if can_fail(nodes, self.defined, self.renamed) or self.asks(nodes, tree):  # `kept = verify(f(1))`
            return []
        aliases = self.aliases(tree) - {self.entry_point}
        rename = _Renamed(aliases, self.entry_point)
        tests = [rename.visit(deepcopy(s.test)) for s in statements if isinstance(s, ast.Assert)]
        return tests if all(can_evaluate(test, self.entry_point) for test in tests) else []


class _Renamed(ast.NodeTransformer):
    """Gives the candidate its own name, by which its process knows it."""

    def __init__(self, aliases: set[str], name: str) -> None:
        self.aliases, self.name = aliases, name

    def visit_Name(self, node: ast.Name) -> ast.Name:
        return ast.Name(self.name, node.ctx) if node.id in self.aliases else node


def _inputs(
    tests: list[ast.expr], entry_point: str, module: list[ast.stmt], bound: frozenset[str]
) -> list[ast.stmt] | None:
    """Returns the statements that build the candidate's arguments, or None if the tests have to build them."""
    # Names in the arguments, and then the names in the statements that give those a value, and so on. What they build
    # must need a class or function of the candidate: else the tester can build it beside what the test expects, which
    # the candidate must not see.
    nodes = [node for test in tests for node in ast.walk(test) if isinstance(node, ast.Call)]
    calls = [node for node in nodes if is_candidate(node, entry_point)]
    values = [value for call in calls for value in [*call.args, *(keyword.value for keyword in call.keywords)]]
    values = [value for value in values if not can_evaluate(value, "")]
    needed = frozenset(name for value in values for name in _loaded([value]) - bound_names(value)) & bound
    chosen: list[ast.stmt] = []
    while more := [s for s in module if s not in chosen and _targets(s) & needed]:
        chosen += more
        needed |= _loaded(more) & bound
    # Values that the tests can build themselves are for the tester: only there can they stand beside what is expected.
    from_candidate = _loaded(chosen) - bound - _BUILTINS
    built = {name for statement in chosen for name in _targets(statement)}
    # What is unpacked beside an argument may be what is expected.
    beside = {name for statement in chosen for name in _unpacks(statement)} - needed
    is_possible = not needed or (from_candidate and needed <= built and not beside)
    return sorted(chosen, key=module.index) if is_possible else None


def _unpacked(statement: ast.stmt) -> list[ast.stmt]:
    """Returns `a, b = 1, 2` as two statements, where that means the same."""
    match statement:
        case ast.Assign(targets=[ast.Tuple(elts=targets)], value=ast.Tuple(elts=values)) if len(targets) == len(values):
            names = {target.id for target in targets if isinstance(target, ast.Name)}
            if len(names) == len(targets) and not names & _loaded(values):
                pairs = zip(targets, values, strict=True)
                return [ast.copy_location(ast.Assign([target], value), statement) for target, value in pairs]
    return [statement]


def _unpacks(statement: ast.stmt) -> set[str]:
    targets = statement.targets if isinstance(statement, ast.Assign) else []
    unpacked = [target for target in targets if isinstance(target, (ast.Tuple, ast.List))]
    return {node.id for target in unpacked for node in ast.walk(target) if isinstance(node, ast.Name)}


def _whole(setup: Sequence[str | ast.stmt], source: str, tree: ast.Module, defined: frozenset[str]) -> Whole:
    if any(is_runner(statement, tree) for statement in tree.body):
        kept = [statement for statement in tree.body if not is_runner(statement, tree)]
        source = ast.unparse(ast.Module(body=kept, type_ignores=[]))
    source = "\n".join([*(part if isinstance(part, str) else ast.unparse(part) for part in setup), source])
    runner = [f"{entry.name}({'candidate' if entry.args.args else ''})" for entry in entries(tree)]
    if cases := test_cases(tree):
        # `debug` runs a test without catching what it raises.
        load = "unittest.defaultTestLoader.loadTestsFromTestCase({}).debug()"
        runner += ["import unittest", *(load.format(case.name) for case in cases)]
    whole = parsed(source)
    free = _loaded([whole]) - defined - _BUILTINS
    bases = {n.value.id for n in ast.walk(whole) if isinstance(n, ast.Attribute) and isinstance(n.value, ast.Name)}
    imports = free & bases & sys.stdlib_module_names
    return Whole(
        source=source, runner="\n".join(runner), imports=sorted(imports), remotes=sorted(free - imports),
        as_script=is_script(tree),
    )  # fmt: skip


def _is_idle(node: ast.stmt) -> bool:
    """Whether a statement does nothing, as a docstring, or a name that nobody calls."""
    return isinstance(node, ast.Expr) and isinstance(node.value, (ast.Constant, ast.Name))


def _loaded(nodes: Iterable[ast.AST]) -> frozenset[str]:
    walked = (child for node in nodes for child in ast.walk(node))
    return frozenset(n.id for n in walked if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Load))


def bound_names(tree: ast.AST) -> set[str]:
    """Returns every name that is assigned, defined, imported or a parameter anywhere in a tree.

    Names that come `from solution import ...` are left out: they are the candidate's.
    """
    return {name for node in ast.walk(tree) for name in _bound_by(node)}


def _bound_by(node: ast.AST) -> list[str]:
    match node:
        case ast.Name(id=name, ctx=ast.Store()) | ast.arg(arg=name):
            return [name]
        case ast.FunctionDef(name=name) | ast.ClassDef(name=name) | ast.AsyncFunctionDef(name=name):
            return [name]
        case ast.ImportFrom(module=module, names=aliases) if module != NAME:
            return [alias.asname or alias.name for alias in aliases]
        case ast.Import(names=aliases):
            return [alias.asname or alias.name.split(".")[0] for alias in aliases]
        case ast.ExceptHandler(name=str(name)):
            return [name]
    return []


def _targets(statement: ast.stmt) -> set[str]:
    """Returns the names that an assignment makes or changes, such as `root` in `root.left = ...`."""
    match statement:
        case ast.Assign(targets=targets):
            pass
        case ast.AugAssign(target=target) | ast.AnnAssign(target=target):
            targets = [target]
        case _:
            targets = []
    return {node.id for target in targets for node in ast.walk(target) if isinstance(node, ast.Name)}
