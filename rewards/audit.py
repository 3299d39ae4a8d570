"""Check a reward before it is trusted with a run: contract, repeatability, speed, hostile texts, known tricks.

Honest answers in every usual form come first. They tell which form the reward reads and what it pays for it, and every
later check compares with that. What is not covered: whether a reward measures what you want.
"""

from __future__ import annotations

import math
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from rewards.attacks import (
    FORMS,
    ROWS,
    THOUGHT,
    Row,
    answer_tricks,
    extremes,
    form_tricks,
    fuzz_texts,
    gold_of,
    in_tags,
)
from rewards.base import Sample
from rewards.subject import Answer, AuditError, Subject

NUM_TIMINGS, TIMING_S = 100, 5.0
"""Single samples that are timed, and the seconds after which there are enough of them."""
MAX_ROWS = 8
"""Rows that are used of those given, so that the audit of a slow reward ends."""
MAX_TRIES = 3
"""Times that a judge is asked for a verdict which a comparison needs and it does not give."""
MAX_HANGS = 3
"""Hostile texts that may take the whole deadline before the others are left out."""

Values = list[float | None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """What one check found.

    Example: `Finding(check="pickling", result="pass", details=("an unpickled copy says the same",))`
    """

    result: Literal["pass", "FAIL", "skip"]
    details: tuple[str, ...]
    check: str = ""


def audit(name: str, kwargs: Mapping[str, Any], rows: Sequence[Row] = ROWS, seconds: float = 30.0) -> Iterator[Finding]:
    """Runs the checks on the reward `name` and yields what each found; `seconds` is the deadline of one call.

    There are no further checks once the reward cannot be loaded, or fails on honest answers.
    """
    subject, rows = Subject(name, kwargs, seconds), rows[:MAX_ROWS]
    checks: dict[str, Callable[[Subject, Sequence[Row]], Finding]] = {
        "load": _load,
        "contract": _contract,
        "determinism": _repeats,
        "pickling": _pickles,
        "time per sample": _speed,
        "hostile texts": _survives,
        "known tricks": _pays_no_trick,
    }
    try:
        for title, check in checks.items():
            try:
                finding = check(subject, rows)
            except AuditError as error:
                finding = Finding(result="FAIL", details=(str(error),))
            yield replace(finding, check=title)
            if finding.result == "FAIL" and title in ("load", "contract"):
                return
    finally:
        subject.end()


def _load(subject: Subject, rows: Sequence[Row]) -> Finding:
    subject.start()
    return Finding(result="pass", details=(subject.shape,))


def _contract(subject: Subject, rows: Sequence[Row]) -> Finding:
    honest = _honest(rows)
    verdicts = list(subject.judge(honest).rewards)
    for _ in range(MAX_TRIES - 1):  # a service may be slow to come up
        if missing := [place for place, verdict in enumerate(verdicts) if verdict.value is None]:
            again = subject.judge([honest[place] for place in missing]).rewards
            for place, verdict in zip(missing, again, strict=True):
                verdicts[place] = verdict
    values = Counter("None" if verdict.value is None else f"{verdict.value:.3g}" for verdict in verdicts)
    reasons = Counter(verdict.reason for verdict in verdicts if verdict.reason)
    counted = [", ".join(f"{count} x {name}" for name, count in found.most_common(8)) for found in (values, reasons)]
    details = tuple(filter(None, (f"{len(verdicts)} completions: {counted[0]}", counted[1])))
    known = {verdict.value for verdict in verdicts if verdict.value is not None}
    if not known:
        return Finding(result="FAIL", details=("no verdict on any honest completion", *details))
    if len(known) == 1 and not _reacts(subject, rows[0], known):
        fault = (
            f"earns {known.pop():.3g} whatever the completion is: right or wrong in each form ({', '.join(FORMS)}), "
            "empty, endless, cut off; if it reads another form, try it with `score` on rows that have completions"
        )
        return Finding(result="FAIL", details=(fault, *details))
    return Finding(result="pass", details=details)


def _reacts(subject: Subject, row: Row, known: Set[float]) -> bool:
    """Says whether any extreme completion earns what the honest ones do not; failures are left to the other checks."""
    cut_off = replace(_sample(row, THOUGHT), finish_reason="length")
    for sample in (cut_off, *(_sample(row, text) for text in extremes())):
        try:
            if not {verdict.value for verdict in subject.judge([sample]).rewards} <= known | {None}:
                return True
        except AuditError:
            return True
    return False


def _repeats(subject: Subject, rows: Sequence[Row]) -> Finding:
    honest = _honest(rows)
    first = _values(subject.judge(honest))
    tries = [
        ("the same completions get other rewards when judged again", _values(subject.judge(honest))),
        ("rewards depend on the order of the batch", _values(subject.judge(honest[::-1]))[::-1]),
    ]
    subject.start()
    fault = "another process gives other rewards (hash() and sets of text differ between processes)"
    tries.append((fault, _values(subject.judge(honest))))
    return _compared(first, tries, "equal when judged again, in reverse, and in another process")


def _pickles(subject: Subject, rows: Sequence[Row]) -> Finding:
    honest = _honest(rows)
    first = _values(subject.judge(honest))
    try:
        again = _values(subject.judge(honest, "unpickled"))
    except AuditError as error:
        return Finding(result="FAIL", details=(str(error),))
    tries = [("an unpickled copy gives other rewards", again)]
    return _compared(first, tries, "an unpickled copy gives the same rewards")


def _compared(first: Values, tries: Sequence[tuple[str, Values]], good: str) -> Finding:
    """Checks that every try gave what the first one did; each comes with what is said of it otherwise.

    A judge that asks a service, or a sandbox, rightly gives no verdict when that fails. So only two verdicts can
    differ; where there was one the first time and none the second, or the reverse, we count and do not blame.
    """
    faults = [
        fault for fault, again in tries if any(a != b and None not in (a, b) for a, b in zip(first, again, strict=True))
    ]
    pairs = [pair for _, again in tries for pair in zip(first, again, strict=True)]
    once = sum(pair.count(None) == 1 for pair in pairs)
    details = (f"{once} of {len(pairs)} comparisons were left out: one of the two had no verdict",) if once else ()
    if all(None in pair for pair in pairs):
        return Finding(result="skip", details=("no completion had a verdict both times: nothing to compare", *details))
    return Finding(result="FAIL" if faults else "pass", details=(*(faults or (good,)), *details))


def _speed(subject: Subject, rows: Sequence[Row]) -> Finding:
    honest = _honest(rows)
    started = time.monotonic()
    millis = []
    while len(millis) < NUM_TIMINGS and (len(millis) < 3 or time.monotonic() - started < TIMING_S):
        millis.append(1000 * subject.judge([honest[len(millis) % len(honest)]]).seconds)
    millis.sort()
    p50, p99 = (millis[round(share * (len(millis) - 1))] for share in (0.5, 0.99))
    details = f"p50 {p50:.3g} ms, p99 {p99:.3g} ms over {len(millis)} single samples"
    return Finding(result="pass", details=(details,))


def _survives(subject: Subject, rows: Sequence[Row]) -> Finding:
    faults, hangs, slowest, highest = [], 0, (0.0, ""), -math.inf
    with tempfile.TemporaryDirectory() as folder:
        canary = Path(folder) / "executed"
        texts = fuzz_texts(str(canary))
        for name, text in texts.items():
            try:
                answer = subject.judge([_sample(rows[0], text)])
            except AuditError as error:
                faults.append(f"{name}: {error}")
                if str(error).startswith("hangs") and (hangs := hangs + 1) == MAX_HANGS:
                    faults.append("the other texts were not tried")
                    break
            else:
                slowest = max(slowest, (answer.seconds, name))
                value = answer.rewards[0].value
                highest = highest if value is None else max(highest, value)
            if canary.exists():
                faults.append(f"{name}: it executes what the completion says")
                canary.unlink()
    best = f"best reward {highest:.3g}" if highest > -math.inf else "no verdict on any"
    good = f"{len(texts)} hostile texts judged, slowest {slowest[0]:.2g} s ({slowest[1]}), {best}"
    return _finding(faults, good)


def _pays_no_trick(subject: Subject, rows: Sequence[Row]) -> Finding:
    """Checks that tricks earn less than the honest answer in the form that the reward pays best."""
    best, form = 0.0, ""
    for candidate in FORMS:
        gaps = []
        for row, other in _pairs(rows, candidate):
            right = _value(subject, row, FORMS[candidate](gold_of(row, candidate)))
            wrong = _value(subject, row, FORMS[candidate](gold_of(other, candidate)))
            gaps += [right - wrong] if right is not None and wrong is not None else []
        if gaps and (mean := sum(gaps) / len(gaps)) > best:
            best, form = mean, candidate
    if form:
        tricks = [
            (row, FORMS[form](gold_of(row, form)), answer_tricks(form, row, other)) for row, other in _pairs(rows, form)
        ]
        return _paid(subject, tricks, f"right and wrong answers told apart in the form {form}")
    answer = gold_of(rows[0], "<answer>")
    tagged, bare = _value(subject, rows[0], in_tags(answer)), _value(subject, rows[0], f"{THOUGHT} {answer}")
    if tagged is not None and bare is not None and tagged > bare:
        return _paid(subject, [(rows[0], in_tags(answer), form_tricks(answer))], "a reward of the form")
    details = ("right and wrong answers, with and without tags, earn the same: nothing to trick",)
    return Finding(result="skip", details=details)


def _paid(subject: Subject, tried: Sequence[tuple[Row, str, Mapping[str, str]]], kind: str) -> Finding:
    faults: dict[str, str] = {}
    hangs, num_tricks, unknown = 0, 0, 0
    for row, honest, tricks in tried:
        earned = _value(subject, row, honest)
        for name, text in tricks.items():
            try:
                value = _value(subject, row, text)
            except AuditError as error:
                faults[name] = f"{name}: {error}"
                if str(error).startswith("hangs") and (hangs := hangs + 1) == MAX_HANGS:
                    return _finding([*faults.values(), "the other tricks were not tried"], "")
                continue
            if value is None or earned is None:
                unknown += 1
                continue
            num_tricks += 1
            if value >= earned:
                faults[name] = f"{name}: earns {value:.3g}, as an honest answer does ({earned:.3g}): ...{text[-60:]!r}"
    if not num_tricks and not faults:
        return Finding(result="skip", details=(f"{unknown} tricks tried, and no verdict on any",))
    without = f"; {unknown} more had no verdict" if unknown else ""
    return _finding(list(faults.values()), f"{num_tricks} tricks earn less than an honest answer; {kind}{without}")


def _finding(faults: Sequence[str], good: str) -> Finding:
    return Finding(result="FAIL" if faults else "pass", details=tuple(faults) or (good,))


def _value(subject: Subject, row: Row, text: str) -> float | None:
    """Returns the reward of one completion; a judge without a verdict is asked again before that counts as None."""
    values = (subject.judge([_sample(row, text)]).rewards[0].value for _ in range(MAX_TRIES))
    return next((value for value in values if value is not None), None)


def _values(answer: Answer) -> Values:
    return [verdict.value for verdict in answer.rewards]


def _sample(row: Row, completion: str) -> Sample:
    found = row.get("prompt") or row.get("question") or row.get("text") or ""
    prompt = found if isinstance(found, list) else str(found)  # a list is one of chat messages
    return Sample(prompt, completion, completion_ids=tuple(completion.encode()), meta=row, step=0)


def _pairs(rows: Sequence[Row], form: str) -> list[tuple[Row, Row]]:
    """Pair each row with the next that has another answer; rows without an answer in this form are left out."""
    pairs = []
    for index, row in enumerate(rows):
        others = [other for other in (*rows[index + 1 :], *rows[:index]) if gold_of(other, form) != gold_of(row, form)]
        if gold_of(row, form) and others:
            pairs.append((row, others[0]))
    return pairs


def _honest(rows: Sequence[Row]) -> list[Sample]:
    """Writes right answers in every form that a row has one for, and wrong ones in R1's form and as programs."""
    samples = []
    for form, write in FORMS.items():
        for row, other in _pairs(rows, form):
            samples.append(_sample(row, write(gold_of(row, form))))
            if form in ("<answer>", "program"):
                samples.append(_sample(row, write(gold_of(other, form))))
    if not samples:
        raise AuditError(
            f"the rows have no answers that differ (their columns: {', '.join(rows[0])}); give at least two rows with "
            "`answer`, `ground_truth`, `code` or `canonical_solution`"
        )
    return samples
