"""Reading a benchmark's tests: which asserts can be taken apart, and what the others need."""

from __future__ import annotations

import ast
import builtins
import sys
from collections.abc import Iterable, Sequence
from copy import deepcopy
from dataclasses import dataclass

from sandbox.calls import NAME
from sandbox.judge.cases import TestsError
from sandbox.judge.expressions import can_evaluate, is_candidate

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
    """In it the candidate has its own name, not `candidate`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Whole:
    """Test source that runs as it is, in the tester."""

    source: str
    imports: list[str]
    """Modules that it takes for imported: `sys.getsizeof(...)`."""
    remotes: list[str]
    """Names that must be the candidate's, for no test defines them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """Tests in the order in which they run."""

    inputs: str
    """Statements that build arguments out of the candidate's own classes, such as `root = Node(1)`."""
    cases: tuple[Split | Whole, ...]


def plan(asserts: Sequence[str], entry_point: str) -> Plan:
    """Read the strings as one module.

    Raises TestsError if one is no Python, if nothing in them can fail, if they never call the candidate, or if they
    define or import its name themselves.
    """
    trees = [_parse(index, source) for index, source in enumerate(asserts)]
    module = [part for tree in trees for statement in _body(tree) for part in _unpacked(statement)]
    _check_name(trees, entry_point)
    bound = frozenset(name for tree in trees for name in bound_names(tree)) - {entry_point}
    is_asked = False
    cases: list[Split | Whole] = []
    inputs: list[ast.stmt] = []
    setup: list[str] = []
    for source, tree in zip(asserts, trees, strict=True):
        if not _can_fail(tree):
            setup += [source] if _body(tree) else []
            continue
        is_asked = is_asked or _asks(tree, entry_point)
        tests = _asserted(tree, entry_point)
        needed = _inputs(tests, entry_point, module, bound) if tests else None
        if needed is None:
            called = [f"{entry.name}({'candidate' if entry.args.args else ''})" for entry in _entries(tree)]
            cases.append(_whole("\n".join([*setup, source, *called]), bound | {entry_point, "candidate"}))
        else:
            inputs += [statement for statement in needed if statement not in inputs]
            cases += [Split(test=test) for test in tests]
    if not cases:
        raise TestsError(f"the {len(asserts)} tests of {entry_point!r} assert nothing, so that any program would pass")
    if not is_asked:
        raise TestsError(f"the {len(asserts)} tests never call {entry_point!r}: name the function that they test")
    return Plan(inputs="\n".join(ast.unparse(statement) for statement in inputs), cases=tuple(cases))


def _check_name(trees: Sequence[ast.Module], entry_point: str) -> None:
    """Refuse tests that have a function of that name: what is asked of the candidate could be meant for theirs."""
    kept = [statement for tree in trees for statement in [*tree.body, *_body(tree)]]
    found = [node for statement in kept for node in _outside_functions(statement)]
    if any(entry_point in _bound_by(node) for node in found if isinstance(node, (*_DEFINITIONS, *_IMPORTS))):
        raise TestsError(f"the tests define or import {entry_point!r} themselves: give the function that they test")


def _outside_functions(statement: ast.AST) -> Iterable[ast.AST]:
    yield statement
    if not isinstance(statement, _DEFINITIONS):
        for child in ast.iter_child_nodes(statement):
            yield from _outside_functions(child)


def _asks(tree: ast.Module, entry_point: str) -> bool:
    """Whether the candidate is used at all, under whatever name."""
    aliases = _aliases(tree, entry_point)
    body = [s for s in _body(tree) if not (isinstance(s, ast.Expr) and isinstance(s.value, ast.Name))]
    return any(isinstance(node, ast.Name) and node.id in aliases for s in body for node in ast.walk(s))


def _parse(index: int, source: str) -> ast.Module:
    try:
        return ast.parse(source)
    except (SyntaxError, ValueError) as error:
        raise TestsError(f"asserts[{index}] is no Python: {error}") from None


