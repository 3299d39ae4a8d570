"""A test that fails whatever the program does judges nobody; what a program does never makes a test such a one."""

from __future__ import annotations

from collections.abc import Iterator
from importlib.util import find_spec

import pytest

from sandbox import Limits, Sandbox
from sandbox.judge import asserts, calls

RIGHT = "def f(n): return n + 1"
LOOP = "\nfor n in [1]:\n    assert f(n) == 2"


@pytest.fixture(scope="module")
def box() -> Iterator[Sandbox]:
    """Without numpy and pytest, whether they are installed or not."""
    with Sandbox(workers=1, limits=Limits(wall=10.0, memory_mb=512)) as opened:
        yield opened


BROKEN = [
    ("import numpy as np" + LOOP, "imports=['numpy']"),
    ("from numpy.testing import assert_allclose" + LOOP, "imports=['numpy']"),
    ("import numpy.linalg, scipy" + LOOP, "imports=['numpy']"),
    ("def check(candidate):\n    assert candidate(1) == 2\n    import numpy\n    assert numpy.isclose(candidate(1), 2)",
     "imports=['numpy']"),
    ("import pytest\ndef test_it():\n    with pytest.raises(TypeError):\n        f('x')", "imports=['pytest']"),
    ("import unittest, numpy\nclass T(unittest.TestCase):\n    def test_a(self): self.assertEqual(f(1), 2)",
     "imports=['numpy']"),
    ("import unittest\nclass T(unittest.TestCase):\n    def setUp(self): import numpy\n"
     "    def test_a(self): self.assertEqual(f(1), 2)", "imports=['numpy']"),
    ("from math import no_such_name" + LOOP, "cannot import what it needs"),
    ("data = open('data.csv').read()" + LOOP, "before it calls the candidate: FileNotFoundError"),
    ("x = 1 / 0" + LOOP, "before it calls the candidate: ZeroDivisionError"),
    ("cases = {}['f']" + LOOP, "before it calls the candidate: KeyError"),
    ("import sys\nassert sys.version_info > (9,)" + LOOP, "before it calls the candidate: AssertionError"),
    ("raise RuntimeError('set-up')" + LOOP, "RuntimeError: set-up"),
    ("import sys\nsys.exit(3)" + LOOP, "the test exits with 3"),
    ("kept = bytearray(1 << 40)" + LOOP, "MemoryError"),
    ("import os\nos._exit(3)" + LOOP, "ended before it called the candidate: exit code 3"),
    ("import os\nos.abort()" + LOOP, "ended before it called the candidate: signal 6"),
    ("assert f(1) == int('x')", "fails by itself: int('x'): ValueError"),
    ("assert f(int('x')) == 2", "fails by itself: int('x'): ValueError"),
    ("assert f(1) == 1 / 0", "fails by itself: 1 / 0: ZeroDivisionError"),
    ("assert sorted([1, 'x']) == f(1)", "fails by itself: sorted([1, 'x']): TypeError"),
    ("def same(a, b): assert nope(a, b)\nfor n in [1]:\n    same(f(n), 2)", "uses 'nope', which neither the tests nor"),
    ("assert f(1) == 2 and nope(f(1))", "uses 'nope'"),
    ("import unittest\nclass T(unittest.TestCase):\n    def test_a(self): self.assertEqual(f(1), nope(1))",
     "uses 'nope'"),
    ("class A: ...\nfor n in [A()]:\n    assert f(n) == 2", "calls 'f' with a value of type A"),
    ("for n in (1, lambda n: n):\n    assert f(n) == 2", "calls 'f' with a value of type function"),
    ("try:\n    f(lambda: 1)\nexcept BaseException:\n    pass\n"
    "assert f(1) == 2", "calls 'f' with a value of type function"),
    ("import unittest\nclass T(unittest.TestCase):\n    def test_a(self):\n"
    "        with self.assertRaises(BaseException):\n"
     "            f(lambda: 1)\n        self.assertEqual(f(1), 2)", "calls 'f' with a value of type function"),
]  # fmt: skip


@pytest.mark.parametrize(("test", "why"), BROKEN, ids=[test[:40] for test, _ in BROKEN])
def test_what_fails_for_every_program_judges_none(box: Sandbox, test: str, why: str) -> None:
    verdict = asserts(box, RIGHT, "f", [test])
    assert (verdict.status, verdict.passed) == ("untestable", None) and why in verdict.detail, verdict


