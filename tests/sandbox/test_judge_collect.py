"""Tests as pytest collects them: classes without a base, and parameters; with the verdict that pytest would give."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from sandbox import Limits, Sandbox
from sandbox.judge import TestsError, asserts
from sandbox.judge.plan import plan

P = "import pytest\n@pytest.mark.parametrize"
FORMS = {
    "a class": "class TestF:\n    def test_a(self):\n        assert f(1) == 2",
    "a class of several": "class TestF(object):\n    n = 1\n    def test_a(self):\n        self.same(1)\n"
    "    def test_b(self):\n        self.same(self.n)\n    def same(self, n): assert f(n) == n + 1",
    "a class with a set-up": "class TestF:\n    @classmethod\n    def setup_class(cls): cls.m = 2\n"
    "    def setup_method(self): self.n = 1\n    def test_a(self):\n        assert f(self.n) == self.m",
    "a class with a set-up for a method": "class TestF:\n    def setup_method(self, method): self.n = 1\n"
    "    def test_a(self):\n        assert f(self.n) == 2",
    "two classes": "class TestA:\n    def test_a(self):\n        assert f(0) == 1\n"
    "class TestB:\n    def test_a(self):\n        assert f(1) == 2",
    "a class beside a function": "def test_a():\n    assert f(0) == 1\nclass TestB:\n    def test_a(self):\n"
    "        assert f(1) == 2",
    "parameters": f"{P}('n, m', [(0, 1), (1, 2)])\ndef test_a(n, m):\n    assert f(n) == m",
    "one parameter": f"{P}('n', (0, 1))\ndef test_a(n):\n    assert f(n) == n + 1",
    "names in a list": f"{P}(['n', 'm'], [[0, 1], [1, 2]], ids=['a', 'b'])\ndef test_a(n, m):\n    assert f(n) == m",
    "parameters with a name": f"CASES = [(0, 1), (1, 2)]\n{P}('n,m', CASES)\ndef test_a(n, m):\n    assert f(n) == m",
    "parameters twice": f"{P}('n', [0, 1])\n@pytest.mark.parametrize('m', [1, 2])\ndef test_a(n, m):\n"
    "    assert f(n + m) == n + m + 1",
    "parameters of a method": "import pytest\nclass TestF:\n"
    "    @pytest.mark.parametrize('n,m', [(0, 1), (1, 2)])\n"
    "    def test_a(self, n, m):\n        assert f(n) == m",
    "a name that a parameter has too": f"n = 1\n{P}('n', [n])\ndef test_a(n):\n    assert f(n) == 2",
    "its own main": f"{P}('n', [0, 1])\ndef test_a(n):\n    assert f(n) == n + 1\n"
    "if __name__ == '__main__':\n    pytest.main([__file__])",
    "its own main without a guard": f"{P}('n', [0, 1])\ndef test_a(n):\n    assert f(n) == n + 1\npytest.main()",
}
WRONG = ("def f(n): return n", "def f(n): return n + (n != 1)", "def f(n): raise KeyError", "")


@pytest.fixture(scope="module")
def box() -> Iterator[Sandbox]:
    """Without pytest, whether it is installed or not."""
    with Sandbox(workers=1, limits=Limits(wall=10.0, memory_mb=512)) as opened:
        yield opened


@pytest.mark.parametrize("test", FORMS.values(), ids=FORMS)
def test_each_form_passes_what_is_right_and_nothing_else(box: Sandbox, test: str) -> None:
    """They were refused, for they seemed to assert nothing."""
    assert asserts(box, "def f(n): return n + 1", "f", [test]).passed
    for code in WRONG:
        verdict = asserts(box, code, "f", [test])
        assert verdict.passed is False, (code, verdict)


@pytest.mark.slow
def test_pytest_says_the_same(tmp_path: Path) -> None:
    for index, (test, code) in enumerate((t, c) for t in FORMS.values() for c in ("def f(n): return n + 1", WRONG[1])):
        body = test.replace("\npytest.main()", "")
        (tmp_path / f"test_{'right' if index % 2 == 0 else 'wrong'}_{index}.py").write_text(f"{code}\n{body}\n")
    for kind, end in (("right", 0), ("wrong", 1)):
        files = [str(path) for path in sorted(tmp_path.glob(f"test_{kind}_*.py"))]
        command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--rootdir", str(tmp_path), *files]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
        assert done.returncode == end, done.stdout
        lines = [line for line in done.stdout.splitlines() if line.startswith("FAILED")]
        assert {line.split()[1].split("::")[0] for line in lines} == {Path(f).name for f in files if kind == "wrong"}


def test_more_of_pytest_needs_the_module(box: Sandbox) -> None:
    test = f"{P}('n', ['x'])\ndef test_a(n):\n    with pytest.raises(TypeError):\n        f(n)"
    verdict = asserts(box, "def f(n): return n + 1", "f", [test])
    assert (verdict.status, verdict.passed) == ("untestable", None) and "imports=['pytest']" in verdict.detail


@pytest.mark.parametrize(
    "test",
    [
        f"{P}('n', [pytest.param(1, id='one')])\ndef test_a(n):\n    assert f(n) == 2",
        f"{P}('n', [1], indirect=True)\ndef test_a(n):\n    assert f(n) == 2",
        f"{P}('n', [1])\ndef test_a(n, tmp_path):\n    assert f(n) == 2",
        f"{P}(*CASES)\ndef test_a(n):\n    assert f(n) == 2",
        "class TestF:\n    def test_a(self, fixture):\n        assert f(1) == 2",
        "class TestF(Base):\n    def test_a(self):\n        assert f(1) == 2",
        "class TestF:\n    def __init__(self): pass\n    def test_a(self):\n        assert f(1) == 2",
    ],
)
def test_what_is_not_covered_is_named(test: str) -> None:
    with pytest.raises(
        TestsError, match=r"assert nothing, .*'test_a' is not run: arguments of a test come from pytest"
    ):
        plan([test], "f")


def test_a_class_that_asserts_nothing_is_refused() -> None:
    with pytest.raises(TestsError, match=r"assert nothing, so that any program would pass$"):
        plan([f"{P}('n', [1])\ndef test_a(n):\n    f(n)"], "f")
    with pytest.raises(TestsError, match="never call 'f'"):
        plan(["class TestF:\n    def test_a(self):\n        assert True"], "f")
