"""Verdicts by printed text and by returned values, made outside the sandbox."""

from __future__ import annotations

import math
import os
import signal
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest

import sandbox
from sandbox import Limits, Sandbox, SandboxError
from sandbox.judge import TestsError, Verdict, asserts, calls, stdio
from sandbox.worker import Worker

LIMITS = Limits(wall=10.0, memory_mb=512)
DOUBLE = [{"stdin": f"{n}\n", "stdout": f"{2 * n}\n"} for n in (1, 2, 3)]


@pytest.fixture(scope="module")
def box() -> Iterator[Sandbox]:
    with Sandbox(workers=2, limits=LIMITS) as opened:
        yield opened


def test_the_package_has_the_judge_and_limits_have_an_order() -> None:
    assert sandbox.judge.stdio is stdio
    assert Limits(5.0, 4.0, 256) == Limits(wall=5.0, cpu=4.0, memory_mb=256)


# stdio


@pytest.mark.parametrize(
    ("printed", "expected", "passed"),
    [
        ("a\n", "a", True), ("a", "a\n", True), ("a\n\n\n", "a", True), ("a  \nb\t\n", "a\nb", True),
        ("a\r\nb", "a\nb", True),
        ("", "", True), ("\n \n", "", True), ("a\n\nb", "a\n\nb\n", True), ("1 2  3", "1 2  3 ", True),
        ("a", "", False), ("", "a", False), ("a b", "a  b", False), ("a\nb", "a b", False), (" a", "a", False),
        ("a\n\nb", "a\nb", False), ("\na", "a", False), ("1.0", "1", False), ("Yes", "yes", False),
        ("a\nb", "a", False),
        ("a", "a\nb", False), ("a\x0bb", "a\nb", False), ("a\u2028b", "a\nb", False),
    ],
)  # fmt: skip
def test_only_blanks_at_line_ends_and_newlines_at_the_end_do_not_count(
    box: Sandbox, printed: str, expected: str, passed: bool
) -> None:
    verdict = stdio(box, f"print({printed!r}, end='')", [{"stdin": "", "stdout": expected}])
    assert (verdict.passed, verdict.status) == (passed, "correct" if passed else "wrong")


PROGRAMS = [
    ("print(2 * int(input()))", "correct", 3, ""),
    ("n = int(input())\nprint(2 * n if n < 3 else 0)", "wrong", 2, "case 2, line 0: got '0', not '6'"),
    ("n = int(input())\nprint(2 * n)\nprint(n)", "wrong", 0, "case 0, line 1: got '1', not no such line"),
    ("pass", "wrong", 0, "case 0, line 0: got no such line, not '2'"),
    ("n = int(input())\nprint(2 * n)\nraise SystemExit(n == 2)", "exited", 2, "case 1: exit code 1"),
    ("n = int(input())\nprint(2 * n)\n1 / (n - 2)", "exited", 2, "ZeroDivisionError"),
    ("n = int(input())\nprint(2 * n, flush=True)\nimport os\nos.kill(os.getpid(), 11)", "crashed", 0, "signal 11"),
    ("n = int(input())\nprint(2 * n)\nkept = bytearray(1 << 40)", "memory", 0, "MemoryError"),
    ("print('x' * (4 << 20))", "output_limit", 0, "case 0"),
    ("print(2 * int(input())", "compile_error", 0, "SyntaxError"),
]


@pytest.mark.parametrize(("code", "status", "num_passed", "detail"), PROGRAMS, ids=[row[1] for row in PROGRAMS])
def test_every_way_to_end_has_its_status_and_cases_are_counted(
    box: Sandbox, code: str, status: str, num_passed: int, detail: str
) -> None:
    verdict = stdio(box, code, DOUBLE, fail_fast=False)
    assert (verdict.status, verdict.num_passed, verdict.num_cases) == (status, num_passed, 3)
    assert verdict.passed is (status == "correct") and detail in verdict.detail
    first = stdio(box, code, DOUBLE)
    assert first.status == status and first.passed is verdict.passed and first.num_passed <= num_passed