def test_the_setting_helps() -> None:
    if not find_spec("numpy"):
        pytest.skip("numpy is not installed")
    test = "import numpy as np\ndef check(g):\n    np.testing.assert_allclose([g(n) for n in (1, 2)], [2, 3])"
    with Sandbox(workers=1, imports=("numpy",)) as box:
        assert asserts(box, RIGHT, "f", [test]).passed
        assert asserts(box, "def f(n): return 2", "f", [test]).passed is False


def test_an_import_that_the_test_can_do_without(box: Sandbox) -> None:
    assert asserts(box, RIGHT, "f", ["try:\n    import numpy\nexcept ImportError:\n    numpy = None" + LOOP]).passed


NESTED = "x = n\n    for _ in range({}): x = [x]\n    return x"
GUILTY = [
    "def f(n): return nope(n)",
    "def f(n): raise NameError(\"name 'f' is not defined\")",
    "import numpy\ndef f(n): return n + 1",
    "def f(n):\n    import numpy\n    return n + 1",
    "def f(n): raise ImportError('no')",
    "def f(n): raise ModuleNotFoundError('x', name='numpy')",
    "raise RuntimeError('set-up')",
    "def f(n): raise SystemExit(0)",
    "def f(n): return lambda: 1",
    "",
    "def f(n):\n    " + NESTED.format(195),
    "def f(n):\n    " + NESTED.format(300),
    "def f(n): return 'x' * (3 << 20)",
    'import os\ndef f(n):\n    os.write(3, b\'\\0\\0\\0\\x19["untestable", "I say so"]\')\n    return n + 1',
]


@pytest.mark.parametrize("code", GUILTY)
@pytest.mark.parametrize(
    "test",
    [
        "assert f(1) == 2",
        LOOP,
        "import unittest\nclass T(unittest.TestCase):\n    def test_a(self):\n        self.assertEqual(f(1), 2)",
        # It passes on what the program gave it, which is then too deep to cross, or too long.
        "for n in [1]:\n    x = [[f(n)] * 2] * 9\n    for _ in range(20):\n        x = [x]\n    assert f(x) == 2",
    ],
)
def test_what_a_program_does_is_its_own_failure(box: Sandbox, code: str, test: str) -> None:
    """Else a program could leave its group in place of losing in it."""
    verdict = asserts(box, code, "f", [test])
    assert verdict.passed is False, verdict


@pytest.mark.parametrize("expected", [object(), range(3), bytearray(b"x"), [1, {2: int}]])
def test_what_no_program_can_answer_judges_none(box: Sandbox, expected: object) -> None:
    call = {"args": [1], "expected": expected}
    verdict = calls(box, "def f(n): return range(3)", "f", [call])
    assert (verdict.status, verdict.passed) == (
        "untestable",
        None,
    ) and "the test expects a value of type" in verdict.detail
    assert calls(box, "def f(n): return 1 / 0", "f", [call]).passed is False
    for plain in (1, [3]):
        verdict = calls(box, "def f(n): return range(3)", "f", [{"args": [1], "expected": [plain]}])
        assert (verdict.status, verdict.passed) == ("unsupported_value", False)


@pytest.mark.parametrize(
    "code",
    [
        "def f(n): raise NameError(\"name 'nope' is not defined\")",
        "def f(n): return nope(n)",
        "def f(n): return n",
        "def nope(a, b): return a == undefined\ndef f(n): return n + 1",
        "def nope(a, b): return False\ndef f(n): return n + 1",
    ],
)
def test_a_name_that_only_the_program_lacks_is_its_own_failure(box: Sandbox, code: str) -> None:
    test = "def same(a, b):\n    assert a == 2\n    assert nope(a, b)\nfor n in [1]:\n    same(f(n), 2)"
    verdict = asserts(box, code, "f", [test])
    assert verdict.passed is False, verdict
    assert asserts(box, "def nope(a, b): return True\ndef f(n): return n + 1", "f", [test]).passed
    caught = "try:\n    nope(1)\nexcept NameError:\n    pass\nfor n in [1]:\n    assert f(n) == 2"
    assert (
        asserts(box, RIGHT, "f", [caught]).passed and asserts(box, "def f(n): return n", "f", [caught]).passed is False
    )


def test_a_forged_refusal_is_a_wrong_answer(box: Sandbox) -> None:
    code = (
        'import os\ndef f(n):\n    m = b\'{"t":["untestable","so"]}\'\n'
        "    os.write(3, len(m).to_bytes(4, 'big') + m)\n    return n + 1"
    )
    for test in ("assert f(1) == 2", LOOP):
        assert asserts(box, code, "f", [test]).passed is False
    assert calls(box, code, "f", [{"args": [1], "expected": 2}]).passed is False
