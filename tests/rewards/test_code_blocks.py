"""Which block of a completion is the program: what its fence says, how it ends, and what the tests need."""

from __future__ import annotations

import pytest

from rewards.code import find_program
from rewards.code_blocks import Block, blocks_of
from rewards.code_rows import Asserts, Calls, Stdio

F = "def f(n):\n    return n"
READS = "n = int(input())\nprint(2 * n)"
FUNCTION = Calls(function="f", calls=(), wrapped=False)
PROGRAM = Stdio(cases=())
HUMANEVAL = Asserts(entry_point="f", asserts=(), prompt="def f(n):\n")


def fence(code: str, info: str = "python", marks: str = "```") -> str:
    return f"{marks}{info}\n{code}\n{marks}\n"


@pytest.mark.parametrize(
    "info",
    [
        "python", "py", "Python3", "PYTHON", " python", "python main.py", 'python title="main.py"', "python:main.py",
        "{.python .numberLines}", "python3.11", "py3", "ipython", "main.py", "python,editable", "solution.py -- final",
        "",
    ],
)  # fmt: skip
@pytest.mark.parametrize("marks", ["```", "````", "~~~", "~~~~~"])
def test_labels_and_fences(info: str, marks: str) -> None:
    assert find_program("So:\n" + fence(F, info, marks) + "Done.", FUNCTION) == F
    assert find_program("Install:\n" + fence("pip install x", "bash") + fence(F, info, marks), FUNCTION) == F


@pytest.mark.parametrize("info", ["bash", "text", "pycon", "python-repl", "c++", "cpython", "json", "output", "diff"])
def test_other_languages_are_no_program(info: str) -> None:
    assert find_program(fence(F, info), FUNCTION) is None
    assert find_program(fence(F) + fence("f(1)", info), FUNCTION) == F


T = "```"
ENDS = {
    "behind text": f"Here it is: {T}python\n{F}\n{T}",
    "behind text without a label": f"Here it is: {T}\n{F}\n{T}\nThat is all.",
    "in a list": f"1. so:\n   - {T}python\n     def f(n):\n         return n\n     {T}",
    "behind the last statement": f"{T}python\n{F}{T}",
    "behind the last statement, before another": f"{T}python\n{F}{T}\nUse:\n{T}python\nprint(f(1))\n{T}",
    "behind the last statement, before an output": f"{T}python\n{F}{T}\nIt prints:\n{T}\n1\n{T}",
    "of one that has no end": f"{T}python\ndef f(\n\nNo, again:\n{T}python\n{F}\n{T}",
    "of one that has no end, in another language": f"{T}bash\nrun\n\nThen:\n{T}python\n{F}\n{T}",
    "a sentence with a fence": f"I close it with {T}\n{T}python\n{F}\n{T}",
    "a sentence with two fences": f"Put it between {T} and {T}\n{T}python\n{F}\n{T}",
    "code between two fences": f"Not {T}x = 1{T} but {T}python\n{F}\n{T}",
    "markdown around it": f"{T}`markdown\nText\n{T}python\n{F}\n{T}\n{T}`",
    "markdown around it with as many marks": f"{T}markdown\nText\n{T}python\n{F}\n{T}\n{T}",
    "four marks around three": f"{T}`\n{T}python\n{F}\n{T}\n{T}`",
    "a fence in a docstring": f'{T}python\n{F}\n{T}\nor\n~~~python\n{F}\n~~~',
    "the end of the answer": f"<answer>{T}python\n{F}\n</answer>",
    "the end of the answer, behind the last statement": f"<answer>{T}python\n{F}{T}</answer>",
    "line ends of Windows": f"{T}python\ndef f(n):\n    return n\n{T}\r\n",
}  # fmt: skip


@pytest.mark.parametrize("completion", ENDS.values(), ids=ENDS)
def test_where_a_block_begins_and_ends(completion: str) -> None:
    assert find_program(completion, FUNCTION) == F


def test_a_fence_in_a_docstring_does_not_end_the_block() -> None:
    code = f'def f(n):\n    """Say n.\n\n    {T}python\n    >>> f(1)\n    {T}\n    """\n    return n'
    assert find_program(fence(code), FUNCTION) == code
    assert find_program(fence(code) + fence("1", ""), FUNCTION) == code
    marks = f"def f(n):\n    return '''\n{T}\n'''"
    assert find_program(fence(marks, marks="````"), FUNCTION) == marks
    assert find_program(f"{T}python\n    return n\n    {T}", HUMANEVAL) == "def f(n):\n    return n\n"


