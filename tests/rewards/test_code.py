"""The code reward: finding the program, reading the row's tests, and the verdict of the sandbox."""

from __future__ import annotations

import gzip
import json
import pickle
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import rewards
from rewards import Reward, RewardError, Sample
from rewards.code import CodeVerifier, find_program
from rewards.code_rows import Asserts, Calls, Stdio, read_tests

SHARED = Path(__file__).resolve().parents[3] / "shared" / "data"
ADD = {"test_list": ["assert add(1, 2) == 3", "assert add(-1, 1) == 0", "assert add(5, 5) == 10"]}
RIGHT, WRONG = "def add(a, b):\n    return a + b", "def add(a, b):\n    return 3"


@pytest.fixture(scope="module")
def verifier() -> Iterator[CodeVerifier]:
    made = CodeVerifier(workers=2, wall=60.0)  # no right program may be late because the machine is busy
    yield made
    made.close()


def fenced(code: str, language: str = "python") -> str:
    return f"Here it is.\n```{language}\n{code}\n```\nThat is all."


# Finding the program

PLAIN = Stdio(cases=())
HUMAN = Asserts(entry_point="f", asserts=(), prompt='import math\n\ndef f(n):\n    """Say n."""\n')
LEET = Calls(function="f", calls=(), wrapped=False)


@pytest.mark.parametrize(
    ("completion", "program"),
    [
        ("```python\nx = 1\n```", "x = 1"),
        ("```py\nx = 1\n```", "x = 1"),
        ("```Python3\nx = 1\n```", "x = 1"),
        ("```\nx = 1\n```", "x = 1"),
        ("```python\nx = 1\n```\n```python\ny = 2\n```", "y = 2"),
        ("```python\nx = 1\n```\n```\noutput\n```", "x = 1"),
        ("```python\nx = 1\n```\n```bash\nrun\n```", "x = 1"),
        ("1. so:\n   ```python\n   x = 1\n   if x:\n       y = 2\n   ```", "x = 1\nif x:\n    y = 2"),
        ("<think>```python\nx = 1\n```</think>```python\ny = 2\n```", "y = 2"),
        ("</think>\n<answer>\nx = 1\n</answer>", "x = 1"),
        ("<answer>x = 1\n```python\ny = 2\n```</answer>```python\nz = 3\n```", "y = 2"),
        ("<answer>a</answer> <answer>x = 1</answer>", "x = 1"),
        ("```python\nx = '''\n~~~\n'''\n```", "x = '''\n~~~\n'''"),
        ("<think>```python\nx = 1\n```", None),
        ("<think>```python\nx = 1\n```</think>", None),
        ("```python\nx = 1", None),
        ("```bash\nrun\n```", None),
        ("x = 1", None),
        ("", None),
        ("```python\n\n```", None),
        ("<answer></answer>", None),
        ("```python\nx = 1\n```\n```python\ny = (", "x = 1"),
    ],
)
def test_the_program_is_the_last_block_of_the_answer(completion: str, program: str | None) -> None:
    assert find_program(completion, PLAIN) == program


def test_a_prompt_that_opens_the_thought_is_known() -> None:
    assert find_program("```python\nx = 1\n```", PLAIN, thinking=True) is None
    assert find_program("hm</think>```python\nx = 1\n```", PLAIN, thinking=True) == "x = 1"


@pytest.mark.parametrize(
    ("completion", "end"),
    [
        ("    return n\n", '"""Say n."""\n    return n\n'),
        ("\n    return n", '"""Say n."""\n\n    return n'),
        ("def f(n):\n    return n", "import math\n\ndef f(n):\n    return n"),
        ("```python\ndef f(n):\n    return n\n```", "import math\n\ndef f(n):\n    return n"),
        ("```python\nreturn n\n```", '"""Say n."""\n    return n'),
        ("<answer>return n</answer>", '"""Say n."""\n    return n'),
    ],
)
def test_a_task_that_is_source_is_continued(completion: str, end: str) -> None:
    program = find_program(completion, HUMAN)
    assert program is not None and program.startswith("import math\n\ndef f(n):") and program.endswith(end)
    compile(program, "program", "exec")


def test_future_imports_stay_first() -> None:
    code = "from __future__ import annotations\ndef f(n): return n"
    assert find_program(fenced(code), HUMAN) == find_program(fenced(code), LEET) == code
    assert find_program("I would return n.", HUMAN) is None


@pytest.mark.parametrize(
    "text", ["```" * 70_000, "`" * 200_000, "<answer>" * 30_000, "```python\n" * 20_000, "\n" * 200_000]
)
def test_long_texts_are_read_in_linear_time(text: str) -> None:
    find_program(text, PLAIN)  # the timeout of the suite is the limit for anything quadratic
    find_program(text + "\n```python\nx = 1\n```", HUMAN)


