"""Judges a program by the tests of a benchmark, such as HumanEval's `check(candidate)` or MBPP's lines of `assert`.

An assert with calls of the candidate inside a small expression is taken apart: the candidate gets the arguments, and
what it returns is put into the expression here. Any other test (loops, random inputs, helper functions) runs as it is
in a second sandboxed process, the tester, where the function is a proxy: arguments and values pass through here as
data. So the candidate never shares a process with a test, and never sees what it expects.
"""

from __future__ import annotations

import ast
import time
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from dataclasses import replace
from functools import partial
from typing import Any

from sandbox import wire
from sandbox.box import Sandbox
from sandbox.calls import no_name
from sandbox.judge.cases import (
    FAILURES,
    Case,
    CaseFailed,
    Raised,
    TestsError,
    Unjudged,
    Verdict,
    ask,
    ended,
    in_session,
    longest,
    shown,
    with_room,
)
from sandbox.judge.expressions import can_evaluate, constant, constants, evaluate, truth_alone
from sandbox.judge.plan import Plan, Split, Whole, plan
from sandbox.result import JobEnded, Limits
from sandbox.session import Session

TESTER_BYTES = 2 << 20
"""How long an answer to the tester may be beyond `output_kb`, for what is expected is worked out there."""


def asserts(
    box: Sandbox,
    code: str,
    entry_point: str,
    asserts: Sequence[str],
    limits: Limits | None = None,
    *,
    fail_fast: bool = True,
) -> Verdict:
    """Runs trusted test source on the function `entry_point` of a program.

    The strings are read as one test module, one after another: imports and helpers of one serve the next. A function
    `check` is called with the candidate. A name that no test defines is the candidate's. Each assert that can be taken
    apart is a case, each other string is one. `limits.wall` seconds bound all of it.
    Raises TestsError if a string is no Python, if nothing in them can fail, or if they never call the candidate.
    """
    tests = plan(asserts, entry_point)
    limits = with_room(limits or box.limits, _longest_answer(tests, entry_point))
    with ExitStack() as stack:
        run = _Run(box, entry_point, limits, stack)
        with_tester = any(isinstance(case, Whole) for case in tests.cases)
        return in_session(box, code, run.cases(tests), limits, fail_fast, with_tester=with_tester)


def _longest_answer(tests: Plan, entry_point: str) -> int:
    """Returns the bytes that an answer may need, as far as the tests say it without being run."""
    values: list[Any] = []
    for case in tests.cases:
        for part in constants(case.test, entry_point) if isinstance(case, Split) else ():
            with suppress(*FAILURES):
                values.append(constant(part))
    has_whole = any(isinstance(case, Whole) for case in tests.cases)
    return max(longest(values), TESTER_BYTES if has_whole else 0)


