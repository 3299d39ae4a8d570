"""Limits follow what is expected; and what a function may assume, however deep it recurs."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest

from sandbox import Limits, Sandbox
from sandbox.judge import TestsError, asserts, calls, stdio

pytestmark = pytest.mark.slow

LIMITS = Limits(wall=20.0, cpu=20.0)
LONG = "x" * (3 << 20)


@pytest.fixture(scope="module")
def box() -> Iterator[Sandbox]:
    with Sandbox(workers=1, limits=LIMITS) as opened:
        yield opened


# Output


@pytest.mark.parametrize(
    ("code", "expected", "status"),
    [
        ("print('x' * (3 << 20))", LONG, "correct"),
        ("print('x' * (12 << 20))", LONG * 4, "correct"),
        ("for n in range(200_000): print(n)", "\n".join(map(str, range(200_000))), "correct"),
        ("print('\\u00e9' * (1 << 20))", "\u00e9" * (1 << 20), "correct"),
        ("import sys\nprint('x' * (3 << 20))\nprint('y' * 500_000, file=sys.stderr)", LONG, "correct"),
        ("print('x' * (3 << 20) + 'y')", LONG, "wrong"),
        ("print('x' * (5 << 20))", LONG, "output_limit"),
        ("print('x' * (2 << 20))", "x", "output_limit"),
    ],
)
def test_a_program_may_print_what_is_expected_and_a_margin(box: Sandbox, code: str, expected: str, status: str) -> None:
    assert stdio(box, code, [{"stdin": "", "stdout": expected}]).status == status


def test_each_case_has_its_own_limit_and_the_margin_is_a_setting(box: Sandbox) -> None:
    code = "print('x' * (int(input()) << 20))"
    cases = [{"stdin": "3", "stdout": LONG}, {"stdin": "3", "stdout": "x"}]
    verdict = stdio(box, code, cases)
    assert (verdict.status, verdict.num_passed) == ("output_limit", 1)
    assert stdio(box, code, cases, replace(LIMITS, output_kb=4096)).status == "wrong"
    assert stdio(box, code, cases[:1], replace(LIMITS, output_kb=1)).status == "correct"


@pytest.mark.parametrize(
    ("body", "expected", "status"),
    [
        ("return 'x' * (3 << 20)", LONG, "correct"),
        ("return [0] * 600_000", [0] * 600_000, "correct"),
        ("return list(range(300_000))", list(range(300_000)), "correct"),
        ("return {n: (n,) for n in range(50_000)}", {n: [n] for n in range(50_000)}, "correct"),
        ("return list(range(300_001))", list(range(300_000)), "wrong"),
        ("return 'x' * (5 << 20)", LONG, "output_limit"),
        ("return 'x' * (2 << 20)", "x", "output_limit"),
        ("return list(range(3_000_000))", [1], "unsupported_value"),
    ],
)
def test_a_function_may_return_what_is_expected_and_a_margin(
    box: Sandbox, body: str, expected: object, status: str
) -> None:
    assert calls(box, f"def f():\n    {body}", "f", [{"args": [], "expected": expected}]).status == status


def test_what_no_program_can_return_is_refused(box: Sandbox) -> None:
    with pytest.raises(TestsError, match="what no program can answer"):
        calls(box, "def f(): return 1", "f", [{"args": [], "expected": "x" * (65 << 20)}])


@pytest.mark.parametrize(
    "test",
    [
        "assert f(2 * 10 ** 6) == 'x' * 2 * 10 ** 6",
        "assert f(2_000_000) in ('x' * 2_000_000, 'y' * 2_000_000)",
        "def check(candidate):\n    for n in (2_000_000,):\n        assert candidate(n) == 'x' * n",
        f"for n in [1_300_000]:\n    assert f(n) == {'x' * 1_300_000!r}",
        "assert f(1) == 'x' and f(2_500_000) == 'x' * 2_500_000",
    ],
    ids=range(5),
)
def test_asserts_may_expect_long_values(box: Sandbox, test: str) -> None:
    assert asserts(box, "def f(n): return 'x' * n", "f", [test]).status == "correct"
    assert asserts(box, "def f(n): return 'x' * (n - 1) + 'y'", "f", [test]).status == "wrong"


def test_a_test_may_pass_on_long_arguments(box: Sandbox) -> None:
    test = "for n in (10, 1_000_000):\n    assert f(list(range(n))) == n"
    assert asserts(box, "def f(xs): return len(xs)", "f", [test]).passed


# Time


def test_a_run_has_a_time_limit_of_its_own(box: Sandbox) -> None:
    code = "import time\nn = float(input())\ntime.sleep(n)\nprint(n)"
    cases = [{"stdin": text, "stdout": text} for text in ("0.0", "60.0", "0.0")]
    verdict = stdio(box, code, cases, case_seconds=1.5, fail_fast=False)
    assert (verdict.status, verdict.num_passed) == ("timeout", 2) and "case 1: timeout after" in verdict.detail
    assert stdio(box, code, cases[:1], replace(LIMITS, wall=10.0), case_seconds=1000.0).passed


def test_a_call_has_a_time_limit_of_its_own_without_the_start_of_the_program(box: Sandbox) -> None:
    code = "import time\ntime.sleep(1.2)\ndef f(n):\n    time.sleep(n)\n    return n"
    asked = [{"args": [n], "expected": n} for n in (0, 0, 60)]
    verdict = calls(box, code, "f", asked, case_seconds=1.0, fail_fast=False)
    assert (verdict.status, verdict.num_passed) == ("timeout", 2), verdict


# What a function may assume

DEEP = {
    "plain": "def f(n): return n and 1 + f(n - 1)",
    "lru_cache": "@lru_cache(None)\ndef f(n): return n and 1 + f(n - 1)",
    "method": "class S:\n    @cache\n    def go(self, n): return n and 1 + self.go(n - 1)\nf = S().go",
    "sum": "def f(n): return n and 1 + sum(f(k) for k in (n - 1,))",
    "sorted": "def f(n): return n and sorted([n - 1], key=f)[0] + 1",
    "map": "def f(n): return n and 1 + max(map(f, (n - 1,)))",
    "wrapper": "def wrap(g):\n    def inner(*a): return g(*a)\n    return inner\n@wrap\n"
    "def f(n): return n and 1 + f(n - 1)",
    "operator": "class N:\n    def __init__(self, n): self.n = n\n"
    "    def __index__(self): return self.n and 1 + index(N(self.n - 1))\n"
    "def f(n): return index(N(n))",
}  # fmt: skip


@pytest.mark.parametrize("code", DEEP.values(), ids=DEEP)
def test_deep_recursion_meets_its_limit_and_not_the_end_of_the_stack(box: Sandbox, code: str) -> None:
    depth = 45_000 if code == DEEP["plain"] else 15_000
    assert calls(box, code, "f", [{"args": [depth], "expected": depth}]).passed
    assert asserts(box, code, "f", [f"assert f({depth}) == {depth}"]).passed
    endless = calls(box, code, "f", [{"args": [-1], "expected": 0}])
    assert (endless.status, "RecursionError" in endless.detail) == ("wrong", True), endless


ASSUMED = [
    ("def f(a: List[int], b: Optional[Dict[str, Tuple]] = None) -> Union[int, Any]: return a[0]", 1),
    ("def f(a: 'List'): return ''.join(sorted(ascii_lowercase))[:a[0]]", "a"),
    ("def f(a): return [string.digits[1], re.sub('a', 'b', 'aa'), findall('a+', 'baa')]", ["1", "bb", ["aa"]]),
    ("def f(a): return [itemgetter(0)(a), operator.mul(2, 3), reduce(mul, [2, 3, 4])]", [1, 6, 24]),
    ("def f(a): return [mean([1, 3]), statistics.median([1, 2, 9])]", [2, 2]),
    ("def f(a): return json.loads(dumps({'a': a}))", {"a": [1]}),
    ("def f(a): return [copy.copy(a), deepcopy(a)]", [[1], [1]]),
    ("def f(a): return [random.randint(3, 3), randint(4, 4), choice([5])]", [3, 4, 5]),
    ("def f(a): return io.StringIO('x\\ny').read() + StringIO('z').read()", "x\nyz"),
    ("def f(a): return [defaultdict(int)[1], Counter('aab')['a'], list(deque(a)), OrderedDict()]", [0, 2, [1], {}]),
    ("def f(a): heapify(a); return [heappop(a), heapq.nsmallest(1, [3, 2])]", [1, [2]]),
    ("def f(a): return [bisect_left([1, 3], 2), bisect.bisect([1, 3], 2)]", [1, 1]),
    ("def f(a): return [sqrt(4), gcd(4, 6), math.comb(4, 2), inf > 1, pow(2, 10, 7)]", [2, 2, 6, True, 2]),
    ("def f(a): return [list(accumulate([1, 2])), len(list(combinations('abc', 2)))]", [[1, 3], 3]),
    ("def f(a): return [datetime.date(2024, 1, 2).day, str(timedelta(days=1)), fractions.Fraction(1, 2) == 0.5]",
     [2, "1 day, 0:00:00", True]),
    ("class f:\n"
    "    def __new__(cls, a): return cmp_to_key(lambda x, y: x - y)(1) < cmp_to_key(lambda x, y: x - y)(2)", True),
    ("from __future__ import annotations\ndef f(a: List[Undefined]): return sys.maxsize > maxsize - 1", True),
    ("def sub(a, b): return 'mine'\ndef f(a): return [sub(1, 2), count(3).__next__()]", ["mine", 3]),
]  # fmt: skip


@pytest.mark.parametrize(("code", "expected"), ASSUMED, ids=[code[:50] for code, _ in ASSUMED])
def test_the_usual_modules_are_there_without_an_import(box: Sandbox, code: str, expected: object) -> None:
    verdict = calls(box, code, "f", [{"args": [[1]], "expected": expected}])
    assert verdict.passed, verdict
    assert asserts(box, code, "f", [f"assert f([1]) == {expected!r}"]).passed


@pytest.mark.parametrize("name", ["gcd", "sqrt", "mean", "accumulate", "sub", "heappop", "copy"])
def test_an_empty_program_does_not_have_the_function(box: Sandbox, name: str) -> None:
    """What may be assumed is no answer: `math.gcd` must not pass for a `gcd` that nobody wrote."""
    for code in ("", "x = 1"):
        assert calls(box, code, name, [{"args": [4, 6], "expected": 2}]).passed is False
        for test in (f"assert {name}(4, 6) == 2", f"assert {name}(*[4, 6]) == 2", f"assert {name}(int('4'), abs) == 2"):
            verdict = asserts(box, code, name, [test])
            assert verdict.passed is False and "is not defined" in verdict.detail, verdict
    assert calls(box, "from math import gcd", "gcd", [{"args": [4, 6], "expected": 2}]).passed


def test_whole_programs_assume_nothing(box: Sandbox) -> None:
    assert stdio(box, "print(sqrt(4))", [{"stdin": "", "stdout": "2.0"}]).status == "exited"
    assert stdio(box, "import sys; print(sys.getrecursionlimit())", [{"stdin": "", "stdout": "1000"}]).passed
