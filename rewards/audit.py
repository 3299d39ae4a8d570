"""Checks of a reward before it is trusted with a run: contract, repeatability, speed, hostile texts, known tricks.

The reward runs in a process of its own under a deadline, so one that hangs or dies is found, not suffered. What is not
covered: whether a reward measures what you want.
"""

from __future__ import annotations

import math
import pickle
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from contextlib import closing
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
from rewards.base import Reward, RewardError, Sample
from rewards.function import RewardFunction
from rewards.process import Channel, Gone, Overdue, Process
from rewards.registry import load

LOAD_S = 120.0
"""For the process to import the reward and what it needs."""
LEAVE_S = 5.0
"""For the process to close its reward (a sandbox, a pool)."""
NUM_TIMINGS, TIMING_S = 100, 5.0
MAX_ROWS = 8
"""Of the rows given, so that an audit of a slow reward ends."""
MAX_HANGS = 3
"""Hostile texts that may take the whole deadline before the others are left out."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """What one check found.

    Example: `Finding(check="pickling", result="pass", details=("an unpickled copy says the same",))`
    """

    result: Literal["pass", "FAIL", "skip"]
    details: tuple[str, ...]
    check: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What the process says: its shape once loaded, then verdicts and the seconds they took, or what went wrong."""

    shape: str = ""
    rewards: tuple[Reward, ...] = ()
    seconds: float = 0.0
    error: str = ""


class AuditError(RewardError):
    """The reward cannot be loaded, raises, hangs, or ends its process."""


