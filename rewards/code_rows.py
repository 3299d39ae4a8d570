"""Reads the tests in a row of a dataset, whichever of the usual forms they have.

    HumanEval               prompt, entry_point, test (source with `check(candidate)`)
    MBPP                    test_list, test_imports, test_setup_code, challenge_test_list
    APPS, TACO              input_output: {"inputs": [...], "outputs": [...]}, and "fn_name" for functions
    CodeContests            public_tests, private_tests, generated_tests: {"input": [...], "output": [...]}
    LiveCodeBench           public_test_cases, private_test_cases: [{"input", "output", "testtype"}], metadata.func_name
    SandboxFusion           test: [{"input": {"stdin"}, "output": {"stdout"}}]
    ours                    tests or test_cases: [{"stdin", "stdout"}]

Each may be JSON text or the value itself. A time limit for each case is read from `time_limit`, in the row or beside
the function's name: seconds, "2.0 seconds", "1500 ms" or CodeContests' {"seconds": 2, "nanos": 0}.
What is not covered: LiveCodeBench's pickled private tests, and checkers for problems with several right outputs.
"""

from __future__ import annotations

import ast
import builtins
import json
import math
import operator
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from keyword import iskeyword
from typing import Any

from sandbox.judge.equality import equal
from sandbox.judge.parsed import parsed
from sandbox.judge.plan import bound_names

_CASE_COLUMNS = ("public_tests", "private_tests", "generated_tests", "public_test_cases", "private_test_cases")
_OUR_COLUMNS = ("tests", "test_cases", "test")
_DURATION = re.compile(r"\s*([0-9]*\.?[0-9]+)\s*(ms|milli)?", re.IGNORECASE)


@dataclass(frozen=True, slots=True, kw_only=True)
class Stdio:
    """Tests of a whole program, by what it reads and prints."""

    cases: Sequence[Mapping[str, str]]
    case_seconds: float = math.inf
    """The row's own limit for each case."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Calls:
    """Tests of a function, by what it gets and returns, as JSON has it."""

    function: str
    calls: Sequence[Mapping[str, Any]]
    wrapped: bool
    """Whether an expected `[x]` may also mean `x`, and a text its value as JSON: APPS and TACO have all of these."""
    case_seconds: float = math.inf
    """The row's own limit for each call."""

    def equal(self, returned: Any, expected: Any, same: Callable[[Any, Any], bool] = operator.eq) -> bool:
        """Whether a value is the expected one, though JSON has no tuples and only text for keys.

        `same` decides about what is in the containers.
        """
        returned = _as_json(returned)
        meant = [expected]
        if self.wrapped and isinstance(expected, list) and len(expected) == 1:
            meant += expected
        if self.wrapped:
            meant += [_json(value) for value in meant]
        return any(equal(returned, value, same) for value in meant)


@dataclass(frozen=True, slots=True, kw_only=True)
class Asserts:
    """Tests of a function, by source that calls it."""

    entry_point: str
    asserts: Sequence[str]
    prompt: str = ""
    """The source that the completion continues, if the task is given as one."""


def read_tests(row: Mapping[str, Any]) -> Stdio | Calls | Asserts | None:
    """Returns the tests of a row, or None if it has none; raises ValueError naming a column that cannot be read."""
    if isinstance(row.get("test"), str) and (entry_point := _name(row.get("entry_point"), "entry_point")):
        prompt = _source(row.get("prompt"), entry_point)
        return Asserts(entry_point=entry_point, asserts=[*_helpers(prompt, entry_point), row["test"]], prompt=prompt)
    if lines := _value(row, "test_list"):
        setup = [*(_value(row, "test_imports") or ()), row.get("test_setup_code") or ""]
        tests = [text for text in (*setup, *lines, *(_value(row, "challenge_test_list") or ())) if text]
        if odd := [text for text in tests if not isinstance(text, str)]:
            raise ValueError(f"column 'test_list' or its setup holds {str(odd[0])[:60]!r}, not source")
        return Asserts(
            entry_point=_name(row.get("entry_point"), "entry_point") or _tested_name(lines, setup), asserts=tests
        )
    metadata = _value(row, "metadata")
    about = metadata if isinstance(metadata, Mapping) else {}
    name = _name(row.get("fn_name"), "fn_name") or _name(about.get("func_name"), "metadata.func_name")
    seconds = min(_seconds(row), _seconds(about))
    pairs = _value(row, "input_output") or (row if "inputs" in row and "outputs" in row else None)
    if pairs:
        name, seconds = _name(pairs.get("fn_name"), "fn_name") or name, min(seconds, _seconds(pairs))
        inputs, outputs = _value(pairs, "inputs"), _value(pairs, "outputs")
        cases = [{"input": given, "output": wanted} for given, wanted in zip(inputs, outputs, strict=True)]
        return _tests(name, cases, wrapped=True, case_seconds=seconds)
    cases = [case for column in (*_CASE_COLUMNS, *_OUR_COLUMNS) for case in _cases(row, column)]
    return _tests(name, cases, wrapped=False, case_seconds=seconds)


def _tests(
    name: str, cases: Sequence[Mapping[str, Any]], *, wrapped: bool, case_seconds: float
) -> Stdio | Calls | None:
    if not cases:
        return None
    if name:
        calls = [{"args": _arguments(case["input"]), "expected": _expected(case)} for case in cases]
        return Calls(function=name, calls=calls, wrapped=wrapped, case_seconds=case_seconds)
    pairs = [{"stdin": _text(case["input"]), "stdout": _text(case["output"])} for case in cases]
    return Stdio(cases=pairs, case_seconds=case_seconds)


