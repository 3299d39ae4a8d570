"""Judges a program case by case, by what it prints or by what its function returns."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from sandbox import wire
from sandbox.box import Sandbox
from sandbox.judge.equality import equal as equal_values
from sandbox.result import ExecResult, JobEnded, Limits, SandboxError, SandboxUnusable
from sandbox.session import Session

MAX_SHOWN = 200
"""How many characters of a value a detail shows."""
FAILURES = (ArithmeticError, LookupError, RecursionError, TypeError, ValueError)
"""What a comparison with the candidate's value can raise; the case fails then, as under plain Python."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a submission is worth.

    Example: `Verdict(status="wrong", passed=False, detail="case 2: got '4', not '5'", num_passed=2, num_cases=3)`
    """

    status: str
    """correct, wrong, unsupported_value, or what ended the process: timeout, memory, output_limit, crashed (a signal),
    exited, compile_error; infra (the sandbox failed), untestable (the test cannot be run)."""
    passed: bool | None
    """None if nothing can be said of the program, because the sandbox or the test itself failed."""
    detail: str = ""
    """What is known of the first case that failed."""
    num_passed: int = 0
    """How many cases passed; with `fail_fast` only those before the first that failed."""
    num_cases: int = 0


class TestsError(ValueError):
    """The tests cannot be run, or no program could fail them, so no program is judged by them."""

    __test__ = False  # pytest takes a name that starts with Test for a test


class CaseFailed(Exception):
    """This case does not pass; the next ones still may."""

    def __init__(self, status: str, detail: str) -> None:
        super().__init__(status, detail)
        self.status, self.detail = status, detail


class Raised(CaseFailed):
    """The function raised an exception."""

    def __init__(self, name: str, text: str) -> None:
        self.name, self.text = name[:MAX_SHOWN], text[:MAX_SHOWN]  # both are the candidate's to choose
        super().__init__("memory" if name == "MemoryError" else "wrong", f"raised {self.name}: {self.text}")


class Unjudged(Exception):
    """The candidate is not at fault: the test cannot be run (`untestable`), or the sandbox fails (`infra`)."""

    def __init__(self, status: str, detail: str) -> None:
        super().__init__(status, detail)
        self.status, self.detail = status, detail


Case = Callable[[Session], None]
"""A function that puts one case to a running candidate; it raises CaseFailed, Unjudged or JobEnded."""


def stdio(
    box: Sandbox,
    code: str,
    cases: Sequence[Mapping[str, str]],
    limits: Limits | None = None,
    *,
    equal: Callable[[str, str], bool] = operator.eq,
    case_seconds: float = math.inf,
    fail_fast: bool = True,
) -> Verdict:
    """Runs a program once per case `{"stdin": str, "stdout": str}` and compares what it prints.

    Blanks at the ends of lines and newlines at the end do not count; `equal(printed, expected)` decides about what is
    left of each line. `limits.wall` (seconds) bounds all cases together, `case_seconds` and the other limits each run;
    `limits.output_kb` is how much it may print beyond what is expected. `fail_fast` stops at the first failure:
    `num_passed` then says less.
    Raises TestsError if there are no cases, or one lacks a key or has something other than text there.
    """
    _check_keys(cases, ("stdin", "stdout"), str)
    limits = limits or box.limits
    left, num_passed = limits.wall, 0
    first: CaseFailed | None = None
    for index, case in enumerate(cases):
        expected = case["stdout"]
        bounds = with_room(limits, len(expected.encode("utf-8", "surrogatepass")))
        wall = min(left, case_seconds)
        result = box.run(code, case["stdin"], limits=replace(bounds, wall=wall)) if left > 0 else None
        if result is None:
            failure = CaseFailed("timeout", f"case {index}: no time left")
        elif result.status == "infra":
            return Verdict(status="infra", passed=None, detail=ended(result).detail, num_cases=len(cases))
        else:
            left -= result.wall
            failure = _compared(index, result, expected, equal)
        num_passed += failure is None
        first = first or failure
        if first and (fail_fast or first.status == "compile_error"):
            break
    return tally(first, num_passed, len(cases))


def calls(
    box: Sandbox,
    code: str,
    fn_name: str,
    calls: Sequence[Mapping[str, Any]],
    class_name: str | None = None,
    limits: Limits | None = None,
    *,
    equal: Callable[[Any, Any], bool] = equal_values,
    case_seconds: float = math.inf,
    fail_fast: bool = True,
) -> Verdict:
    """Calls a program's function, or a method of a new `class_name()` each time, and compares what it returns.

    `calls` are `{"args": [...], "kwargs": {...}, "expected": value}`; `equal(returned, expected)` decides, by default
    as Python but with a tuple for a list. All run in one process, within `limits.wall` seconds, each within
    `case_seconds`; `limits.output_kb` is how much an answer may have beyond what is expected. Raises TestsError if
    there are no calls, one has no `expected`, or an argument is not plain data.
    """
    _check_keys(calls, ("expected",))
    cases = []
    for index, call in enumerate(calls):
        request = ("call", fn_name, class_name, list(call.get("args", ())), dict(call.get("kwargs", {})))
        try:
            wire.dumps(request)
        except wire.WireError as error:
            raise TestsError(f"calls[{index}] cannot be put to a program: {error}; give plain data") from None
        cases.append(_call_case(request, call["expected"], equal, case_seconds))
    bounds = with_room(limits or box.limits, longest(call["expected"] for call in calls))
    return in_session(box, code, cases, bounds, fail_fast)


def with_room(limits: Limits, num_bytes: int) -> Limits:
    """Returns limits that let a program print or answer `num_bytes`, as is expected of it, and `output_kb` more."""
    return replace(limits, output_kb=limits.output_kb + math.ceil(num_bytes / 1024))


def longest(values: Iterable[Any]) -> int:
    """Returns the size of the longest of these values as an answer; raises TestsError for one that is too long."""
    sizes = [0]
    for value in values:
        try:
            sizes.append(len(wire.dumps(value, wire.ANSWER_BYTES)))
        except wire.TooLarge as error:
            raise TestsError(f"a test expects what no program can answer: {error}") from None
        except wire.WireError:  # an object that equals nothing which a program can answer
            continue
    return max(sizes)


def in_session(
    box: Sandbox, code: str, cases: Sequence[Case], limits: Limits, fail_fast: bool, *, with_tester: bool = False
) -> Verdict:
    """Puts every case to one running candidate and then lets it end; a bad end fails what it answered rightly.

    If the sandbox itself fails, all of it is tried once more. `with_tester` says that cases need a second session,
    whose worker starts before the candidate does, and so not on its time.
    """
    verdict = _attempt(box, code, cases, limits, fail_fast, with_tester)
    return _attempt(box, code, cases, limits, fail_fast, with_tester) if verdict.status == "infra" else verdict


def _attempt(
    box: Sandbox, code: str, cases: Sequence[Case], limits: Limits, fail_fast: bool, with_tester: bool
) -> Verdict:
    num_passed, first = 0, None
    try:
        if with_tester:
            box.prepare_second()
        with box.session(code, limits=limits) as session:
            for index, case in enumerate(cases):
                try:
                    case(session)
                    num_passed += 1
                except CaseFailed as failure:
                    first = first or CaseFailed(failure.status, f"case {index}: {failure.detail}")
                    if fail_fast:
                        raise  # out of the session, which does not wait for the end then
            result = session.close()
            if result.status != "ok":
                first, num_passed = first or ended(result), 0
    except CaseFailed:
        return tally(first, num_passed, len(cases))
    except JobEnded as end:
        result = end.result
        first = first or ended(result)
    except Unjudged as reason:
        return Verdict(reason.status, None, reason.detail, num_cases=len(cases))
    except SandboxUnusable:
        raise
    except SandboxError as error:  # no fork server can be started
        return Verdict("infra", None, str(error), num_cases=len(cases))
    if result.status == "infra":
        return Verdict(status="infra", passed=None, detail=ended(result).detail, num_cases=len(cases))
    return tally(first, num_passed, len(cases))


def tally(first: CaseFailed | None, num_passed: int, num_cases: int) -> Verdict:
    """Returns the verdict when `first` is the first failure."""
    return Verdict(
        status=first.status if first else "correct",
        passed=first is None and num_passed == num_cases,
        detail=first.detail if first else "",
        num_passed=num_passed,
        num_cases=num_cases,
    )


def ask(session: Session, *request: Any, seconds: float = math.inf, max_bytes: int = wire.MAX_BYTES) -> Any:
    """Returns what the candidate answers; raises CaseFailed if it raises, or if that is not plain data.

    Raises TestsError if the request itself cannot cross.
    """
    try:
        message = wire.dumps(request, max_bytes)
    except wire.WireError as error:
        raise TestsError(f"a test cannot be put to a program: {error}") from None
    try:
        answer = wire.loads(session.exchange(message, seconds), wire.ANSWER_BYTES)
    except wire.WireError as error:
        raise CaseFailed("unsupported_value", str(error)) from None
    match answer:
        case ("value", value):
            return value
        case ("raised", str(name), str(text)):
            raise Raised(name, text)
        case ("unsupported", str(text)):
            raise CaseFailed("unsupported_value", shown(text, str))
    raise CaseFailed("wrong", "an answer that is none")


def ended(result: ExecResult) -> CaseFailed:
    """Says why a process fails that ended before its last answer, or badly after it."""
    status = "exited" if result.status == "ok" else result.status
    known = {"exit code": result.exit_code, "signal": result.signal}
    parts = [f"{name} {number}" for name, number in known.items() if number is not None]
    parts = parts or [f"{status} after {result.wall:.1f} s"]
    return CaseFailed(status, shown("; ".join([*parts, *result.stderr.strip().splitlines()[-1:]]), str))


def shown(value: Any, text: Callable[[Any], str] = repr) -> str:
    """Returns a value as a text for a detail, not all of it if it is long."""
    try:
        shown = text(value)
    except (ValueError, RecursionError):  # an integer above 4,300 digits; nested deeply
        shown = f"<a {type(value).__name__}>"
    return shown if len(shown) <= MAX_SHOWN else f"{shown[: MAX_SHOWN - 3]}..."


def _call_case(request: tuple[Any, ...], expected: Any, equal: Callable[[Any, Any], bool], seconds: float) -> Case:
    def case(session: Session) -> None:
        if seconds < math.inf:
            ask(session, "exec", "")  # the start of the program is not on the time of its first call
        try:
            value = ask(session, *request, seconds=seconds)
        except CaseFailed as failure:
            if failure.status == "unsupported_value" and (reason := _cannot_cross(expected)):
                raise Unjudged("untestable", f"the test expects {reason}, which no program can answer") from None
            raise
        try:
            is_equal = equal(value, expected)
        except FAILURES as error:
            raise CaseFailed(
                "wrong", shown(f"comparing {shown(value)}: {type(error).__name__}: {error}", str)
            ) from None
        if not is_equal:
            raise CaseFailed("wrong", f"got {shown(value)}, not {shown(expected)}")

    return case


def _cannot_cross(value: Any) -> str:
    """Says what in a value cannot cross because of its type, "" if there is nothing."""
    try:
        wire.dumps(value, wire.ANSWER_BYTES)
    except wire.WireError as error:
        return str(error)
    return ""


def _compared(index: int, result: ExecResult, expected: str, equal: Callable[[str, str], bool]) -> CaseFailed | None:
    if result.status != "ok":
        failure = ended(result)
        return CaseFailed(failure.status, f"case {index}: {failure.detail}")
    got, wanted = _lines(result.stdout), _lines(expected)
    pairs = enumerate(zip(got, wanted, strict=False))
    line = next((i for i, (a, b) in pairs if not equal(a, b)), min(len(got), len(wanted)))
    if line == len(got) == len(wanted):
        return None
    pair = [shown(lines[line]) if line < len(lines) else "no such line" for lines in (got, wanted)]
    return CaseFailed("wrong", f"case {index}, line {line}: got {pair[0]}, not {pair[1]}")


def _lines(text: str) -> list[str]:
    lines = [line.rstrip() for line in text.split("\n")]
    while lines and not lines[-1]:
        lines.pop()
    return lines


def _check_keys(cases: Sequence[Mapping[str, Any]], keys: Sequence[str], kind: type = object) -> None:
    if not cases:
        raise TestsError("there are no cases to judge by: give at least one, for a program passes none of none")
    for index, case in enumerate(cases):
        if missing := [key for key in keys if key not in case]:
            raise TestsError(f"case {index} has no {missing[0]!r}; its keys: {', '.join(map(str, case)) or 'none'}")
        if wrong := [key for key in keys if not isinstance(case[key], kind)]:
            raise TestsError(f"case {index} has {wrong[0]!r}={shown(case[wrong[0]])}: give text")