def _entries(tree: ast.Module) -> list[ast.FunctionDef]:
    """Functions that a test runner calls: HumanEval's `check(candidate)`, pytest's `test_...()`."""
    found = [node for node in tree.body if isinstance(node, ast.FunctionDef)]
    named = [f for f in found if f.name == "check" or f.name.startswith("test_")]
    return [f for f in named if len(f.args.args) == (f.name == "check")]


def _aliases(tree: ast.Module, entry_point: str) -> set[str]:
    """Names by which tests call the candidate."""
    return {entry_point, "candidate", *(argument.arg for entry in _entries(tree) for argument in entry.args.args)}


def _body(tree: ast.Module) -> list[ast.stmt]:
    """The statements in the order in which they run, those of functions that are called last."""
    entries = _entries(tree)
    outer = [node for node in tree.body if node not in entries and not _calls_check(node)]
    return outer + [statement for entry in entries for statement in entry.body]


def _calls_check(node: ast.stmt) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Call) and ast.unparse(node.value.func) == "check"


def _can_fail(tree: ast.Module) -> bool:
    """Whether it runs an assert: one in a function that nobody calls does not count."""
    run = [statement for statement in _body(tree) if not isinstance(statement, _DEFINITIONS)]
    calls = any(isinstance(s, ast.Expr) and isinstance(s.value, ast.Call) for s in run)
    return any(isinstance(node, (ast.Assert, ast.Raise)) for s in ([tree] if calls else run) for node in ast.walk(s))


def _asserted(tree: ast.Module, entry_point: str) -> list[ast.expr]:
    """What a string of tests asserts, if that is all it does and all of it can be taken apart; else nothing."""
    body = _body(tree)
    if not all(isinstance(s, (*_SKIPPED, ast.Assert)) or _is_idle(s) for s in body):
        return []
    aliases = _aliases(tree, entry_point) - {entry_point}
    tests = [_Renamed(aliases, entry_point).visit(deepcopy(s.test)) for s in body if isinstance(s, ast.Assert)]
    return tests if all(can_evaluate(test, entry_point) for test in tests) else []


class _Renamed(ast.NodeTransformer):
    """Gives the candidate its own name, by which its process knows it."""

    def __init__(self, aliases: set[str], name: str) -> None:
        self.aliases, self.name = aliases, name

    def visit_Name(self, node: ast.Name) -> ast.Name:
        return ast.Name(self.name, node.ctx) if node.id in self.aliases else node


def _inputs(
    tests: list[ast.expr], entry_point: str, module: list[ast.stmt], bound: frozenset[str]
) -> list[ast.stmt] | None:
    """The statements that build the candidate's arguments; None if those are for the tests themselves to build."""
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
    """`a, b = 1, 2` as two statements, where that means the same."""
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


def _whole(source: str, defined: frozenset[str]) -> Whole:
    tree = ast.parse(source)
    free = _loaded([tree]) - defined - _BUILTINS
    bases = {n.value.id for n in ast.walk(tree) if isinstance(n, ast.Attribute) and isinstance(n.value, ast.Name)}
    imports = free & bases & sys.stdlib_module_names
    remotes = free - imports
    return Whole(source=source, imports=sorted(imports), remotes=sorted(remotes))


def _is_idle(node: ast.stmt) -> bool:
    """A docstring, or a name that nobody calls."""
    return isinstance(node, ast.Expr) and isinstance(node.value, (ast.Constant, ast.Name))


def _loaded(nodes: Iterable[ast.AST]) -> frozenset[str]:
    walked = (child for node in nodes for child in ast.walk(node))
    return frozenset(n.id for n in walked if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Load))


def bound_names(tree: ast.AST) -> set[str]:
    """Every name that is assigned, defined, imported or a parameter anywhere in it.

    What comes `from solution import ...` is the candidate's.
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
    """Names that an assignment makes or changes: `root` in `root.left = ...`."""
    match statement:
        case ast.Assign(targets=targets):
            pass
        case ast.AugAssign(target=target) | ast.AnnAssign(target=target):
            targets = [target]
        case _:
            targets = []
    return {node.id for target in targets for node in ast.walk(target) if isinstance(node, ast.Name)}
