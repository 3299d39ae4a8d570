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


@pytest.fixture(scope="module")
def exact() -> Iterator[CodeVerifier]:
    made = CodeVerifier(workers=1, compare="exact")
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
            {
                "test_list": '["same(f(1), 2)"]',
                "test_imports": ["import math"],
                "test_setup_code": "def same(a, b): assert a == b",
            },
            Asserts(entry_point="f", asserts=["import math", "def same(a, b): assert a == b", "same(f(1), 2)"]),
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
        ({"test_list": "assert f(1)"}, "column 'test_list' is no JSON"),
        ({"test_list": ["assert 1 == 1"]}, "calls no function"),
    ],
)
def test_rows_that_cannot_be_read_say_which_column(row: dict[str, Any], message: str, verifier: CodeVerifier) -> None:
    with pytest.raises(ValueError, match=message):
        read_tests(row)
    [reward] = verifier([Sample("", fenced(RIGHT), meta=row)])
    assert (reward.value, reward.reason) == (None, "no_tests") and message.split()[0] in reward.logs["detail"]


INF = float("inf")


@pytest.mark.parametrize(
    ("limit", "seconds"),
    [
        ({"seconds": 2, "nanos": 500_000_000}, 2.5),
        ({"seconds": 1, "nanos": 0}, 1.0),
        ({"seconds": 0, "nanos": 250_000_000}, 0.25),
        ({"seconds": 3}, 3.0),
        ({"seconds": 3, "nanos": None}, 3.0),
        ('{"seconds": 2, "nanos": 0}', 2.0),
        (1.5, 1.5),
        (4, 4.0),
        ("2.0 seconds", 2.0),
        ("1 second", 1.0),
        (" 0.5 s", 0.5),
        ("1500 ms", 1.5),
        ("250 milliseconds", 0.25),
        ("1000MS", 1.0),
        ("3", 3.0),
        (None, INF),
        (0, INF),
        ("", INF),
        ("unlimited", INF),
        ({"seconds": 0, "nanos": 0}, INF),
        ({"seconds": None}, INF),
        (float("nan"), INF),
        ([1], INF),
    ],
)
def test_a_time_limit_is_read_from_the_row(limit: object, seconds: float) -> None:
    pairs = {"inputs": ["1\n"], "outputs": ["2\n"]}
    for row in (
        {"public_tests": {"input": ["1\n"], "output": ["2\n"]}, "time_limit": limit},
        {"input_output": pairs, "time_limit": limit},
        {"input_output": {**pairs, "time_limit": limit}},
        {"input_output": {**pairs, "fn_name": "f"}, "time_limit": limit},
        {"public_test_cases": CASES, "metadata": {"func_name": "f", "time_limit": limit}},
    ):
        tests = read_tests(row)
        assert isinstance(tests, Stdio | Calls) and tests.case_seconds == seconds
    tests = read_tests({"tests": CASES, "time_limit": 5, "metadata": {"time_limit": 2}})
    assert isinstance(tests, Stdio) and tests.case_seconds == 2.0


def test_a_time_limit_that_cannot_be_read_is_named(verifier: CodeVerifier) -> None:
    for limit, why in (
        ("{2", "column 'time_limit' is no JSON"),
        ({"seconds": "x"}, "could not convert"),
        (10**400, ""),
    ):
        [reward] = verifier([Sample("", fenced(RIGHT), meta={"tests": CASES, "time_limit": limit})])
        assert (reward.value, reward.reason) == (None, "no_tests") and why in reward.logs["detail"]


def test_a_case_has_the_time_of_its_row(verifier: CodeVerifier) -> None:
    row = {"tests": [{"stdin": "0", "stdout": "0"}, {"stdin": "60", "stdout": "60"}], "time_limit": "1.5 seconds"}
    code = "import time\nn = int(input())\ntime.sleep(n)\nprint(n)"
    [reward] = verifier([Sample("", fenced(code), meta=row)])
    assert (reward.value, reward.reason) == (0.0, "timeout") and "case 1: timeout after" in reward.logs["detail"]
    assert reward.logs["num_passed"] == 1