# Verdicts


def test_what_stands_before_a_function_leaves_builtins_and_modules_alone(verifier: CodeVerifier) -> None:
    code = (
        "def f(n):\n    d = datetime.date(2024, 1, 1)\n"
        "    return [pow(2, 10, 7), bisect.bisect_left([1, 3], 2), copy.copy(n), d.year, sqrt(4)]"
    )
    row = {"fn_name": "f", "inputs": [[[5]]], "outputs": [[2, 1, [5], 2024, 2.0]]}
    [reward] = verifier([Sample("", fenced(code), meta=row)])
    assert reward.value == 1.0, reward.logs


def test_a_fork_makes_a_sandbox_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    verifier = CodeVerifier(workers=1)
    sample = Sample("", fenced(RIGHT), meta=ADD)
    assert verifier([sample])[0].value == 1.0
    parent = verifier._box
    monkeypatch.setattr("os.getpid", lambda: 1 << 22)  # as in a child
    verifier._lock.acquire()  # by a thread of the parent
    assert verifier([sample])[0].value == 1.0 and verifier._box is not parent
    verifier.close()
    monkeypatch.undo()
    assert parent is not None
    parent.close()


@pytest.mark.parametrize(
    ("completion", "value", "reason"),
    [
        (fenced(RIGHT), 1.0, "correct"),
        (f"<think>hm</think><answer>\n{RIGHT}\n</answer>", 1.0, "correct"),
        (fenced(WRONG), 0.0, "wrong"),
        (RIGHT, 0.0, "no_code"),
        ("", 0.0, "no_code"),
        (fenced("def add(a, b: return"), 0.0, "compile_error"),
        (fenced("def add(a, b):\n    while True: pass"), 0.0, "timeout"),
        (fenced("def add(a, b):\n    return bytearray(1 << 40)"), 0.0, "memory"),
        (fenced("def add(a, b):\n    import os; os.abort()"), 0.0, "crashed"),
        (fenced("raise SystemExit(0)"), 0.0, "exited"),
        (fenced("print('x' * (8 << 20))\n" + RIGHT), 0.0, "output_limit"),
        (fenced("def add(a, b):\n    return object()"), 0.0, "unsupported_value"),
    ],
)
def test_every_reason(completion: str, value: float, reason: str) -> None:
    verifier = CodeVerifier(workers=1, wall=2.0, memory_mb=512)
    [reward] = verifier([Sample("add two numbers", completion, meta=ADD)])
    verifier.close()
    assert (reward.value, reward.reason) == (value, reason), reward.logs


def test_fractions_count_cases(verifier: CodeVerifier) -> None:
    sample = Sample("", fenced("def add(a, b):\n    return 3 if a == 1 else 10"), meta=ADD)
    share = CodeVerifier(workers=1, score="fraction")
    [reward] = share([sample])
    assert reward.value == pytest.approx(2 / 3) and reward.reason == "wrong"
    assert reward.logs["num_passed"] == 2 and reward.logs["num_cases"] == 3
    assert [share([Sample("", fenced(code), meta=ADD)])[0].value for code in (RIGHT, "x = 1")] == [1.0, 0.0]
    share.close()
    assert verifier([sample])[0].value == 0.0


SOLUTION = "class Solution:\n    def pairs(self, n: List[int]) -> Tuple:\n        return tuple(Counter(n).items())"


@pytest.mark.parametrize(
    ("code", "row", "value"),
    [
        ("print(int(input()) + 1)", {"tests": [{"stdin": "1\n", "stdout": "2"}, {"stdin": "5\n", "stdout": "6"}]}, 1.0),
        ("print(2)", {"tests": [{"stdin": "1\n", "stdout": "2"}, {"stdin": "5\n", "stdout": "6"}]}, 0.0),
        (SOLUTION, {"input_output": {"fn_name": "pairs", "inputs": [[[1, 1]]], "outputs": [[[1, 2]]]}}, 1.0),
        (SOLUTION, {"input_output": {"fn_name": "pairs", "inputs": [[[1, 1]]], "outputs": [[[1, 1]]]}}, 0.0),
        ("def pairs(n):\n    return n", {"fn_name": "pairs", "inputs": [[2]], "outputs": [2]}, 1.0),
        (
            "def f(n):\n    return n + 1",
            {
                "prompt": "def f(n):\n",
                "entry_point": "f",
                "test": "def check(g):\n    for n in (1, 2): assert g(n) == n + 1",
            },
            1.0,
        ),
    ],
)
def test_every_form_of_tests_is_judged(verifier: CodeVerifier, code: str, row: dict, value: float) -> None:
    [reward] = verifier([Sample("", fenced(code), meta=row)])
    assert reward.value == value, reward.logs


