"""Tests assert in many ways, and each of them is judged; those that assert in none are refused."""

from __future__ import annotations

from collections.abc import Iterator
from importlib.util import find_spec

import pytest

from sandbox import Sandbox
from sandbox.judge import TestsError, asserts
from sandbox.judge.plan import plan

pytestmark = pytest.mark.slow

RIGHT = "def f(n): return n + 1"
WRONG = ("def f(n): return n + 2", "def f(n): raise ValueError", "")
HELPERS = """
import math
def is_floats(x):
    if isinstance(x, float):
        return True
    if isinstance(x, (list, tuple)) and x:
        return all(isinstance(i, float) for i in x)
    return False
def assertion(out, exp, atol):
    if atol == 0 and is_floats(exp):
        atol = 1e-6
    if out != exp and atol != 0:
        assert math.isclose(out, exp, abs_tol=atol)
    else:
        assert out == exp, f"out: {out}, exp: {exp}"
"""
"""The helpers of HumanEval+, with math in place of numpy."""
V = "def verify(a, b):\n    assert a == b\n"

FORMS = {
    "humaneval+": HELPERS + "def check(candidate):\n    inputs = [[1], [2.5]]\n    results = [2, 3.5]\n"
    "    for i, (inp, exp) in enumerate(zip(inputs, results)):\n        assertion(candidate(*inp), exp, 0)\n",
    "humaneval+ with a reference": HELPERS + "def ref_func(n):\n    return n + 1\ndef check(candidate):\n"
    "    for inp in [[1], [2.5]]:\n        assertion(candidate(*inp), ref_func(*inp), 1e-6)\n",
    "in an if": V + "if True:\n    verify(f(1), 2)",
    "in a with": V + "import contextlib\nwith contextlib.nullcontext():\n    verify(f(1), 2)",
    "in a try": V + "try:\n    verify(f(1), 2)\nfinally:\n    pass",
    "in a while": V + "n = 0\nwhile n < 2:\n    verify(f(n), n + 1)\n    n += 1",
    "in a comprehension": V + "[verify(f(n), n + 1) for n in (1, 2)]",
    "in a comprehension of check": V + "def check(candidate):\n    [verify(candidate(n), n + 1) for n in (1, 2)]",
    "in all()": "def holds(n):\n    assert f(n) == n + 1\n    return True\nall(holds(n) for n in (1, 2))",
    "in map()": "def holds(n):\n    assert f(n) == n + 1\nlist(map(holds, (1, 2)))",
    "in an assignment": V + "kept = verify(f(1), 2)",
    "in an assignment beside an assert": V + "kept = verify(f(1), 2)\nassert f(3) in (4, 5)",
    "in a lambda": V + "holds = lambda n: verify(f(n), n + 1)\nholds(1)",
    "through a partial": V + "from functools import partial\npartial(verify, 2)(f(1))",
    "in a nested helper": "def outer(a, b):\n    def inner():\n        assert a == b\n    inner()\nouter(f(1), 2)",
    "in a helper of a helper": V + "def outer(n):\n    verify(f(n), n + 1)\nfor n in (1, 2):\n    outer(n)",
    "in a method": "class Case:\n    def eq(self, a, b):\n        assert a == b\nfor n in (1, 2):\n"
    "    Case().eq(f(n), n + 1)",
    "in a constructor": "class Case:\n    def __init__(self, a, b):\n        assert a == b\nfor n in (1,):\n"
    "    Case(f(n), 2)",
    "in an exit": "class Case:\n    def __enter__(self): ...\n    def __exit__(self, *a):\n        assert f(1) == 2\n"
    "with Case():\n    pass",
    "by a decorator": "def run(g):\n    g()\n@run\ndef case():\n    assert f(1) == 2",
    "in a coroutine": "import asyncio\nasync def main():\n    assert f(1) == 2\nasyncio.run(main())",
    "assert all": "assert all(f(n) == n + 1 for n in (1, 2))",
    "raise": "if f(1) != 2:\n    raise AssertionError('no')",
    "raise another": "def verify(a, b):\n    if a != b:\n        raise ValueError\nfor n in (1, 2):\n"
    "    verify(f(n), n + 1)",
    "match": "match f(1):\n    case 2: pass\n    case _: raise AssertionError",
    "exit": "import sys\nif f(1) != 2:\n    sys.exit('no')",
    "exit in any case": "import sys\nok = f(1) == 2\nsys.exit(0 if ok else 1)",
    "assertEqual": "import unittest\ncase = unittest.TestCase()\ncase.assertEqual(f(1), 2)",
    "TestCase": "import unittest\nclass T(unittest.TestCase):\n    def setUp(self):\n        self.n = 1\n"
    "    def test_a(self):\n        self.assertEqual(f(self.n), 2)\n"
    "    def test_b(self):\n        with self.assertRaises(TypeError):\n            f('x')",
    "TestCase and main": "from unittest import TestCase, main\nimport unittest\nclass T(TestCase):\n"
    "    def test_a(self):\n        with self.subTest('x'):\n            self.assertAlmostEqual(f(1), 2)\n"
    "unittest.main()",
    "TestCase and guard": "import unittest\nclass T(unittest.TestCase):\n    def test_a(self):\n"
    "        self.assertTrue(f(1) == 2)\nif __name__ == '__main__':\n    unittest.main()",
    "check with a default": "def check(candidate, quiet=True):\n    for n in (1, 2):\n"
    "        assert candidate(n) == n + 1",
    "check with a keyword": "def check(candidate, *, most=2):\n    for n in range(most):\n"
    "        assert candidate(n) == n + 1",
    "check that is called": "def check(g):\n    for n in (1, 2):\n        assert g(n) == n + 1\ncheck(f)",
    "check of two arguments": "def check(g, cases):\n    for n, m in cases:\n        assert g(n) == m\n"
    "check(f, [(1, 2)])",
    "guard": "if __name__ == '__main__':\n    for n in (1, 2):\n        assert f(n) == n + 1",
    "guard taken apart": "if __name__ == '__main__':\n    assert f(1) == 2",
    "guard and check": "def check(g):\n    for n in (1, 2):\n        assert g(n) == n + 1\n"
    "if __name__ == \"__main__\":\n    check(f)",
    "guard and main": "def main():\n    for n in (1, 2):\n        assert f(n) == n + 1\n"
    "if __name__ == '__main__':\n    main()",
    "test functions": "def test():\n    assert f(1) == 2\ndef test_loop():\n    for n in (1, 2):\n"
    "        assert f(n) == n + 1",
    "the module": "import solution\nfor n in (1, 2):\n    assert solution.f(n) == n + 1",
    "prints much": "for n in range(3000):\n    print('x' * 2000)\nassert [f(1)] == [2]",
    "empty sets": "assert {f(1)} == {2} and set() == set([]) and frozenset() == set()",
}  # fmt: skip
STRINGS = {
    "a helper and its use": [V, "for n in (1, 2): verify(f(n), n + 1)"],
    "a helper that asks": ["def holds(n):\n    assert f(n) == n + 1", "holds(1)", "holds(2)"],
    "a string that asserts and defines": ["def up(n): return n + 1\n"
    "assert f(0) == 1", "for n in (1, 2): assert f(n) == up(n)"],
    "data of a string that asserts": ["xs = [1, 2]\nassert f(1) == 2", "for x in xs: assert f(x) == x + 1"],
    "check and its call": ["def check(g, n):\n    assert g(n) == n + 1", "check(f, 1)"],
}  # fmt: skip
LIBRARIES = {
    "np.testing": "import numpy as np\ndef check(candidate):\n    np.testing.assert_allclose(candidate(1), 2)",
    "from numpy.testing": "from numpy.testing import assert_allclose\nassert_allclose(f(1), 2)",
    "under another name": "from numpy.testing import assert_array_equal as same\nfor n in (1, 2):\n"
    "    same(f(n), n + 1)",
    "np.allclose": "import numpy as np\ndef close(a, b):\n    assert np.allclose(a, b)\nfor n in (1, 2):\n"
    "    close(f(n), n + 1)",
    "pytest.raises": "import pytest\ndef test_it():\n    assert f(1) == 2\n    with pytest.raises(TypeError):\n"
    "        f('x')",
}  # fmt: skip


