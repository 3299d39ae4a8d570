"""The reward for answers that are programs, which are run on the tests of the row in a sandbox, and judged outside.

    rewards.load("code")([Sample("...", "<answer>\ndef double(x): return 2 * x\n</answer>", meta={"test_list": [...]})])

The program is a ```python block of the answer (`find_program` says which) or, if there is none, all of an `<answer>`;
text outside of both is a program only where it continues the source of the task. `rewards.extract` says where an answer
stands. What is not covered: other languages.
"""

from __future__ import annotations

import functools
import operator
import os
import re
import textwrap
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Literal, get_args

from rewards.base import Reward, RewardError, Sample, thought_is_open
from rewards.code_blocks import answers_input, blocks_of, choose, defines, reads_input
from rewards.code_rows import Asserts, Calls, Stdio, read_tests
from rewards.extract import extract_answer, thought_end
from sandbox import Limits, Sandbox, SandboxError, levels
from sandbox.judge import TestsError, Verdict, asserts, calls, close, same_line, stdio
from sandbox.paths import import_paths

Score = Literal["all", "fraction"]
Compare = Literal["numbers", "exact"]
UNREADABLE = (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError)
"""What the reading of a row may raise, for a row can hold anything."""


class CodeVerifier:
    """Gives 1 if the completion's program passes the row's tests and 0 if not; None only if nothing can be said.

    `score="fraction"` gives the share of cases that pass. The reasons are correct, wrong, no_code, timeout, memory,
    crashed, exited, output_limit, compile_error and unsupported_value; without a value they are no_tests (there are
    none, or none that can be read), untestable (a test that fails whatever the program does) and infra.

    `logs` hold the detail, the number of cases, and how many passed, where "all" stops at the first that does not.
    """

    independent = True

    def __init__(
        self,
        *,
        level: str = "auto",
        workers: int = 2,
        imports: Sequence[str] = (),
        wall: float = 10.0,
        memory_mb: int = 1024,
        score: Score = "all",
        compare: Compare = "numbers",
        output_kb: int = 1024,
        url: str = "",
        allow_unsafe: bool = False,
    ) -> None:
        """Checks the settings; raises RewardError.

        All cases of one program together have `wall` seconds, and each has the row's own time limit. With
        `compare="numbers"` a float that is printed or returned need only be nearly what is expected, and printed lines
        are compared word by word, as the judges of contests do; with "exact" both have to be what is expected. A
        program may print `output_kb` beyond what is expected.

        `level`, `workers`, `imports`, `url` and `allow_unsafe` go to `sandbox.Sandbox`, which starts at the first call.
        Level `remote` judges rows with stdin and stdout; for other rows a call raises SandboxError.
        """
        if level not in ("auto", *levels.LEVELS):
            raise RewardError(f"reward 'code': level={level!r}; it is auto or one of {', '.join(levels.LEVELS)}")
        if bool(url) != (level == "remote"):
            raise RewardError(
                f"reward 'code': level={level!r}, url={url!r}; level 'remote' needs a url, no other has one"
            )
        _check_imports(imports, level)
        if score not in get_args(Score):
            raise RewardError(f"reward 'code': score={score!r}; it is one of {', '.join(get_args(Score))}")
        if compare not in get_args(Compare):
            raise RewardError(f"reward 'code': compare={compare!r}; it is one of {', '.join(get_args(Compare))}")
        if isinstance(workers, bool) or not isinstance(workers, int) or not 1 <= workers <= 256:
            raise RewardError(f"reward 'code': workers={workers!r}; give a number of processes from 1 to 256")
        try:
            self.limits = Limits(wall=wall, cpu=wall, memory_mb=memory_mb, output_kb=output_kb)
        except ValueError as error:
            raise RewardError(f"reward 'code': {error}") from None
        self.longest_s = wall
        self.level, self.workers, self.imports, self.score = level, workers, tuple(imports), score
        self.compare, self.url, self.allow_unsafe = compare, url, allow_unsafe
        self._forget()

    def __call__(self, samples: Sequence[Sample]) -> list[Reward]:
        """Judges the samples, `workers` at a time, and returns their rewards in order.

        Raises SandboxError if no sandbox can be had.
        """
        box = self._open()
        with ThreadPoolExecutor(self.workers) as threads:
            return list(threads.map(functools.partial(self._reward, box), samples))

    def check_samples(self, samples: Sequence[Sample]) -> None:
        """Raises RewardError if no row has tests; if only some have none, these get no verdict."""
        if samples and not any(_has_tests(sample) for sample in samples):
            raise RewardError(
                f"reward 'code': none of {len(samples)} rows has tests (columns of the first: "
                f"{', '.join(map(str, samples[0].meta)) or 'none'}); it reads test_list, test, tests, input_output or "
                "the columns that rewards/code_rows.py names"
            )

    def close(self) -> None:
        """Ends the sandbox; the next call starts another."""
        if self._owner != os.getpid():
            self._forget()
        with self._lock:
            box, self._box = self._box, None
        if box is not None:
            box.close()

    def __reduce__(self) -> tuple[object, ...]:
        """Pickles the settings; the copy starts a sandbox of its own."""
        settings = {
            "level": self.level,
            "workers": self.workers,
            "imports": self.imports,
            "wall": self.limits.wall,
            "memory_mb": self.limits.memory_mb,
            "score": self.score,
            "compare": self.compare,
            "output_kb": self.limits.output_kb,
            "url": self.url,
            "allow_unsafe": self.allow_unsafe,
        }
        return functools.partial(CodeVerifier, **settings), ()

    def _forget(self) -> None:
        """Starts without a sandbox; after a fork the one at hand is the parent's, whose threads may hold its lock."""
        self._owner = os.getpid()
        self._lock = threading.Lock()
        self._box: Sandbox | None = None

    def _open(self) -> Sandbox:
        if self._owner != os.getpid():
            self._forget()
        with self._lock:
            if self._box is None:
                self._box = Sandbox(
                    level=self.level,
                    workers=self.workers,
                    imports=self.imports,
                    limits=self.limits,
                    url=self.url,
                    allow_unsafe=self.allow_unsafe,
                )
            return self._box

    def _reward(self, box: Sandbox, sample: Sample) -> Reward:
        try:
            tests = read_tests(sample.meta)
        except UNREADABLE as error:
            return Reward(None, "no_tests", logs={"detail": f"{type(error).__name__}: {error}"})
        if tests is None:
            return Reward(None, "no_tests", logs={"detail": f"columns: {', '.join(map(str, sample.meta)) or 'none'}"})
        code = find_program(sample.completion, tests, thought_is_open(sample.prompt))
        if code is None:
            return Reward(0.0, "no_code")
        try:
            verdict = self._judge(box, code, tests)
        except TestsError as error:  # they assert nothing, or cannot be parsed
            return Reward(None, "no_tests", logs={"detail": str(error)})
        logs = {"detail": verdict.detail, "num_passed": verdict.num_passed, "num_cases": verdict.num_cases}
        if verdict.passed is None:
            return Reward(None, verdict.status, logs=logs)
        share = verdict.num_passed / verdict.num_cases if self.score == "fraction" else float(verdict.passed)
        return Reward(share, verdict.status, logs=logs)

    def _judge(self, box: Sandbox, code: str, tests: Stdio | Calls | Asserts) -> Verdict:
        fail_fast = self.score == "all"
        is_exact = self.compare == "exact"
        match tests:
            case Stdio(cases=cases, case_seconds=seconds):
                equal = operator.eq if is_exact else same_line
                return stdio(box, code, cases, equal=equal, case_seconds=seconds, fail_fast=fail_fast)
            case Calls(function=function, calls=asked, case_seconds=seconds):
                in_class = not _definition(code, function) and re.search(r"^class Solution\b", code, re.M)
                owner = "Solution" if in_class else None
                equal = functools.partial(tests.equal, same=operator.eq if is_exact else close)
                return calls(box, code, function, asked, owner, equal=equal, case_seconds=seconds, fail_fast=fail_fast)
            case Asserts(entry_point=entry_point, asserts=source):
                return asserts(box, code, entry_point, source, fail_fast=fail_fast)