IN_DOCSTRING = {
    "of the module": f'"""\n{T}\nexample\n{T}\n"""\n{F}',
    "of the function": f'def f(n):\n    """Say n.\n{T}\nf(1)\n{T}\n    """\n    return n',
    "with a label": f'def f(n):\n    """Say n.\n{T}python\n>>> f(1)\n{T}\n    """\n    return n',
    "single quotes": f"x = 1  # it's\n{F}\nTEXT = '''\n{T}\n\"\"\"\n{T}\n'''",
    "twice": f'"""\n{T}\na\n{T}\n"""\n{F}\n\ndef g():\n    r"""\n{T}text\n\\d\n{T}\n    """',
    "one fence": f'{F}\nTEXT = """\n{T}\n"""',
}


@pytest.mark.parametrize("code", IN_DOCSTRING.values(), ids=IN_DOCSTRING)
def test_a_fence_in_an_open_docstring_does_not_end_the_block(code: str) -> None:
    """It was cut there, and what was left could not be compiled."""
    compile(code, "", "exec")
    assert find_program(fence(code), FUNCTION) == code
    assert find_program("So:\n" + fence(code) + "It prints:\n" + fence("1", "") + "Done.", FUNCTION) == code
    assert find_program(fence("x = 1") + fence(code) + "Use it:\n" + fence('"""How."""\nf(1)'), FUNCTION) == code


def test_a_docstring_without_an_end_takes_no_other_block_with_it() -> None:
    broken = 'def f(n):\n    """Say n.\n    return n'
    for good in (F, f'"""Say."""\n{F}', f'"""\nSay.\n"""\n{F}'):
        assert find_program(fence(broken) + "No:\n" + fence(good), FUNCTION) == good
        assert find_program(fence(broken) + "No:\n" + fence(good) + fence("f(1)") + fence("1", ""), FUNCTION) == good
    assert find_program(fence(broken), FUNCTION) == broken
    for quotes in ('x = \'"""\'', 'x = "\\"" + "\'\'\'"', '# """', 'x = """a"""', 'x = r"""\\"""'):
        assert find_program(fence(f"{F}\n{quotes}") + fence("f(1)") + fence("1", ""), FUNCTION) == f"{F}\n{quotes}"


def test_what_is_cut_off_is_no_program() -> None:
    assert find_program(f"{T}python\n{F}", FUNCTION) is None
    assert find_program(f"{fence(F)}{T}python\ndef f(n):\n    return", FUNCTION) == F
    assert find_program(f"{T}`python\n{F}\n{T}", FUNCTION) is None


DEMOS = {
    "a call": (FUNCTION, F, "print(f(3))"),
    "an assert": (FUNCTION, F, "assert f(3) == 3"),
    "an import of it": (FUNCTION, F, "from solution import f\nf(3)"),
    "a comparison": (FUNCTION, F, "f == g"),
    "another function": (FUNCTION, F, "def g(n):\n    return f(n)"),
    "a longer name": (FUNCTION, F, "def f_fast(n):\n    return n\nf2 = 1"),
    "of a class": (FUNCTION, "class Solution:\n    def f(self, n):\n        return n", "Solution().f(3)"),
    "of a class that is named": (Asserts(entry_point="Stack", asserts=()), "class Stack:\n    pass", "s = Stack()"),
    "of a lambda": (FUNCTION, "f = lambda n: n", "f(3)"),
    "of a coroutine": (FUNCTION, "async def f(n):\n    return n", "await f(3)"),
    "of a body": (HUMANEVAL, "def f(n):\n    return n", "f(3)"),
    "of input()": (PROGRAM, READS, "print(solve(3))"),
    "of input in iter()": (PROGRAM, "for line in iter(input, ''):\n    print(line)", "solve(3)"),
    "of a main that is given another stdin": (
        PROGRAM, "def main():\n    print(input())\nmain()", "import io, sys\nsys.stdin = io.StringIO('3')\nmain()"),
    "of sys.stdin": (PROGRAM, "import sys\nprint(sys.stdin.read())", "solve(3)  # not input()"),
    "of open(0)": (PROGRAM, "print(open(0).read())", "solve(3)"),
    "of /dev/stdin": (PROGRAM, "print(open('/dev/stdin').read())", "solve(3)"),
    "of fileinput": (PROGRAM, "import fileinput\nfor line in fileinput.input(): print(line)", "solve(3)"),
    "of one line that reads": (PROGRAM, READS, "a, b = map(int, input().split())"),
    "of one line that reads and does not print yet": (PROGRAM, READS, "n = int(input())  # then print(n)"),
    "of one line that writes": (PROGRAM, READS, "print(2 * n)"),
    "of a line, from sys.stdout": (
        PROGRAM, "import sys\nfor line in sys.stdin:\n    sys.stdout.write(line)", "data = sys.stdin.read()"),
    "of a line, from os.write": (PROGRAM, "import os\nos.write(1, os.read(0, 99))", "data = os.read(0, 99)"),
    "of os.read": (PROGRAM, "import os\nprint(os.read(0, 99))", "solve(3)"),
}  # fmt: skip


