"""Progress on the terminal: bars with the time left, and one line per step that reads like a table.

Which table a line belongs to is told by the numbers in it, never by the name of its stage, which a recipe chooses.
Where the output is not a terminal (a file, a pipe, a CI log), bars become plain lines, at most one every 15 s.
"""

from __future__ import annotations

import json
import math
import re
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol, TextIO

from tqdm import tqdm

from rlkit.watch.metrics import HELD_OUT, LOAD, REASON, write_atomic
from rlkit.watch.stream import Lasting

MAX_REASONS = 6
"""Verdicts that a row names, the most frequent first; the rest are summed up as "other"."""
HEADER_EVERY = 20
"""A table repeats its header after this many steps."""
WARNINGS_FILE = "warnings.json"
_SILENT_S = 1.0
_PLAIN_FIRST_S, _PLAIN_EVERY_S = 5.0, 15.0
# A completion may hold escape codes that rewrite the screen; only newline and tab pass.
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")


class Bar(Protocol):
    """Shows progress through a known number of things."""

    def advance(self, n: int = 1) -> None:
        """Counts `n` more as done."""
        ...

    def set(self, done: int) -> None:
        """Says how many are done in all."""
        ...


class Console:
    """Writes to one stream (standard output if not given); warnings are also counted in `folder/warnings.json`."""

    def __init__(
        self, folder: Path | None = None, stream: TextIO | None = None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._stream: Any = Lasting(sys.stdout if stream is None else stream)  # tqdm writes to it as well
        self._clock = clock
        self._terminal = self._stream.isatty()
        self._path = None if folder is None else folder / WARNINGS_FILE
        self._counts: dict[str, int] = {}
        self._total: dict[str, int] = {} if folder is None else read_warnings(folder)
        self._stages: set[str] = set()

    def bar(self, label: str, total: int, unit: str) -> AbstractContextManager[Bar]:
        """Shows progress through `total` units with the time left; silent if it ends within a second."""
        return self._live_bar(label, total, unit) if self._terminal else self._plain_bar(label, total, unit)

    def line(self, text: str) -> None:
        """Prints a line, above the bar if one is live."""
        encoding = self._stream.encoding
        safe = visible(text).encode(encoding, errors="backslashreplace").decode(encoding)
        if self._terminal:
            tqdm.write(safe, file=self._stream)
        else:
            print(safe, file=self._stream, flush=True)

    def step(self, stage: str, step: int, total: int, values: Mapping[str, float]) -> None:
        """Prints the line of a step, under a header if it is the first of its stage in this process."""
        row = step_line(stage, step, total, values)
        if stage not in self._stages and "\n" not in row:
            row = "\n".join([*step_header(stage, values), row])
        self._stages.add(stage)
        self.line(row)

    def warn(self, text: str) -> None:
        """Prints "warning: ..." once; later calls with the same text are counted, and `close` says how often."""
        self._counts[text] = self._counts.get(text, 0) + 1
        self._total[text] = self._total.get(text, 0) + 1
        if self._counts[text] == 1:
            self.line(f"warning: {text}")
        if self._path is not None:
            write_atomic(self._path, json.dumps(self._total, indent=1))

    def close(self) -> None:
        """Says how often each repeated warning came up."""
        for text, count in self._counts.items():
            if count > 1:
                self.line(f"warning ({count} times): {text}")
        self._counts.clear()

    @contextmanager
    def _live_bar(self, label: str, total: int, unit: str) -> Iterator[Bar]:
        layout = "{desc:<10} {percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt} {unit}, {elapsed} so far, {remaining} left"
        size = shutil.get_terminal_size()  # tqdm's own way draws nothing on a terminal that reports 0 rows
        tqdm.monitor_interval = 0  # its thread would outlive the bar
        with tqdm(
            desc=label,
            total=total,
            unit=unit,
            file=self._stream,
            leave=False,
            delay=_SILENT_S,
            bar_format=layout,
            mininterval=0.2,
            ncols=min(size.columns, 110),
            nrows=size.lines,
        ) as inner:
            yield _LiveBar(inner)

    @contextmanager
    def _plain_bar(self, label: str, total: int, unit: str) -> Iterator[Bar]:
        yield _PlainBar(self, self._clock, label, total, unit)


def visible(text: str) -> str:
    """Writes out the control characters of a text (\\x00), all but tab and newline."""
    return _CONTROL.sub(lambda match: f"\\x{ord(match[0]):02x}", text)


def read_warnings(folder: Path) -> dict[str, int]:
    """Reads how often each warning of a run came up, over all its lives; empty if there was none."""
    path = folder / WARNINGS_FILE
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}


