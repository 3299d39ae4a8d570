"""Every reference solution of HumanEval and MBPP passes in the sandbox, and none with another function in its place."""

from __future__ import annotations

import ast
import gzip
import json
import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from sandbox import Limits, Sandbox
from sandbox.judge import asserts

SHARED = Path(__file__).resolve().parents[3] / "shared" / "data"
WRONG = {
    "constant": "def {name}(*args, **kwargs):\n    return object()",
    "none": "def {name}(*args, **kwargs):\n    return None",
    "identity": "def {name}(*args, **kwargs):\n    return args[0] if args else None",
    "raises": "def {name}(*args, **kwargs):\n    raise NotImplementedError",
}
RIGHT_BY_CHANCE = {"identity": {"MBPP/404", "MBPP/698", "MBPP/847"}}
"""The minimum of two where the first always is, a dict sorted, a list copied: plain Python passes these, too."""

Problem = tuple[str, str, str, list[str]]


@pytest.fixture(scope="module")
def box() -> Iterator[Sandbox]:
    with Sandbox(workers=2, limits=Limits(wall=30.0, cpu=30.0)) as opened:
        yield opened


def read(name: str) -> list[dict]:
    path = SHARED / name
    if not path.exists():
        pytest.skip(f"{name} is not at {SHARED}")
    text = gzip.decompress(path.read_bytes()).decode()
    return json.loads(text) if name.endswith("json.gz") else [json.loads(line) for line in text.splitlines()]


def humaneval() -> list[Problem]:
    """Task, function, reference, tests."""
    rows = read("humaneval/HumanEval.jsonl.gz")
    return [(r["task_id"], r["entry_point"], r["prompt"] + r["canonical_solution"], [r["test"]]) for r in rows]


def mbpp() -> list[Problem]:
    problems = []
    for row in read("mbpp/mbpp.jsonl.gz"):
        defined = re.findall(r"^def (\w+)", row["code"], re.MULTILINE)
        called = (n.func for n in ast.walk(ast.parse(row["test_list"][0])) if isinstance(n, ast.Call))
        names = (function.id for function in called if isinstance(function, ast.Name) and function.id in defined)
        tests = [row["test_setup_code"], *row["test_list"], *row["challenge_test_list"]]
        problems.append((f"MBPP/{row['task_id']}", next(names), row["code"], tests))
    return problems


def failures(box: Sandbox, problems: list[Problem]) -> dict[str, str]:
    def judge(problem: Problem) -> tuple[str, str]:
        task, name, code, tests = problem
        verdict = asserts(box, code, name, tests)
        assert verdict.passed is not None, f"{task}: {verdict.detail}"
        return task, "" if verdict.passed else f"{verdict.status}: {verdict.detail}"

    with ThreadPoolExecutor(2) as threads:
        return {task: why for task, why in threads.map(judge, problems) if why}


ASSERTION = "def assertion(out, exp, atol):\n    assert out == exp or abs(out - exp) <= atol\n"


def as_humaneval_plus(test: str) -> str | None:
    """The same cases in the form of HumanEval+, where all of them are `candidate(...) == value`."""
    check = next(node for node in ast.parse(test).body if isinstance(node, ast.FunctionDef))
    pairs = []
    for node in check.body:
        match node:
            case ast.Assert(test=ast.Compare(left=ast.Call(func=ast.Name("candidate")) as call, comparators=[value])):
                pairs.append((ast.unparse(ast.List(call.args)), ast.unparse(value)))
    if not pairs or len(pairs) < len([node for node in check.body if isinstance(node, ast.Assert)]):
        return None
    inputs, results = (f"[{', '.join(column)}]" for column in zip(*pairs, strict=True))
    loop = "for i, (inp, exp) in enumerate(zip(inputs, results)):\n        assertion(candidate(*inp), exp, 1e-6)"
    return f"{ASSERTION}\ndef check(candidate):\n    inputs = {inputs}\n    results = {results}\n    {loop}\n"


@pytest.mark.slow
def test_humaneval_in_the_form_of_humaneval_plus(box: Sandbox) -> None:
    forms = [(*problem[:3], as_humaneval_plus(problem[3][0])) for problem in humaneval()]
    found = [(task, name, code, [test]) for task, name, code, test in forms if test][::3]
    assert len(found) == 40 and failures(box, found) == {}
    wrong = [(task, name, f"{code}\n{WRONG['none'].format(name=name)}\n", tests) for task, name, code, tests in found]
    assert len(failures(box, wrong)) == len(found)


@pytest.mark.slow
@pytest.mark.parametrize(("problems", "count"), [(humaneval, 164), (mbpp, 974)])
def test_every_reference_solution_passes(box: Sandbox, problems, count: int) -> None:
    found = problems()
    assert len(found) == count
    assert failures(box, found) == {}  # none of them fails under plain Python either


@pytest.mark.slow
@pytest.mark.parametrize("wrong", WRONG)
@pytest.mark.parametrize(("problems", "share"), [(humaneval, 1), (mbpp, 4)])
def test_no_wrong_function_passes(box: Sandbox, problems, share: int, wrong: str) -> None:
    """Each problem of HumanEval with each wrong function, each of MBPP with one of them."""
    chosen = problems()[list(WRONG).index(wrong) % share :: share]
    replaced = [(t, name, f"{code}\n{WRONG[wrong].format(name=name)}\n", tests) for t, name, code, tests in chosen]
    failed = failures(box, replaced)
    for task, _, code, tests in replaced:
        if task not in failed:
            assert task in RIGHT_BY_CHANCE.get(wrong, ()), f"{task} passes"
            exec("\n".join([code, *tests]), {})  # raises unless plain Python passes it as well