@pytest.mark.slow
def test_one_deadline_bounds_all_cases(box: Sandbox) -> None:
    code = "import time\nn = int(input())\ntime.sleep(1.2)\nprint(2 * n)"
    start = time.monotonic()
    verdict = stdio(box, code, DOUBLE * 10, replace(LIMITS, wall=3.0), fail_fast=False)
    assert (verdict.status, verdict.passed) == ("timeout", False) and 0 < verdict.num_passed <= 2
    assert time.monotonic() - start < 6


def test_each_case_is_a_process_of_its_own(box: Sandbox) -> None:
    code = "import os\nn = int(input())\nprint(2 * n if not os.path.exists('seen') else 0)\nopen('seen', 'w')"
    assert stdio(box, code, DOUBLE).passed


# calls


def call(*args: object, expected: object, **kwargs: object) -> dict:
    return {"args": list(args), "kwargs": kwargs, "expected": expected}


@pytest.mark.parametrize(
    ("body", "case", "status"),
    [
        ("return a + b", call(1, 2, expected=3), "correct"),
        ("return a + b", call(1, b=2, expected=3), "correct"),
        ("return a + b", {"args": [1, 2], "expected": 3}, "correct"),
        ("return b", call(1, {(1, 2): {3}, None: b"x"}, expected={(1, 2): {3}, None: b"x"}), "correct"),
        ("return a + b", call(10**400, 1, expected=10**400 + 1), "correct"),
        ("return a + b", call("\ud800", "x", expected="\ud800x"), "correct"),
        ("return [a, (b, ...)]", call(1.5, 1j, expected=[1.5, (1j, ...)]), "correct"),
        ("return a == b", call(1, 1, expected=1), "correct"),
        ("return 1.0", call(1, 1, expected=True), "correct"),
        ("return math.inf", call(1, 1, expected=math.inf), "correct"),
        ("return [a, b]", call(1, 2, expected=(1, 2)), "wrong"),
        ("return (a, b)", call(1, 2, expected=[1, 2]), "correct"),
        ("return [(a, ((b,),))]", call(1, 2, expected=[[1, [[2]]]]), "correct"),
        ("return {'x': (a, {a: (b,)})}", call(1, 2, expected={"x": [1, {1: [2]}]}), "correct"),
        ("return ((), [()])", call(1, 2, expected=[[], [[]]]), "correct"),
        ("return (a, b)", call(1, 2, expected=[2, 1]), "wrong"),
        ("return (a, b, b)", call(1, 2, expected=[1, 2]), "wrong"),
        ("return ((a, b),)", call(1, 2, expected=[1, 2]), "wrong"),
        ("return {a, b}", call(1, 2, expected=[1, 2]), "wrong"),
        ("return 'ab'", call(1, 2, expected=["a", "b"]), "wrong"),
        ("return math.nan", call(1, 1, expected=math.nan), "wrong"),
        ("return None", call(1, 1, expected=0), "wrong"),
        ("return str(a)", call(1, 1, expected=1), "wrong"),
        ("raise KeyError(a)", call(1, 1, expected=KeyError(1)), "wrong"),
        ("return a", call(1, expected=1), "wrong"),
        ("return object()", call(1, 1, expected=1), "unsupported_value"),
        ("return iter([a])", call(1, 1, expected=[1]), "unsupported_value"),
        ("return f", call(1, 1, expected=1), "unsupported_value"),
        ("return bytearray(1 << 40)", call(1, 1, expected=1), "memory"),
        ("raise SystemExit", call(1, 1, expected=None), "exited"),
        ("import os; os._exit(0)", call(1, 1, expected=None), "exited"),
        ("import os; os.abort()", call(1, 1, expected=None), "crashed"),
        ("print('x' * (4 << 20))", call(1, 1, expected=None), "output_limit"),
        ("return 'x' * (2 << 20)", call(1, 1, expected="x" * (2 << 20)), "correct"),
        ("return 'x' * (2 << 20)", call(1, 1, expected="x"), "output_limit"),
    ],
)
def test_a_returned_value_equals_the_expected_one_or_not(box: Sandbox, body: str, case: dict, status: str) -> None:
    verdict = calls(box, f"import math\ndef f(a, b):\n    {body}\n", "f", [case])
    assert (verdict.status, verdict.passed) == (status, status == "correct"), verdict.detail


