"""Reading a benchmark's tests: which asserts can be taken apart, and what the others need."""

from __future__ import annotations

import ast
import builtins
import sys
from collections.abc import Iterable, Sequence
from copy import deepcopy
from dataclasses import dataclass

from sandbox.judge.cases import TestsError
from sandbox.judge.expressions import can_evaluate, is_candidate

_ASSIGNMENTS = (ast.Assign, ast.AugAssign, ast.AnnAssign)
_DEFINITIONS = (ast.FunctionDef, ast.ClassDef, ast.AsyncFunctionDef)
_SKIPPED = (*_ASSIGNMENTS, *_DEFINITIONS, ast.Import, ast.ImportFrom, ast.Pass)
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
    """Read the strings as one module; raises TestsError if one is no Python or if nothing in them can fail."""
    trees = [_parse(index, source) for index, source in enumerate(asserts)]
    module = [statement for tree in trees for statement in _body(tree)]
    bound = frozenset(name for tree in trees for name in _bound(tree)) - {entry_point}
    cases: list[Split | Whole] = []
    inputs: list[ast.stmt] = []
    setup: list[str] = []
    for source, tree in zip(asserts, trees, strict=True):
        if not _can_fail(tree):
            setup += [source] if _body(tree) else []
            continue
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
    return Plan(inputs="\n".join(ast.unparse(statement) for statement in inputs), cases=tuple(cases))


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
    aliases = {"candidate", *(argument.arg for entry in _entries(tree) for argument in entry.args.args)}
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
    needed = frozenset(name for value in values for name in _loaded([value]) - _bound(value)) & bound
    chosen: list[ast.stmt] = []
    while more := [s for s in module if s not in chosen and _targets(s) & needed]:
        chosen += more
        needed |= _loaded(more) & bound
    # Values that the tests can build themselves are for the tester: only there can they stand beside what is expected.
    from_candidate = _loaded(chosen) - bound - _BUILTINS
    built = {name for statement in chosen for name in _targets(statement)}
    is_possible = not needed or (from_candidate and needed <= built)
    return sorted(chosen, key=module.index) if is_possible else None


def _whole(source: str, defined: frozenset[str]) -> Whole:
    tree = ast.parse(source)
    free = _loaded([tree]) - defined - _BUILTINS
    bases = {n.value.id for n in ast.walk(tree) if isinstance(n, ast.Attribute) and isinstance(n.value, ast.Name)}
    imports = free & bases & sys.stdlib_module_names
    return Whole(source=source, imports=sorted(imports), remotes=sorted(free - imports))


def _is_idle(node: ast.stmt) -> bool:
    """A docstring, or a name that nobody calls."""
    return isinstance(node, ast.Expr) and isinstance(node.value, (ast.Constant, ast.Name))


def _loaded(nodes: Iterable[ast.AST]) -> frozenset[str]:
    walked = (child for node in nodes for child in ast.walk(node))
    return frozenset(n.id for n in walked if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Load))


def _bound(tree: ast.AST) -> set[str]:
    """Every name that is assigned, defined, imported or a parameter anywhere in it."""
    names = set()
    for node in ast.walk(tree):
        match node:
            case ast.Name(id=name, ctx=ast.Store()) | ast.arg(arg=name) | ast.alias(asname=str(name)):
                names.add(name)
            case ast.FunctionDef(name=name) | ast.ClassDef(name=name) | ast.AsyncFunctionDef(name=name):
                names.add(name)
            case ast.alias(name=name):
                names.add(name.split(".")[0])
            case ast.ExceptHandler(name=str(name)):
                names.add(name)
    return names


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