class _Run:
    """One submission, with its cases and, from the first test that needs it, the tester."""

    def __init__(self, box: Sandbox, entry_point: str, limits: Limits, stack: ExitStack) -> None:
        self.box, self.entry_point, self.limits, self.stack = box, entry_point, limits, stack
        self.tester: Session | None = None
        self.started = 0.0

    def cases(self, tests: Plan) -> list[Case]:
        cases = [partial(self._split if isinstance(case, Split) else self._whole, case) for case in tests.cases]
        return [partial(self._first, tests.inputs, cases[0]), *cases[1:]]

    def _first(self, inputs: str, case: Case, session: Session) -> None:
        self.started, self.tester = time.monotonic(), None  # not earlier: waiting for a worker does not count
        if inputs:
            ask(session, "exec", inputs)
        case(session)

    def _split(self, case: Split, session: Session) -> None:
        try:
            holds = evaluate(truth_alone(case.test, self.entry_point), self.entry_point, partial(self._ask, session))
        except TestsError:
            raise
        except FAILURES as error:
            self._check(case.test)
            raise CaseFailed(
                "wrong", shown(f"{ast.unparse(case.test)}: {type(error).__name__}: {error}", str)
            ) from None
        if not holds:
            raise CaseFailed("wrong", shown(f"not {ast.unparse(case.test)}", str))

    def _check(self, test: ast.expr) -> None:
        """Raises Unjudged if a part of the test fails that has nothing to do with the candidate: `f(1) == 1 / 0`."""
        for part in constants(test, self.entry_point):
            try:
                constant(part)
            except FAILURES as error:
                text = f"the test fails by itself: {ast.unparse(part)}: {type(error).__name__}: {error}"
                raise Unjudged("untestable", shown(text, str)) from None

    def _ask(self, session: Session, call: ast.Call, through: str) -> Any:
        before = ("through", through) if through else ()
        if all(can_evaluate(value, "") for value in [*call.args, *(keyword.value for keyword in call.keywords)]):
            args = [constant(arg) for arg in call.args]
            kwargs = {str(keyword.arg): constant(keyword.value) for keyword in call.keywords}
            return ask(session, *before, "call", self.entry_point, None, args, kwargs)
        # Arguments are not secret: those that are not plain data are built where the candidate's classes are.
        return ask(session, *before, "eval", self.entry_point, ast.unparse(call))

    def _whole(self, case: Whole, session: Session) -> None:
        refused: CaseFailed | None = None
        has_asked = False
        unknown: str | None = None
        request = ("test", case.source, case.runner, self.entry_point, case.imports, case.remotes, case.as_script)
        try:
            message = wire.dumps(request)
        except wire.WireError as error:
            raise TestsError(f"a test cannot be put to the tester: {error}") from None
        answer = self._tell(message, has_asked)
        while answer[0] == "remote":
            has_asked = True
            function, args, kwargs = answer[1:]
            try:
                found = ask(session, "apply", function, args, kwargs, max_bytes=wire.ANSWER_BYTES)
                reply = wire.dumps(("value", *_applied(found)), wire.ANSWER_BYTES)
            except Raised as error:  # which the test may expect
                if function != self.entry_point and error.name == "NameError" and error.text == no_name(function):
                    unknown = function
                reply = wire.dumps(("raised", error.name, error.text))
            except (CaseFailed, TestsError, wire.WireError) as error:  # what it passes on may be the candidate's data
                reply = wire.dumps(("raised", "TypeError", "no plain data"))
                refused = error if isinstance(error, CaseFailed) else CaseFailed("unsupported_value", str(error))
            answer = self._tell(reply, has_asked)
        match answer:
            case ("untestable", str(text)):
                raise Unjudged("untestable", text)
            case _ if refused:
                raise refused
            case ("unsupported", str(text)):
                raise CaseFailed("unsupported_value", text)
            case ("raised", "NameError", str(text)) if unknown and text == no_name(unknown):
                raise Unjudged(
                    "untestable", f"the test uses {unknown!r}, which neither the tests nor the program define"
                )
            case ("raised", str(name), str(text)):
                raise Raised(name, text)
            case ("value", _):
                return
        raise CaseFailed("wrong", shown(answer))

    def _tell(self, message: bytes, has_asked: bool) -> Any:
        """Sends the tester a message, which starts it the first time, and returns its answer."""
        try:
            if self.tester is None:
                left = max(self.limits.wall - (time.monotonic() - self.started), 0.1)
                # A test is trusted, so the arguments that it passes on may be as long as anything that can cross.
                limits = replace(self.limits, wall=left, output_kb=wire.ANSWER_BYTES // 1024)
                self.tester = self.stack.enter_context(self.box.session("", limits=limits, second=True))
            return wire.loads(self.tester.exchange(message), wire.ANSWER_BYTES)
        except JobEnded as end:
            failure = ended(end.result)
            if failure.status == "infra":
                raise Unjudged("infra", failure.detail) from None
            # A test that ends before it calls the candidate ends for every program. Only its time may be short because
            # the candidate took it in an earlier test.
            if not has_asked and failure.status != "timeout":
                raise Unjudged(
                    "untestable", f"the test ended before it called the candidate: {failure.detail}"
                ) from None
            raise CaseFailed(failure.status, f"the test ended: {failure.detail}") from None


def _applied(answer: Any) -> tuple[Any, ...]:
    """Returns the value and, of a function that returned None, its arguments as they are then."""
    match answer:
        case (_,) | (None, tuple() | list(), dict()) if type(answer) is tuple:
            return answer
    raise CaseFailed("wrong", "an answer that is none")