@pytest.mark.parametrize(
    ("code", "status", "detail"),
    [
        ("def g(n): return n", "wrong", "name 'f' is not defined"),
        ("f = 5", "wrong", "not callable"),
        ("def f(n: return n", "compile_error", "SyntaxError"),
        ("  def f(n): return n", "compile_error", "IndentationError"),
        ("import no_such_module\ndef f(n): return n", "exited", "No module named 'no_such_module'"),
        ("raise SystemExit(0)\ndef f(n): return n", "exited", "exit code 0"),
        ("def f(n): return n\nimport atexit, os\natexit.register(os._exit, 9)", "exited", "exit code 9"),
        ("def f(n): return n\nimport atexit\natexit.register(lambda: 1 / 0)", "correct", ""),
        ("from __future__ import annotations\ndef f(n: int) -> Undefined: return n", "correct", ""),
        ("f = lambda n: n\nprint('noise')", "correct", ""),
        ("def f(n): return n\nif __name__ == '__main__': f(input())", "correct", ""),
        ("import sys\ndef f(n): return n if sys.modules[f.__module__].f is f else None", "correct", ""),
    ],
)
def test_what_the_program_around_the_function_may_be(box: Sandbox, code: str, status: str, detail: str) -> None:
    verdict = calls(box, code, "f", [call(n, expected=n) for n in (1, 2)])
    assert (verdict.status, verdict.passed) == (status, status == "correct"), verdict.detail
    assert detail in verdict.detail and verdict.num_passed == (2 if verdict.passed else 0)


def test_methods_run_on_a_new_instance_each_time(box: Sandbox) -> None:
    code = "class Solution:\n    n = 0\n    def up(self, k):\n        self.n += k\n        return self.n\n"
    cases = [call(2, expected=2), call(3, expected=3)]
    assert calls(box, code, "up", cases, "Solution").passed
    for cls, fn, why in (("Gone", "up", "name 'Gone'"), ("Solution", "down", "no attribute 'down'")):
        assert why in calls(box, code, fn, cases, cls).detail
    broken = "class Solution:\n    def __init__(self): raise OSError('no')\n    def up(self, k): return k\n"
    assert "raised OSError: no" in calls(box, broken, "up", cases, "Solution").detail


def test_cases_go_on_after_a_failure_only_if_asked(box: Sandbox) -> None:
    code = "def f(n):\n    if n == 1: raise ValueError(n)\n    return n if n != 3 else object()"
    cases = [call(n, expected=n) for n in range(5)]
    assert calls(box, code, "f", cases) == Verdict(
        status="wrong", passed=False, detail="case 1: raised ValueError: 1", num_passed=1, num_cases=5
    )
    assert calls(box, code, "f", cases, fail_fast=False).num_passed == 3


def test_a_process_that_ends_midway_keeps_what_it_answered(box: Sandbox) -> None:
    code = "import os\ndef f(n):\n    return n if n < 3 else os._exit(0)"
    verdict = calls(box, code, "f", [call(n, expected=n) for n in range(5)], fail_fast=False)
    assert (verdict.status, verdict.passed, verdict.num_passed) == ("exited", False, 3)


def test_a_failure_does_not_wait_for_the_end_of_the_process(box: Sandbox) -> None:
    code = "import atexit, time\natexit.register(time.sleep, 60)\ndef f(n): return 0"
    start = time.monotonic()
    assert calls(box, code, "f", [call(1, expected=1)]).status == "wrong"
    assert time.monotonic() - start < 5


def test_equality_can_be_given(box: Sandbox) -> None:
    case = [call(1, expected=0.3333)]
    assert not calls(box, "def f(n): return 1 / 3", "f", case).passed
    assert calls(box, "def f(n): return 1 / 3", "f", case, equal=lambda a, b: math.isclose(a, b, rel_tol=1e-3)).passed


def test_long_details_are_cut(box: Sandbox) -> None:
    for value in ("'x' * 100_000", "10 ** 5000", "[[]] * 10_000"):
        verdict = calls(box, f"def f(n): return {value}", "f", [call(1, expected=1)])
        assert verdict.status == "wrong" and len(verdict.detail) < 300


# Both