def test_what_cannot_be_judged_has_no_value(verifier: CodeVerifier) -> None:
    rows = [{}, {"answer": "5"}, {"test_list": ["f(1)"]}, {"tests": []}]
    found = verifier([Sample("", fenced(RIGHT), meta=row) for row in rows])
    assert [(reward.value, reward.reason) for reward in found] == [(None, "no_tests")] * 4
    assert "columns: answer" in found[1].logs["detail"] and "assert nothing" in found[2].logs["detail"]


def test_a_batch_keeps_its_order_and_works_from_any_thread(verifier: CodeVerifier) -> None:
    samples = [Sample("", fenced(RIGHT if n % 3 else WRONG), meta=ADD) for n in range(12)]
    expected = [float(n % 3 > 0) for n in range(12)]
    found: list[list[Reward]] = []
    threads = [threading.Thread(target=lambda: found.append(verifier(samples))) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [[reward.value for reward in one] for one in found] == [expected] * 3
    assert verifier([]) == []


def test_it_is_loaded_by_name_pickles_and_opens_again() -> None:
    reward = rewards.load("code", workers=1, score="fraction", wall=5.0)
    sample = Sample("", fenced("def add(a, b):\n    return 3"), meta=ADD)
    assert reward([sample])[0].value == pytest.approx(1 / 3)
    copy = pickle.loads(pickle.dumps(reward))
    assert copy([sample]) == reward([sample])
    for one in (reward, copy):
        one.close()
        one.close()
    remote = pickle.loads(pickle.dumps(CodeVerifier(level="remote", url="http://localhost")))
    assert (remote.level, remote.url) == ("remote", "http://localhost")
    settings = {"workers": 3, "imports": ["math"], "wall": 1.5, "memory_mb": 77, "score": "fraction"}
    made = pickle.loads(pickle.dumps(CodeVerifier(**settings, compare="exact", output_kb=5)))
    assert (made.workers, made.imports, made.score, made.compare) == (3, ("math",), "fraction", "exact")
    assert (made.limits.wall, made.limits.memory_mb, made.limits.output_kb) == (1.5, 77, 5)


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"score": "some"}, "score='some'; it is one of all, fraction"),
        ({"compare": "nearly"}, "compare='nearly'; it is one of numbers, exact"),
        ({"output_kb": 0}, "output_kb=0"),
        ({"workers": 0}, "workers=0"),
        ({"wall": -1.0}, "wall=-1.0"),
        ({"memory_mb": 0}, "memory_mb=0"),
        ({"wal": 1.0}, "wal"),
        ({"level": "jail"}, "level='jail'; it is auto or one of namespaces"),
        ({"level": "remote"}, "level 'remote' needs a url"),
        ({"url": "http://localhost"}, "no other has one"),
        ({"imports": "numpy"}, r"imports='numpy'; give a list of module names, such as \['numpy'\]"),
        ({"imports": ["nosuchmod"]}, "imports='nosuchmod': .* has no module 'nosuchmod'; install it or leave it out"),
        ({"imports": ["math", "nosuchmod.part"]}, "has no module 'nosuchmod'"),
        ({"imports": [1]}, r"imports=\[1\]: 1 is not the name of a module"),
        ({"imports": [""]}, "'' is not the name of a module"),
        ({"imports": ["a b"]}, "'a b' is not the name of a module"),
        ({"imports": 5}, "imports=5; give a list of module names"),
        ({"imports": ["numpy"], "level": "remote", "url": "http://x"}, "level 'remote' has what its service has"),
    ],
)
def test_wrong_settings_are_refused(kwargs: dict[str, Any], message: str) -> None:
    with pytest.raises(RewardError, match=message):
        rewards.load("code", **kwargs)


def test_a_value_that_breaks_the_comparison_is_wrong_not_masked(verifier: CodeVerifier) -> None:
    """Else a program could leave its group instead of failing: str() of such a key raises ValueError."""
    row = {"fn_name": "f", "inputs": [[1]], "outputs": [{"1": 2}]}
    for value in ("{10 ** 5000: 1}", "{(1, 2): 3}", "{None: 10 ** 5000}"):
        [reward] = verifier([Sample("", fenced(f"def f(n):\n    return {value}"), meta=row)])
        assert (reward.value, reward.reason) == (0.0, "wrong"), reward


def test_what_is_expected_sets_the_limit_of_output() -> None:
    row = {"tests": [{"stdin": "", "stdout": "x" * (2 << 20)}]}
    samples = [Sample("", fenced(f"print('x' * ({n} << 20))"), meta=row) for n in (2, 4)]
    found = {}
    for kb in (1024, 4096):
        with_limit = CodeVerifier(workers=1, output_kb=kb)
        found[kb] = [reward.reason for reward in with_limit(samples)]
        with_limit.close()
    assert found == {1024: ["correct", "output_limit"], 4096: ["correct", "wrong"]}