@pytest.mark.parametrize(("tests", "code", "demo"), DEMOS.values(), ids=DEMOS)
def test_a_demonstration_that_comes_last_is_not_the_program(
    tests: Stdio | Calls | Asserts, code: str, demo: str
) -> None:
    assert find_program(fence(code) + "Use it:\n" + fence(demo), tests) == code
    assert find_program(fence(code, "") + "Use it:\n" + fence(demo), tests) == code
    assert find_program(fence(code, "") + "Use it:\n" + fence(demo, ""), tests) == code
    assert find_program("A first idea:\n" + fence(code + "\nold = 1") + fence(code) + fence(demo), tests) == code
    assert find_program(f"<answer>{fence(code)}\n{fence(demo)}</answer>", tests) == code


def test_a_program_that_only_reads_comes_before_one_that_does_not() -> None:
    reads = "n = int(input())\nanswer(n)"
    assert find_program(fence("x = 1") + fence(reads) + fence("print(1)"), PROGRAM) == reads
    assert find_program(fence(reads) + fence("input()"), PROGRAM) == "input()"
    assert find_program(fence(reads) + fence(READS, ""), PROGRAM) == READS
    first, last = READS + "  # first", READS + "  # last"
    assert find_program(fence(first) + fence(last) + "Key line: " + fence("n = int(input())"), PROGRAM) == last


def test_without_one_that_is_meant_the_last_block_counts() -> None:
    for tests in (FUNCTION, PROGRAM):
        assert find_program(fence("x = 1") + fence("y = 2"), tests) == "y = 2"
        assert find_program(fence("x = 1") + fence("y = 2", ""), tests) == "x = 1"
        assert find_program(fence("x = 1") + fence("\n"), tests) == "x = 1"
    assert find_program(fence(READS) + fence("6", ""), FUNCTION) == READS


def test_blocks_have_labels() -> None:
    text = fence("a") + fence("b", "Bash -x") + fence("c", "", "~~~")
    assert blocks_of(text) == [Block("python", "a"), Block("bash", "b"), Block("", "c")]
    assert blocks_of(f"{T}python\na") == [] and blocks_of(f"{T}python\na", is_whole=True) == [Block("python", "a")]


@pytest.mark.slow
@pytest.mark.parametrize(
    "text",
    [
        "a ```python\n  x```\n" * 10_000, "```python\n        ```\n" * 10_000, "```x`" * 40_000, "~~~```" * 30_000,
        "a ```python\n" * 20_000 + "        ```\n" * 10_000, "````markdown\n" + "```python\n" * 20_000,
        "input(#" * 30_000, "def f" * 40_000, " " * 200_000 + "def f", "\n".join([" " * 400] * 500),
        "".join("`" * n + "\n" for n in range(3, 600)),
        '"""\n```\n' * 20_001, "```python\n'''\n```\n" * 20_001, '\\"' * 100_000 + '"""', '"""' + "'\\" * 100_000,
        "\"'" * 90_000,
    ],
    ids=range(16),
)  # fmt: skip
def test_hostile_texts_are_read_in_linear_time(text: str) -> None:
    for tests in (FUNCTION, PROGRAM, HUMANEVAL):
        find_program(text, tests)  # the timeout of the suite is the limit for anything quadratic
        find_program(f"{T}python\n{text}\n{T}", tests)
