"""The code reward: reading the tests in a row, whichever of the usual forms they have."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from rewards import Sample
from rewards.code import CodeVerifier, find_program
from rewards.code_rows import Asserts, Calls, Stdio, read_tests

RIGHT = "def add(a, b):\n    return a + b"


@pytest.fixture(scope="module")
def verifier() -> Iterator[CodeVerifier]:
    made = CodeVerifier(workers=2, wall=10.0)
    yield made
    made.close()


def fenced(code: str) -> str:
    return f"```python\n{code}\n```"


CASES = [{"stdin": "1\n", "stdout": "2\n"}]


@pytest.mark.parametrize(
    ("row", "tests"),
    [
        ({"test": json.dumps([{"input": {"stdin": "1\n"}, "output": {"stdout": "2\n"}}])}, Stdio(cases=CASES)),
        ({"tests": CASES}, Stdio(cases=CASES)),
        ({"test_cases": json.dumps([{"input": "1\n", "output": "2\n"}])}, Stdio(cases=CASES)),
        ({"input_output": json.dumps({"inputs": ["1\n"], "outputs": ["2\n"]})}, Stdio(cases=CASES)),
        ({"inputs": [["1", "x"]], "outputs": [["2", "y"]]}, Stdio(cases=[{"stdin": "1\nx", "stdout": "2\ny"}])),
        (
            {
                "public_tests": {"input": ["1\n"], "output": ["2\n"]},
                "private_tests": {"input": [], "output": []},
                "generated_tests": {"input": ["3"], "output": ["4"]},
            },
            Stdio(cases=[*CASES, {"stdin": "3", "stdout": "4"}]),
        ),
        (
            {"input_output": {"fn_name": "f", "inputs": [[1, [2]]], "outputs": [[3]]}},
            Calls(function="f", calls=[{"args": [1, [2]], "expected": [3]}], wrapped=True),
        ),
        (
            {
                "public_test_cases": json.dumps(
                    [{"input": '[1, 2]\n"x"', "output": "[true]", "testtype": "functional"}]
                ),
                "metadata": '{"func_name": "f"}',
            },
            Calls(function="f", calls=[{"args": [[1, 2], "x"], "expected": [True]}], wrapped=False),
        ),
        (
            {
                "test_list": ["assert set(f(1)) == {1}"],
                "test_setup_code": "x = 1",
                "challenge_test_list": ["assert f(2)"],
            },
            Asserts(entry_point="f", asserts=["x = 1", "assert set(f(1)) == {1}", "assert f(2)"]),
        ),
        (
            {"test_list": ["assert sum(1, 2) == 3"], "test_imports": ["import math"], "prompt": "Add two numbers."},
            Asserts(entry_point="sum", asserts=["import math", "assert sum(1, 2) == 3"]),
        ),
        (
            {"prompt": "import math\ndef g(x):\n    return x\ndef f(x):\n    pass\n", "entry_point": "f", "test": "T"},
            Asserts(
                entry_point="f",
                asserts=["import math\n\ndef g(x):\n    return x", "T"],
                prompt="import math\ndef g(x):\n    return x\ndef f(x):\n    pass\n",
            ),
        ),
        ({}, None),
        ({"answer": "5"}, None),
        ({"tests": []}, None),
        ({"test_list": [], "tests": CASES}, Stdio(cases=CASES)),
    ],
)
def test_the_usual_columns_are_read(row: dict[str, Any], tests: object) -> None:
    assert read_tests(row) == tests


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"tests": "[{"}, "column 'tests' is no JSON"),
        ({"private_test_cases": "eJxrYJk6cQoDGADxxQ=="}, "column 'private_test_cases' is no JSON"),
        ({"tests": [1]}, "column 'tests' holds '1', not a case"),
        ({"tests": [{"input": "1"}]}, "column 'tests' has a case with only input"),
        ({"inputs": ["1"], "outputs": []}, "shorter"),
        ({"test_list": ["assert ("]}, "column 'test_list' is no Python"),
        ({"test_list": ["assert 1 == 1"]}, "calls no function"),
    ],
)
def test_rows_that_cannot_be_read_say_which_column(row: dict[str, Any], message: str, verifier: CodeVerifier) -> None:
    with pytest.raises(ValueError, match=message):
        read_tests(row)
    [reward] = verifier([Sample("", fenced(RIGHT), meta=row)])
    assert (reward.value, reward.reason) == (None, "no_tests") and message.split()[0] in reward.logs["detail"]


def test_values_that_json_cannot_tell_apart_are_equal() -> None:
    strict, wrapped = Calls(function="f", calls=(), wrapped=False), Calls(function="f", calls=(), wrapped=True)
    for returned, expected, plain, with_wrap in (
        ((1, (2,)), [1, [2]], True, True),
        ({1: (2,)}, {"1": [2]}, True, True),
        (3, [3], False, True),
        ([3], [[3]], False, True),
        (3, [3, 3], False, False),
        ([], [], True, True),
        ([3], 3, False, False),
        ("3", 3, False, False),
    ):
        assert (strict.equal(returned, expected), wrapped.equal(returned, expected)) == (plain, with_wrap), returned


def test_a_function_of_the_tests_own_is_not_the_one_to_write(verifier: CodeVerifier) -> None:
    row = {"test_imports": ["from math import isclose"], "test_list": ["assert isclose(f(2), 4.0)"]}
    tests = read_tests(row)
    assert isinstance(tests, Asserts) and tests.entry_point == "f"
    forged, honest = "def isclose(*a): return True\ndef f(n): return 0", "def f(n): return n * 2.0"
    found = verifier([Sample("", fenced(code), meta=row) for code in (forged, honest)])
    assert [reward.value for reward in found] == [0.0, 1.0]
    with pytest.raises(ValueError, match="calls no function"):
        read_tests({**row, "test_list": ["assert isclose(1, 1)"]})
    with pytest.raises(ValueError, match="the setup of 'test_list' are no Python"):
        read_tests({**row, "test_imports": ["import ("]})
    row = {"test_list": ["from solution import f", "assert f(2) == 4.0"]}
    assert verifier([Sample("", fenced(honest), meta=row)])[0].value == 1.0


@pytest.mark.parametrize("prompt", ["Write f.", [{"role": "user", "content": "Write f."}], None, "x = 1", "def g(): 1"])
def test_a_prompt_for_the_model_is_no_source(prompt: object) -> None:
    tests = read_tests({"prompt": prompt, "entry_point": "f", "test": "assert f(1) == 1"})
    assert isinstance(tests, Asserts) and tests.prompt == ""
    assert find_program(fenced("def f(n): return n"), tests) == "def f(n): return n"


def test_a_prompt_that_ends_where_the_body_starts_is_source() -> None:
    tests = read_tests({"prompt": "import math\ndef f(n):\n", "entry_point": "f", "test": "assert f(1) == 1"})
    assert isinstance(tests, Asserts) and list(tests.asserts) == ["import math", "assert f(1) == 1"]
    assert find_program("    return n", tests) == "import math\ndef f(n):\n    return n"


def test_only_text_beside_text_is_json() -> None:
    apps = read_tests({"input_output": {"fn_name": "f", "inputs": [[1]], "outputs": ["12"]}})
    assert isinstance(apps, Calls) and apps.calls == [{"args": [1], "expected": "12"}]
    assert apps.equal("12", "12") and apps.equal(12, "12") and apps.equal("12", ["12"]) and apps.equal(12, ["12"])
    assert not apps.equal(13, "12") and not apps.equal("1", "12")
    live = read_tests({"fn_name": "f", "private_test_cases": [{"input": "1", "output": '"12"'}]})
    assert isinstance(live, Calls) and live.calls == [{"args": [1], "expected": "12"}]
    assert not live.equal(12, "12")