def audit(name: str, kwargs: Mapping[str, Any], rows: Sequence[Row] = ROWS, seconds: float = 30.0) -> Iterator[Finding]:
    """Run every check on the reward `name`, each yielded as it ends; `seconds` is the deadline of one call.

    Ends early if the reward cannot be loaded or fails on honest answers.
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


class Subject:
    """The reward under audit, in a process that starts when first needed, and again after it has hung or died."""

    def __init__(self, name: str, kwargs: Mapping[str, Any], seconds: float) -> None:
        self.shape = ""
        self._given, self._seconds = (name, dict(kwargs)), seconds
        self._process: Process | None = None

    def start(self) -> None:
        """Start anew; raises AuditError if the reward cannot be loaded."""
        self.end()
        self._process = Process("rewards.audit:serve", prints=False)  # what it prints would tear the table apart
        self.shape = self._ask(self._given, LOAD_S).shape

    def judge(self, samples: Sequence[Sample], copy: str = "loaded") -> Answer:
        """Return the verdicts of the reward, or of its "unpickled" copy; raises AuditError if it gives none."""
        if self._process is None:
            self.start()
        return self._ask((copy, samples), self._seconds)

    def end(self, patience: float = LEAVE_S) -> int:
        """Let the process close its reward within `patience` seconds, then kill it; returns its exit code."""
        if self._process is None:
            return 0
        process, self._process = self._process, None
        return process.end(patience)

    def _ask(self, message: object, seconds: float) -> Answer:
        assert self._process is not None
        try:
            self._process.send(message, seconds)
            answer: Answer = self._process.receive(seconds)
        except Overdue:
            self.end(patience=0)
            raise AuditError(f"hangs: no answer within {seconds:g} s") from None
        except Gone:
            raise AuditError(f"ends its process (exit code {self.end()})") from None
        if answer.error:
            raise AuditError(answer.error)
        return answer


def serve(channel: Channel) -> None:
    """Load `(name, kwargs)`, then judge a list of samples for each message: what the process runs."""
    name, kwargs = channel.receive()
    try:
        judge = load(name, **kwargs)
    except BaseException as error:  # sys.exit() in a module included
        channel.send(Answer(error=_message(error)))
        return
    settings = ", ".join(f"{key}={value!r}" for key, value in kwargs.items()) or "no settings"
    calls = "called for each sample" if judge.shape.per_sample else "called for a batch"
    channel.send(Answer(shape=f"{judge.shape.name} signature, {calls}; {settings}"))
    copies = {"loaded": judge}
    with closing(judge):
        while True:
            copy, samples = channel.receive()
            channel.send(_answer(copies, copy, samples))


def _answer(copies: dict[str, RewardFunction], copy: str, samples: Sequence[Sample]) -> Answer:
    try:
        if copy not in copies:
            copies[copy] = pickle.loads(pickle.dumps(copies["loaded"]))
        start = time.perf_counter()
        verdicts = copies[copy](samples)
        seconds = time.perf_counter() - start
    except BaseException as error:
        return Answer(error=_message(error))
    # Logs may hold anything, and nothing here reads them.
    return Answer(rewards=tuple(replace(verdict, logs={}) for verdict in verdicts), seconds=seconds)


def _message(error: BaseException) -> str:
    return str(error) if isinstance(error, RewardError) else f"{type(error).__name__}: {error}"


def _load(subject: Subject, rows: Sequence[Row]) -> Finding:
    subject.start()
    return Finding(result="pass", details=(subject.shape,))


def _contract(subject: Subject, rows: Sequence[Row]) -> Finding:
    honest = _honest(rows)
    verdicts = subject.judge(honest).rewards
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
    """Whether any extreme completion earns what the honest ones do not; a failure is left to the other checks."""
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
    faults = []
    if _values(subject.judge(honest)) != first:
        faults.append("the same completions get other rewards when judged again")
    if _values(subject.judge(honest[::-1])) != first[::-1]:
        faults.append("rewards depend on the order of the batch")
    subject.start()
    if _values(subject.judge(honest)) != first:
        faults.append("another process gives other rewards (hash() and sets of text differ between processes)")
    return _finding(faults, "equal when judged again, in reverse, and in another process")


def _pickles(subject: Subject, rows: Sequence[Row]) -> Finding:
    honest = _honest(rows)
    first = _values(subject.judge(honest))
    try:
        same = _values(subject.judge(honest, "unpickled")) == first
    except AuditError as error:
        return Finding(result="FAIL", details=(str(error),))
    faults = [] if same else ["an unpickled copy gives other rewards"]
    return _finding(faults, "an unpickled copy gives the same rewards")


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
                highest = max(highest, answer.rewards[0].value or 0.0)
            if canary.exists():
                faults.append(f"{name}: it executes what the completion says")
                canary.unlink()
    good = f"{len(texts)} hostile texts judged, slowest {slowest[0]:.2g} s ({slowest[1]}), best reward {highest:.3g}"
    return _finding(faults, good)


def _pays_no_trick(subject: Subject, rows: Sequence[Row]) -> Finding:
    """A trick must earn less than the honest answer in the form that the reward pays best."""
    best, form = 0.0, ""
    for candidate in FORMS:
        gaps = [
            _value(subject, row, FORMS[candidate](gold_of(row, candidate)))
            - _value(subject, row, FORMS[candidate](gold_of(other, candidate)))
            for row, other in _pairs(rows, candidate)
        ]
        if gaps and (mean := sum(gaps) / len(gaps)) > best:
            best, form = mean, candidate
    if form:
        tricks = [
            (row, FORMS[form](gold_of(row, form)), answer_tricks(form, row, other)) for row, other in _pairs(rows, form)
        ]
        return _paid(subject, tricks, f"right and wrong answers told apart in the form {form}")
    answer = gold_of(rows[0], "<answer>")
    if _value(subject, rows[0], in_tags(answer)) > _value(subject, rows[0], f"{THOUGHT} {answer}"):
        return _paid(subject, [(rows[0], in_tags(answer), form_tricks(answer))], "a reward of the form")
    details = ("right and wrong answers, with and without tags, earn the same: nothing to trick",)
    return Finding(result="skip", details=details)


def _paid(subject: Subject, tried: Sequence[tuple[Row, str, Mapping[str, str]]], kind: str) -> Finding:
    faults: dict[str, str] = {}
    hangs = 0
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
            if value >= earned:
                faults[name] = f"{name}: earns {value:.3g}, as an honest answer does ({earned:.3g}): ...{text[-60:]!r}"
    num_tricks = sum(len(tricks) for _, _, tricks in tried)
    return _finding(list(faults.values()), f"{num_tricks} tricks earn less than an honest answer; {kind}")


def _finding(faults: Sequence[str], good: str) -> Finding:
    return Finding(result="FAIL" if faults else "pass", details=tuple(faults) or (good,))


def _value(subject: Subject, row: Row, text: str) -> float:
    value = subject.judge([_sample(row, text)]).rewards[0].value
    return 0.0 if value is None else value


def _values(answer: Answer) -> list[float | None]:
    return [verdict.value for verdict in answer.rewards]


def _sample(row: Row, completion: str) -> Sample:
    prompt = str(row.get("prompt") or row.get("question") or row.get("text") or "")
    return Sample(prompt, completion, completion_ids=tuple(completion.encode()), meta=row, step=0)


def _pairs(rows: Sequence[Row], form: str) -> list[tuple[Row, Row]]:
    """Each row with the next that has another answer; rows without an answer in this form are left out."""
    pairs = []
    for index, row in enumerate(rows):
        others = [other for other in (*rows[index + 1 :], *rows[:index]) if gold_of(other, form) != gold_of(row, form)]
        if gold_of(row, form) and others:
            pairs.append((row, others[0]))
    return pairs


def _honest(rows: Sequence[Row]) -> list[Sample]:
    """Right answers in every form that a row has one for, and wrong ones in R1's form and as programs."""
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