def _cases(row: Mapping[str, Any], column: str) -> list[Mapping[str, Any]]:
    found = _value(row, column)
    if isinstance(found, Mapping):  # CodeContests: columns of their own
        found = [{"input": i, "output": o} for i, o in zip(found["input"], found["output"], strict=True)]
    cases = []
    for case in found or ():
        if not isinstance(case, Mapping):
            raise ValueError(f"column {column!r} holds {str(case)[:60]!r}, not a case with an input and an output")
        given, wanted = case.get("input", case.get("stdin")), case.get("output", case.get("stdout"))
        given = given.get("stdin", "") if isinstance(given, Mapping) and "stdin" in given else given
        wanted = wanted.get("stdout") if isinstance(wanted, Mapping) and "stdout" in wanted else wanted
        if given is None or wanted is None:
            raise ValueError(
                f"column {column!r} has a case with only {', '.join(map(str, case))}: it needs two of them"
            )
        cases.append({"input": given, "output": wanted})
    return cases


def _seconds(row: Mapping[str, Any]) -> float:
    """Returns the time limit for each case, which is infinite if there is none."""
    limit = row.get("time_limit")
    if isinstance(limit, str) and limit.strip().startswith("{"):
        limit = _value(row, "time_limit")
    amount = 0.0
    match limit:
        case {"seconds": seconds}:
            amount = float(seconds or 0) + float(limit.get("nanos") or 0) / 1e9
        case int() | float():
            amount = float(limit)
        case str() if found := _DURATION.match(limit):
            amount = float(found[1]) / (1000 if found[2] else 1)
    return amount if amount > 0 else math.inf


def _name(value: Any, column: str) -> str:
    """Returns the name of a function, "" if there is none; raises ValueError for what no function can be called."""
    if value and not (isinstance(value, str) and value.isidentifier() and not iskeyword(value)):
        raise ValueError(f"column {column!r} holds {str(value)[:60]!r}, which is not the name of a function")
    return value or ""


def _value(row: Mapping[str, Any], column: str) -> Any:
    value = row.get(column)
    if not isinstance(value, str) or not value:
        return value
    try:
        return json.loads(value)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"column {column!r} is no JSON ({value[:60]!r}): {error}") from None


def _text(value: Any) -> str:
    return "\n".join(map(str, value)) if isinstance(value, list) else str(value)


def _arguments(value: Any) -> list[Any]:
    """Returns the arguments, which APPS has in a list and LiveCodeBench as lines of JSON, one for each."""
    if isinstance(value, str):
        return [json.loads(line) for line in value.split("\n") if line.strip()]
    return list(value)


def _expected(case: Mapping[str, Any]) -> Any:
    """Returns what is expected. LiveCodeBench has it as JSON; elsewhere a text is what the function returns."""
    return _json(case["output"]) if isinstance(case["input"], str) else case["output"]


def _json(value: Any) -> Any:
    try:
        return json.loads(value) if isinstance(value, str) else value
    except (ValueError, RecursionError):
        return value


def _as_json(value: Any) -> Any:
    match value:
        case list() | tuple():
            return [_as_json(item) for item in value]
        case dict():
            return {key if isinstance(key, str) else str(key): _as_json(item) for key, item in value.items()}
    return value


def _helpers(prompt: str, entry_point: str) -> list[str]:
    """Returns what HumanEval's prompt defines beside the function; tests use it, and no completion may replace it."""
    tree = _parsed(prompt)
    kept = [node for node in tree.body if not _defines(node, entry_point)] if tree else []
    return [ast.unparse(ast.Module(body=kept, type_ignores=[]))] if kept else []


def _source(prompt: object, entry_point: str) -> str:
    """Returns the prompt if it is source with the function, to be continued, and "" if it is text for the model."""
    tree = _parsed(prompt) if isinstance(prompt, str) else None
    return str(prompt) if tree and any(_defines(node, entry_point) for node in tree.body) else ""


def _parsed(prompt: str) -> ast.Module | None:
    for source in (prompt, f"{prompt.rstrip()}\n    pass"):  # the second: it ends where the function's body starts
        try:
            return parsed(source)
        except (SyntaxError, ValueError):
            continue
    return None


def _defines(node: ast.stmt, name: str) -> bool:
    return isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)) and node.name == name


def _tested_name(tests: Sequence[str], setup: Sequence[str]) -> str:
    """Returns the outermost function in MBPP's asserts that neither they nor Python have, or else one such as `sum`."""
    try:
        trees = [parsed(test) for test in tests]
    except (SyntaxError, ValueError) as error:
        raise ValueError(f"column 'test_list' is no Python: {error}") from None
    try:
        bound = {name for tree in [*trees, *map(parsed, setup)] for name in bound_names(tree)}
    except (SyntaxError, ValueError) as error:
        raise ValueError(f"the imports or the setup of 'test_list' are no Python: {error}") from None
    calls = [node.func for tree in trees for node in ast.walk(tree) if isinstance(node, ast.Call)]
    names = [function.id for function in calls if isinstance(function, ast.Name) and function.id not in bound]
    if not names:
        raise ValueError("column 'test_list' calls no function that could be the one to write; give an entry_point")
    return next((name for name in names if name not in vars(builtins)), names[0])