PAIRS = [
    ("0.30000000000000004", "0.3", True),
    ("2.50", "2.5", True),
    ("1e3", "1000.0", True),
    ("1.0", "1", True),
    ("YES 0.333333333", "YES 0.33333333333", True),
    ("0.31", "0.3", False),
    ("1000000007.4", "1000000007", False),
    ("41", "42", False),
    ("no 0.5", "yes 0.5", False),
]


@pytest.mark.parametrize(("printed", "expected", "is_right"), PAIRS)
def test_numbers_are_compared_as_the_judges_of_contests_do(
    verifier: CodeVerifier, exact: CodeVerifier, printed: str, expected: str, is_right: bool
) -> None:
    case = [{"input": "", "output": expected, "testtype": "stdin"}]
    rows = [
        {"public_tests": {"input": [""], "output": [expected]}, "private_tests": {"input": [], "output": []}},
        {"input_output": json.dumps({"inputs": [""], "outputs": [expected]})},
        {"public_test_cases": json.dumps(case), "private_test_cases": "[]", "metadata": "{}"},
        {"test": json.dumps([{"input": {"stdin": ""}, "output": {"stdout": expected}}])},
        {"tests": [{"stdin": "", "stdout": expected}]},
    ]
    samples = [Sample("", fenced(f"print({printed!r})"), meta=row) for row in rows]
    assert [reward.value for reward in verifier(samples)] == [float(is_right)] * 5
    assert [reward.value for reward in exact(samples)] == [0.0] * 5


def test_returned_floats_are_compared_in_the_same_way(verifier: CodeVerifier, exact: CodeVerifier) -> None:
    live = {"public_test_cases": [{"input": "3", "output": "[0.3, 1]"}], "metadata": {"func_name": "f"}}
    rows = [{"fn_name": "f", "inputs": [[3]], "outputs": [[0.3, 1]]}, live]
    for body, is_right in (("(n / 10 + 1e-12, 1)", 1.0), ("[0.31, 1]", 0.0), ("[0.3, 2]", 0.0), ("['0.3', 1]", 0.0)):
        samples = [Sample("", fenced(f"def f(n): return {body}"), meta=row) for row in rows]
        assert [reward.value for reward in verifier(samples)] == [is_right] * 2
        assert [reward.value for reward in exact(samples)] == [0.0] * 2


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


@pytest.mark.parametrize("name", [5, ["f"], {"f": 1}, True, 1.5, "f g", "Solution().f", "", None, "class", "f\n"])
@pytest.mark.parametrize(
    "row",
    [
        {"test": "def check(c): assert c(1, 2) == 3", "entry_point": ...},
        {"test_list": ["assert add(1, 2) == 3"], "entry_point": ...},
        {"fn_name": ..., "input_output": {"inputs": [[1, 2]], "outputs": [3]}},
        {"input_output": {"fn_name": ..., "inputs": [[1, 2]], "outputs": [3]}},
        {"metadata": {"func_name": ...}, "public_test_cases": [{"input": "1\n2", "output": "3"}]},
    ],
)
def test_what_is_no_name_of_a_function_is_told_and_never_raised(
    verifier: CodeVerifier, row: dict[str, Any], name: object
) -> None:
    """A name that is no text left the reward as a TypeError, and ended the run."""
    filled = {
        key: name
        if value is ...
        else {k: name if v is ... else v for k, v in value.items()}
        if isinstance(value, dict)
        else value
        for key, value in row.items()
    }
    [reward] = verifier([Sample("", fenced(RIGHT), meta=filled)])
    if name:
        assert (reward.value, reward.reason) == (None, "no_tests"), reward
        assert "which is not the name of a function" in reward.logs["detail"]


def test_tests_that_are_no_source_are_told(verifier: CodeVerifier) -> None:
    for lines in ([5], [None, {"a": 1}], ["assert add(1, 2) == 3", 7]):
        [reward] = verifier([Sample("", fenced(RIGHT), meta={"test_list": lines, "entry_point": "add"})])
        assert (reward.value, reward.reason) == (None, "no_tests"), reward