class _LiveBar:
    def __init__(self, inner: tqdm) -> None:  # pyright: ignore[reportMissingTypeArgument]
        self._inner = inner

    def advance(self, n: int = 1) -> None:
        self._inner.update(n)

    def set(self, done: int) -> None:
        self._inner.update(done - self._inner.n)


class _PlainBar:
    """Prints a line after 5 s of work and then every 15 s, when there is progress to tell."""

    def __init__(self, console: Console, clock: Callable[[], float], label: str, total: int, unit: str) -> None:
        self._console, self._clock = console, clock
        self._label, self._total, self._unit = label, total, unit
        self._done = 0
        self._start = clock()
        self._next = self._start + _PLAIN_FIRST_S

    def advance(self, n: int = 1) -> None:
        self.set(self._done + n)

    def set(self, done: int) -> None:
        self._done = done
        now = self._clock()
        if now < self._next or done == 0:
            return
        self._next = now + _PLAIN_EVERY_S
        spent = now - self._start
        left = tqdm.format_interval(spent * max(self._total - done, 0) / done)
        share = done / max(self._total, 1)
        self._console.line(
            f"{self._label}: {done}/{self._total} {self._unit} ({share:.0%}), "
            f"{tqdm.format_interval(spent)} so far, about {left} left"
        )


@dataclass(frozen=True, slots=True)
class _Column:
    keys: tuple[str, ...]
    """Two keys are shown as a/b."""
    title: str
    group: str
    """Stands above the title, over neighbouring columns of the same group."""
    width: int
    kind: Literal["fixed", "percent", "science", "count", "seconds"]


_SAMPLED = (
    _Column(("reward",), "reward", "", 7, "fixed"),
    _Column(("accuracy",), "acc", "", 7, "percent"),
    _Column(("kl",), "KL", "", 8, "science"),
    _Column(("clip_fraction",), "clip", "", 7, "percent"),
    _Column(("entropy",), "entropy", "", 8, "fixed"),
    _Column(("length",), "length", "", 7, "count"),
    _Column(("parity",), "parity", "", 8, "science"),
    _Column(("sample_tok_s",), "sample", "tok/s", 7, "count"),
    _Column(("train_tok_s",), "train", "tok/s", 6, "count"),
    _Column(("sample_s",), "sample", "seconds", 7, "seconds"),
    _Column(("score_s",), "score", "seconds", 6, "seconds"),
    _Column(("train_s",), "train", "seconds", 6, "seconds"),
    _Column(("sync_s",), "sync", "seconds", 6, "seconds"),
    _Column(("flat_groups", "groups"), "flat", "", 9, "count"),
)
"""Columns of a step that sampled completions and has their rewards."""
_SHARED = {column.keys[0]: column for column in _SAMPLED}
_TAUGHT = (
    _Column(("reverse_kl",), "rev. KL", "", 9, "science"),
    *(_SHARED[key] for key in ("accuracy", "entropy", "length", "parity", "sample_tok_s", "train_tok_s", "sample_s")),
    _Column(("teach_s",), "teach", "seconds", 6, "seconds"),
    *(_SHARED[key] for key in ("train_s", "sync_s")),
)
"""Columns of a step that sampled completions and asked a teacher about them."""
_TRAINED = (
    _Column(("loss",), "loss", "", 9, "fixed"),
    _Column(("lr",), "lr", "", 9, "science"),
    _Column(("grad_norm",), "grad norm", "", 11, "fixed"),
    _Column(("tok_s",), "tok/s", "", 8, "count"),
)
"""Columns of a step that only lowered a loss."""
_WORDS: dict[str, Callable[[float], str]] = {
    LOAD: lambda value: f"load {value:.2f}x",
    HELD_OUT: lambda value: f"held out {value:.4f}",
    "mtp_loss": lambda value: f"mtp {value:.3f}",
    "drafts_accepted": lambda value: f"drafts {value:.0%}",
}
"""Numbers that stand behind the last column, where there are any, in words of their own."""
_QUIET = frozenset(
    ("weight_version", "truncated", "masked", "reward_p50_s", "reward_p99_s", "lr", "loss", "grad_norm", "entropy")
) | {"logprob_gap", "tokens", "mean_violation", "load_entropy", "skipped", "reward", "groups", "score_s", "teach_tok_s"}
"""Numbers that a row leaves to the report and to metrics.jsonl, unless they are columns of its table."""
_STEP_WIDTH = 10