def _check_imports(imports: Sequence[str], level: str) -> None:
    if not isinstance(imports, list | tuple):
        raise RewardError(f"reward 'code': imports={imports!r}; give a list of module names, such as ['numpy']")
    for name in imports:
        if not isinstance(name, str) or not all(part.isidentifier() for part in name.split(".")):
            raise RewardError(f"reward 'code': imports={list(imports)!r}: {name!r} is not the name of a module")
    if imports and level == "remote":
        raise RewardError(
            f"reward 'code': imports={list(imports)!r}: level 'remote' has what its service has; leave it out"
        )
    try:
        import_paths(imports)
    except SandboxError as error:
        raise RewardError(f"reward 'code': {error}") from None


def _has_tests(sample: Sample) -> bool:
    try:
        return read_tests(sample.meta) is not None
    except UNREADABLE:
        return False


def find_program(completion: str, tests: Stdio | Calls | Asserts, thinking: bool = False) -> str | None:
    """Returns the program in a completion, with what stands before it in the task; None if there is none.

    It is looked for after the last `</think>`, in the `<answer>` if there is one. Of several ```python blocks the last
    counts that defines the function which the tests name or, for a task with stdin, that reads it and prints, or else
    that reads it; if none does, the last one. Without a block all of the `<answer>` is the program and, where the task
    is source to be continued, also a bare continuation. `thinking` says that the prompt ended in a thought.
    """
    begin = thought_end(completion, thinking)
    if begin is None:
        return None
    # Models show how a function is called, or what it prints, in a block after the program. So the last block is a poor
    # guess, and the tests say what the right one must have.
    answer = extract_answer(completion, thinking)
    text = completion[begin:] if answer is None else answer
    code = choose(blocks_of(text, is_whole=answer is not None), *_is_meant(tests))
    code = answer if code is None else code
    if isinstance(tests, Asserts) and tests.prompt:
        if code is None and (_is_indented(text) or _definition(text, tests.entry_point)):
            code = text
        code = code and _continued(tests.prompt, tests.entry_point, code)
    return code if code and code.strip() else None


def _is_meant(tests: Stdio | Calls | Asserts) -> Sequence[Callable[[str], bool]]:
    """Tells the block of the program from examples of how it is called, or of what it prints."""
    match tests:
        case Stdio():
            return answers_input, reads_input
        case Calls(function=name) | Asserts(entry_point=name):
            return (defines(name),)


def _continued(prompt: str, entry_point: str, code: str) -> str:
    """Returns the task's source with `code` as the function's body, or in place of the function."""
    if _imports_future(code):  # which must come first; a program that does so is a whole one
        return code
    if not _definition(code, entry_point):
        return f"{prompt.rstrip()}\n{code if _is_indented(code) else textwrap.indent(code, '    ')}"
    started = _definition(prompt, entry_point)
    return (prompt[: started.start()] if started else f"{prompt.rstrip()}\n") + code


def _definition(code: str, function: str) -> re.Match[str] | None:
    return re.search(rf"^(?:async )?def {re.escape(function)}\b", code, re.M)


def _imports_future(code: str) -> bool:
    return re.search(r"^from __future__\b", code, re.M) is not None


def _is_indented(text: str) -> bool:
    return text.strip("\n")[:1] in (" ", "\t") and bool(text.strip())
