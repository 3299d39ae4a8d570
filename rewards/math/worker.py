"""Runs in a worker process: requests come in and verdicts go out, until the caller closes the pipe.

It is started clean, so that nothing of the caller is in its memory, and may be killed at any time. What is not
covered: the network is not shut off, because nothing that a model wrote is ever run.
"""

from __future__ import annotations

import os
import resource
import signal
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

from rewards.math.compare import Comparison
from rewards.math.decide import Outcome, decide, is_readable, stated_sides
from rewards.math.judge import Judge, TooFine
from rewards.math.read import read
from rewards.math.text import clean
from rewards.math.value import Arithmetic
from rewards.process import Channel

DIGITS = (60, 400, 2_000)
"""Decimal digits that are tried in turn: more of them where an expression mixes sizes too far apart for fewer."""
MEMORY = 2 << 30
"""A worker may use so many bytes of address space."""


def serve(channel: Channel) -> None:
    """Answers requests; says "ready" first, so that the caller knows when the clock may start."""
    import mpmath  # noqa: F401  before "ready": importing it must not count against the first verdict

    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # what a library complains about is for nobody
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    channel.send("ready")
    while True:
        request = channel.receive()
        # Should the caller die meanwhile, nobody else would end a verdict that never comes.
        signal.alarm(int(request["seconds"]) + 2)
        # A verdict may also use only so much processor time, in case the alarm is lost.
        used = resource.getrusage(resource.RUSAGE_SELF)
        limit = int(used.ru_utime + used.ru_stime + request["seconds"]) + 2
        resource.setrlimit(resource.RLIMIT_CPU, (limit, resource.getrlimit(resource.RLIMIT_CPU)[1]))
        outcome = judge(request)
        signal.alarm(0)
        channel.send((outcome, _memory_mb()))


def _memory_mb() -> int:
    # Not ru_maxrss: it starts with the size that the caller had when it forked, which may be gigabytes.
    with open("/proc/self/statm", "rb") as file:
        return int(file.read().split()[1]) * resource.getpagesize() >> 20


def judge(request: Mapping[str, Any]) -> Outcome:
    """Returns the verdict on `gold` and `answer`, by many digits, else by computer algebra, which "load" warms up."""
    try:
        if "load" in request:
            # Not only the import: building the grammar and the first integral take as long again.
            _by_algebra(r"\int_0^1 x^2 dx", r"\frac{1}{3}")
            return "undecided"
        # Few digits decide most pairs; where they cannot tell a difference from rounding, more of them are tried.
        for digits in DIGITS:
            comparison = Comparison(
                judge=Judge(arithmetic=arithmetic(digits), digits=digits),
                percent=request["percent"],
                units=request["units"],
            )
            try:
                outcome = decide(request["gold"], request["answer"], comparison)
            except TooFine:
                continue
            if outcome == "symbolic" or (outcome == "undecided" and "algebra" in request):
                return _by_sides(request["gold"], request["answer"], comparison)
            return outcome
    except (MemoryError, RecursionError):
        return "guard"
    except Exception:  # of computer algebra on a text that nobody thought of
        return "unparsable" if is_readable(request["gold"]) else "gold_unparsable"
    return "guard"


@lru_cache
def arithmetic(digits: int) -> Arithmetic:
    """Returns complex numbers of `digits` decimal digits, by mpmath."""
    import mpmath

    context = mpmath.MPContext()
    context.dps = digits
    functions = {
        "\\sin": context.sin, "\\cos": context.cos, "\\tan": context.tan, "\\sinh": context.sinh,
        "\\cosh": context.cosh, "\\tanh": context.tanh, "\\exp": context.exp, "\\sqrt": context.sqrt,
        "\\arcsin": context.asin, "\\arccos": context.acos, "\\arctan": context.atan, "\\ln": context.log,
        "\\gamma": lambda value: context.mpc(context.gamma(value.real)),
    }  # fmt: skip
    return Arithmetic(
        number=lambda value: context.mpc(context.mpf(value.numerator) / value.denominator),
        functions=functions,
        pi=context.mpc(context.pi),
        i=context.mpc(0, 1),
        noise=context.mpf(10) ** (-digits * 9 // 10),
    )


def _by_sides(gold: str, answer: str, comparison: Comparison) -> Outcome:
    """Returns the verdict of computer algebra on every side of an equation; by itself it would read the last alone."""
    # Of 41 = \int_0^{42} dx computer algebra would see the integral only, and call it 42.
    wanted = stated_sides(gold)[-1]
    for side in stated_sides(answer):
        outcome = decide(wanted, side, comparison)
        if outcome in ("symbolic", "undecided"):
            outcome = _by_algebra(wanted, side)
        if outcome == "gold_unparsable" and not _is_symbolic(gold):
            return "wrong"  # a gold that only we can read, against what only computer algebra can
        if outcome != "correct":
            return outcome
    return "correct"


def _by_algebra(gold: str, answer: str) -> Outcome:
    import logging

    from math_verify import LatexExtractionConfig, parse, verify

    logging.disable(logging.CRITICAL)
    parsed = []
    for text in (gold, answer):
        target = [LatexExtractionConfig(boxed_match_priority=-1)]
        parsed.append(parse(f"${clean(text)}$", target, fallback_mode="no_fallback", parsing_timeout=None))  # type: ignore[arg-type]
    if not parsed[0]:
        return "gold_unparsable"
    if not parsed[1]:
        return "unparsable"
    return "correct" if verify(*parsed, float_rounding=12, timeout_seconds=None) else "wrong"  # type: ignore[arg-type]


def _is_symbolic(text: str) -> bool:
    try:
        read(text)
    except ValueError:
        return True
    return False