def _columns(values: Mapping[str, float]) -> tuple[_Column, ...]:
    """Chooses the table that a step's numbers belong to; () for a step that neither sampled nor trained."""
    if "reverse_kl" in values:
        return _TAUGHT
    return _SAMPLED if "reward" in values else _TRAINED if "loss" in values else ()


def step_header(stage: str, values: Mapping[str, float]) -> list[str]:
    """Writes the header lines of the table that a step's numbers belong to; none for numbers that have no table."""
    columns = _columns(values)
    if not columns:
        return []
    over, place = " " * _STEP_WIDTH, 0
    while place < len(columns):
        group = columns[place].group
        end = place + 1
        while end < len(columns) and group and columns[end].group == group:
            end += 1
        width = sum(column.width for column in columns[place:end])
        over += f" {group} ".center(width - 2, "-").rjust(width) if group else " " * width
        place = end
    fits = len(stage) < _STEP_WIDTH - len("step")
    if not fits:  # a long name stands above its table, left of the groups
        over = stage + over[len(stage) :]
    titles = f"{stage if fits else '':<5}{'step':>{_STEP_WIDTH - 5}}"
    titles += "".join(f"{column.title:>{column.width}}" for column in columns)
    return ([over.rstrip()] if over.strip() else []) + [titles]


def step_line(stage: str, step: int, total: int, values: Mapping[str, float]) -> str:
    """Writes one row of a table, with the header above it at steps 1, 21, 41; `step` counts from 1 to `total`.

    A number that the table has no column for stands behind the last one, after its name, so that whatever a new loss
    measures is seen. So do the load of the busiest expert over the mean, the loss of multi-token prediction, the share
    of drafts accepted, and what the reward said of the rollouts: `load 1.31x  mtp 1.204  drafts 81%  margin 0.25
    correct 31 timeout 5`. Not shown are the numbers of single layers and of parts of the reward: names with a slash.
    """
    columns = _columns(values)
    row = f"{f'{step}/{total}':>{_STEP_WIDTH}}" if columns else f"{stage} {step}/{total}"
    groups = values.get("groups", 0)
    if columns and groups and values.get("flat_groups", 0) >= groups:
        row += "".join(_cell(column, values) for column in columns[:2])
        row += f"   skipped: in all {groups:.0f} groups every reward is equal, so there is nothing to learn"
    else:
        row += "".join(_cell(column, values) for column in columns)
    row += "".join(f"  {words(values[key])}" for key, words in _WORDS.items() if key in values)
    known = _QUIET | _WORDS.keys() | {key for column in columns for key in column.keys}
    row += "".join(f"  {key} {value:.4g}" for key, value in values.items() if key not in known and "/" not in key)
    row += _reasons(values)
    return "\n".join([*step_header(stage, values), row]) if step % HEADER_EVERY == 1 else row


def _reasons(values: Mapping[str, float]) -> str:
    """Names the most frequent verdicts with their counts."""
    counts = [(count, key.removeprefix(REASON)) for key, count in values.items() if key.startswith(REASON)]
    counts.sort(key=lambda item: (-item[0], item[1]))
    shown, rest = counts[:MAX_REASONS], sum(count for count, _ in counts[MAX_REASONS:])
    words = [f"{reason} {count:.0f}" for count, reason in [*shown, *([(rest, "other")] if rest else [])]]
    return "  " + " ".join(words) if words else ""


def _cell(column: _Column, values: Mapping[str, float]) -> str:
    texts = [_number(values[key], column) if key in values else "-" for key in column.keys]
    return f" {'/'.join(texts):>{column.width - 1}}"


def _number(value: float, column: _Column) -> str:
    """Writes a number so that it fits its column: as a power of ten if it is too long; only then may the row grow."""
    if not math.isfinite(value):
        return str(float(value))
    match column.kind:
        case "fixed":
            text = f"{value:.3f}"
        case "percent":
            text = f"{100 * value:.1f}%"
        case "science":
            text = f"{value:.1e}" if value else "0"
        case "count":
            text = f"{value:.0f}" if abs(value) < 10_000 else f"{value / 1000:.0f}k"
        case "seconds":
            text = f"{value:.2f}" if abs(value) < 10 else f"{value:.1f}" if abs(value) < 100 else f"{value:.0f}"
    return text if len(text) < column.width else f"{value:.0e}"