PLUS = """
import numpy as np

def is_floats(x) -> bool:
    if isinstance(x, float):
        return True
    if isinstance(x, (list, tuple)) and x:
        return all(isinstance(i, float) for i in x)
    if isinstance(x, np.ndarray):
        return x.dtype == np.float64 or x.dtype == np.float32
    return False

def assertion(out, exp, atol):
    if atol == 0 and is_floats(exp):
        atol = 1e-6
    if out != exp and atol != 0:
        assert np.allclose(out, exp, rtol=1e-07, atol=atol)
    else:
        assert out == exp, f"out: {out}, exp: {exp}"

def check(candidate):
    inputs = [[1], [2.5], [[1.0, 2.0]]]
    results = [2, 5.0, [1.0, 2.0, 1.0, 2.0]]
    for i, (inp, exp) in enumerate(zip(inputs, results)):
        assertion(candidate(*inp), exp, 0)
"""


def test_humaneval_plus_needs_numpy_and_says_so() -> None:
    """The form of evalplus/humanevalplus: helpers and a loop, with numpy."""
    pytest.importorskip("numpy")
    row = {"prompt": 'def twice(x):\n    """Twice x."""\n', "entry_point": "twice", "test": PLUS}
    nearly = "def twice(x):\n    return x * 2 if x != 2.5 else 5.0000001"
    codes = ["    return x * 2\n", fenced("def twice(x):\n    return x + x"), fenced(nearly), fenced("return 2"), ""]
    samples = [Sample("", code, meta=row) for code in codes]
    for imports, found in (
        (["numpy"], [(1.0, "correct")] * 3 + [(0.0, "wrong"), (0.0, "no_code")]),
        ([], [(None, "untestable")] * 4 + [(0.0, "no_code")]),
    ):
        verifier = CodeVerifier(workers=1, imports=imports)
        judged = verifier(samples)
        verifier.close()
        assert [(reward.value, reward.reason) for reward in judged] == found, judged
    assert "imports=['numpy']" in judged[0].logs["detail"]


# Data sets


def read(name: str) -> list[dict]:
    path = SHARED / name
    if not path.exists():
        pytest.skip(f"{name} is not at {SHARED}")
    return [json.loads(line) for line in gzip.decompress(path.read_bytes()).decode().splitlines()]


@pytest.mark.slow
def test_humaneval_in_three_forms_of_completion(verifier: CodeVerifier) -> None:
    rows = read("humaneval/HumanEval.jsonl.gz")
    for form in (
        lambda row: row["canonical_solution"],
        lambda row: fenced(row["prompt"] + row["canonical_solution"]),
        lambda row: (
            f"<think>\n```python\nx\n```</think>\n<answer>\n{row['prompt']}{row['canonical_solution']}\n</answer>"
        ),
    ):
        found = verifier([Sample(row["prompt"], form(row), meta=row) for row in rows])
        assert {r["task_id"]: f for r, f in zip(rows, found, strict=True) if f.value != 1.0} == {} and len(found) == 164


def test_a_helper_of_the_prompt_cannot_be_replaced(verifier: CodeVerifier) -> None:
    """HumanEval/32 asks for a zero of `poly`, which the prompt defines: a completion that makes it 0 would pass."""
    row = next(row for row in read("humaneval/HumanEval.jsonl.gz") if row["task_id"] == "HumanEval/32")
    cheat = "def poly(xs, x):\n    return 0\ndef find_zero(xs):\n    return 0\n"
    assert verifier([Sample("", fenced(cheat), meta=row)])[0].reason == "wrong"


@pytest.mark.slow
def test_mbpp_rows_are_judged_as_they_are(verifier: CodeVerifier) -> None:
    rows = read("mbpp/mbpp.jsonl.gz")[::4]
    right = verifier([Sample(row["text"], fenced(row["code"]), meta=row) for row in rows])
    assert {r["task_id"]: f for r, f in zip(rows, right, strict=True) if f.value != 1.0} == {}
    wrong = verifier([Sample(row["text"], fenced("def nothing(): pass"), meta=row) for row in rows])
    assert {reward.value for reward in wrong} == {0.0} and len(wrong) == 244


def test_code_contests_rows_are_read_and_a_program_that_prints_nothing_fails(verifier: CodeVerifier) -> None:
    rows = read("code_contests_sample/code_contests_sample.jsonl.gz")
    tests = [read_tests(row) for row in rows]
    assert all(isinstance(t, Stdio) and 35 <= len(t.cases) <= 331 for t in tests) and len(rows) == 20
    found = verifier([Sample("", fenced("pass"), meta=row) for row in rows])
    assert [(reward.value, reward.reason) for reward in found] == [(0.0, "wrong")] * 20