@pytest.mark.parametrize(
    ("judge", "message"),
    [
        (lambda box: stdio(box, "", []), "no cases"),
        (lambda box: stdio(box, "", [{"stdin": "", "output": ""}]), r"case 0 has no 'stdout'; its keys: stdin, output"),
        (lambda box: stdio(box, "", [{"stdin": 5, "stdout": ""}]), "case 0 has 'stdin'=5: give text"),
        (lambda box: stdio(box, "", [{"stdin": "", "stdout": None}]), "case 0 has 'stdout'=None: give text"),
        (lambda box: calls(box, "", "f", []), "no cases"),
        (lambda box: calls(box, "", "f", [{"args": [1]}]), r"case 0 has no 'expected'; its keys: args"),
        (lambda box: calls(box, "", "f", [call(object(), expected=1)]), r"calls\[0\] .*type object; give plain data"),
        (lambda box: asserts(box, "", "f", []), "0 tests of 'f' assert nothing"),
        (lambda box: asserts(box, "", "f", ["x = 1", "# assert f()"]), "2 tests of 'f' assert nothing"),
        (lambda box: asserts(box, "", "f", ["assert f("]), r"asserts\[0\] is no Python"),
    ],
)
def test_tests_that_no_program_could_fail_are_an_error(box: Sandbox, judge, message: str) -> None:
    with pytest.raises(TestsError, match=message):
        judge(box)


def fork_servers_at_work() -> set[int]:
    """Fork servers of this process that run a job."""
    parents, servers = {}, set()
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):  # it ended meanwhile
            parents[int(folder.name)] = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
            servers |= {int(folder.name)} if b"zygote.py" in (folder / "cmdline").read_bytes() else set()
    return {pid for pid in servers & set(parents.values()) if parents[pid] == os.getpid()}


@pytest.mark.slow
def test_a_sandbox_that_fails_gives_no_verdict() -> None:
    """The fork server of a program that hangs is killed again and again: nothing can be said of it, in no way."""
    hang = "def f(n):\n    while True: pass\n"
    ways = [
        lambda box: stdio(box, hang + "f(0)", [{"stdin": "", "stdout": ""}]),
        lambda box: calls(box, hang, "f", [call(1, expected=1)]),
        lambda box: asserts(box, hang, "f", ["for n in [1]: assert candidate(n) == 1"]),
    ]
    idle = fork_servers_at_work()
    for judge in ways:
        done = threading.Event()

        def kill(done: threading.Event = done) -> None:
            before: set[int] = set()
            while not done.wait(0.3):
                now = fork_servers_at_work() - idle
                for pid in now & before:  # twice in a row: past its start
                    os.kill(pid, signal.SIGKILL)
                before = now

        with Sandbox(workers=1, limits=replace(LIMITS, wall=60.0)) as box:
            killer = threading.Thread(target=kill)
            killer.start()
            verdict = judge(box)
            done.set()
            killer.join()
            assert (verdict.status, verdict.passed) == ("infra", None), verdict
            assert calls(box, "def f(n): return n", "f", [call(1, expected=1)]).passed


def test_a_fork_server_that_cannot_start_gives_no_verdict(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(worker: Worker) -> None:
        raise SandboxError("no processes left")

    loop = ["for n in [1]: assert f(n) == n"]
    with Sandbox(workers=1) as box:
        monkeypatch.setattr(Worker, "await_ready", fail)
        for judge in (lambda: calls(box, "", "f", [call(1, expected=1)]), lambda: asserts(box, "", "f", loop)):
            assert judge() == Verdict("infra", None, "no processes left", num_cases=1)
        monkeypatch.undo()
        assert asserts(box, "def f(n): return n", "f", loop).passed
    with pytest.raises(SandboxError, match="closed"):
        asserts(box, "", "f", loop)


def test_many_threads_share_few_workers(box: Sandbox) -> None:
    """More testers than workers, each with a candidate that waits for it: none may wait for another forever."""
    loop = ["def check(candidate):\n    for n in range(5):\n        assert candidate(n) == n + 1"]
    right, wrong = "def f(n): return n + 1", "def f(n): return n + (n < 4)"
    with ThreadPoolExecutor(8) as threads:
        verdicts = list(threads.map(lambda code: asserts(box, code, "f", loop).passed, [right, wrong] * 12))
    assert verdicts == [True, False] * 12