@pytest.fixture(scope="module")
def box() -> Iterator[Sandbox]:
    imports = [name for name in ("numpy", "pytest") if find_spec(name)]
    with Sandbox(workers=2, imports=imports) as opened:
        yield opened


def judge(box: Sandbox, tests: list[str]) -> None:
    verdict = asserts(box, RIGHT, "f", tests)
    assert verdict.passed, verdict
    for code in WRONG:
        verdict = asserts(box, code, "f", tests)
        assert verdict.passed is False, (code, verdict)


@pytest.mark.parametrize("tests", FORMS.values(), ids=FORMS)
def test_a_right_program_passes_and_a_wrong_one_does_not(box: Sandbox, tests: str) -> None:
    judge(box, [tests])


@pytest.mark.parametrize("tests", STRINGS.values(), ids=STRINGS)
def test_strings_serve_the_next_ones(box: Sandbox, tests: list[str]) -> None:
    judge(box, tests)


@pytest.mark.parametrize("tests", LIBRARIES.values(), ids=LIBRARIES)
def test_libraries_for_tests_are_known(box: Sandbox, tests: str) -> None:
    pytest.importorskip("pytest" if "pytest" in tests else "numpy")
    judge(box, [tests])


NOTHING = [
    "f(1)", "x = f(1)", "f(1) == 2", "print(f(1))", "[f(n) for n in range(3)]", "all(f(n) == n + 1 for n in (1, 2))",
    "for n in (1, 2):\n    f(n)", "try:\n    f(1)\nexcept Exception:\n    pass", "with open('x') as file:\n    f(1)",
    "def verify():\n    assert f(1) == 2", "def verify(a, b):\n    return a == b\nfor n in (1, 2):\n"
    "    verify(f(n), n + 1)",
    "def test_it(n):\n    assert f(n) == 2", "import pytest\n@pytest.mark.parametrize('n', [pytest.param(1)])\n"
    "def test_it(n):\n    assert f(n)",
    "def check(a, b):\n    assert a(1) == 2", "def check(*, a):\n    assert a(1) == 2",
    "class T:\n    def test_it(self):\n        assert f(1) == 2",
    "import unittest\nclass T(unittest.TestCase):\n    def helper(self):\n        self.assertEqual(f(1), 2)",
    "import unittest\nclass T(unittest.TestCase):\n    pass\nunittest.main()\n"
    "f(1)", "if __name__ == '__main__':\n    f(1)",
    "def test_it():\n    f(1)\nif __name__ == '__main__':\n    assert f(1) == 2",
]  # fmt: skip


@pytest.mark.parametrize("tests", NOTHING)
def test_tests_that_assert_nothing_are_refused(tests: str) -> None:
    with pytest.raises(TestsError, match="assert nothing"):
        plan([tests], "f")


@pytest.mark.parametrize(
    "tests", [V + "for n in (1, 2):\n    verify(n, n)", "def check(g):\n    for n in (1,): assert n"]
)
def test_asserts_that_never_ask_are_refused(tests: str) -> None:
    with pytest.raises(TestsError, match="never call 'f'"):
        plan([tests], "f")


def test_a_runner_in_the_source_does_not_end_the_tests_early(box: Sandbox) -> None:
    """`sys.exit(0)` at the end of a script must not keep `check` from being called."""
    tests = ["import sys\ndef check(candidate):\n    for n in (1,):\n        assert candidate(n) == 2\nsys.exit(0)"]
    judge(box, tests)
