"""What a person sees of an evaluation: a table on the screen, and one HTML file with table, plots and completions."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from html import escape
from pathlib import Path

from rlkit.config import EvalRun
from rlkit.config.compose import to_yaml
from rlkit.evaluation.estimates import Estimate
from rlkit.evaluation.measure import Measured
from rlkit.evaluation.records import Completion, Record, Verdict, reward_mark
from rlkit.evaluation.suites import Suite
from rlkit.watch.evaluations import SampleText
from rlkit.watch.figures import figure
from rlkit.watch.metrics import write_atomic
from rlkit.watch.page import answer_box, clip, page, settings_fold, tile
from rlkit.watch.plots import Interval, Series, interval_plot, line_plot

REPORT = "report.html"
SHOWN_PROBLEMS, SHOWN_SAMPLES = 6, 3
"""Problems of each suite that are shown, and completions of each."""
METHOD = (
    "Intervals are at 95 %: Wilson's, at the effective number of trials that the differences between problems leave "
    "(Miller 2024, arXiv:2411.00640). pass@k is unbiased (Chen et al. 2021). A tie for the majority counts as the "
    "share of the tied answers that is right. A completion without a verdict counts as not solved."
)


def summary(measured: Sequence[Measured]) -> list[str]:
    """Writes the table for the screen: a row for each suite, a column for each estimate that any of them has."""
    rows = [["suite", "problems", "samples", *columns(measured)]]
    for one in measured:
        rows.append([one.title, f"{one.problems:,}", str(one.samples), *cells(one, columns(measured))])
    widths = [max(len(row[place]) for row in rows) for place in range(len(rows[0]))]
    return [
        "  ".join(
            cell.ljust(width) if place == 0 else cell.rjust(width)
            for place, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]


def columns(measured: Sequence[Measured]) -> list[str]:
    """Returns the names of all estimates: pass@1, pass@2, ..., then majority@K."""
    names = {name for one in measured for name in one.estimates}
    return sorted(names, key=lambda name: (not name.startswith("pass@"), int(name.partition("@")[2])))


def cells(one: Measured, names: Sequence[str]) -> list[str]:
    """Writes the estimates of a suite; "-" for those that it has not."""
    return [_percent(one.estimates[name]) if name in one.estimates else "-" for name in names]


def write_report(
    cfg: EvalRun,
    suites: Sequence[Suite],
    records: Sequence[Record],
    measured: Sequence[Measured],
    lives: Sequence[Mapping[str, str]],
) -> Path:
    """Writes `output_dir/report.html` and returns its path."""
    texts = [text for one in measured for text in warnings(one)]
    alerts = "".join(f"<li>{escape(text)}</li>" for text in texts)
    shown = "".join(_samples(suite, record, one) for suite, record, one in zip(suites, records, measured, strict=True))
    parts = [
        f'<p class="quiet">{escape(cfg.model.path)}</p>',
        f'<div class="tiles">{"".join(map(_tile, measured))}</div>',
        f'<h2>Warnings</h2><ul class="alerts">{alerts}</ul>' if alerts else "",
        f"<h2>Results</h2>{html_table(_rows(measured))}<p>{escape(METHOD)}</p>",
        f'<div class="figures">{"".join(_figures(measured))}</div>',
        f"<h2>Samples</h2><p>The first problems of each suite, not selected.</p>{shown}",
        f"<h2>How it was drawn</h2>{html_table(_drawn(measured))}",
        f"<h2>Versions</h2>{html_table(_lives(lives))}",
        settings_fold(to_yaml(cfg)),
    ]
    path = cfg.output_dir / REPORT
    write_atomic(path, page(f"rlkit eval: {Path(cfg.model.path).name or 'model'}", parts))
    return path


def warnings(one: Measured) -> Iterator[str]:
    """Yields what a reader must know before trusting the numbers of a suite."""
    total = sum(one.reasons.values())
    if one.missing:
        yield f"{one.title}: {one.missing:,} completions have not been drawn; the numbers are those of the others."
    if one.no_verdict:
        yield f"{one.title}: {one.no_verdict:,} of {total:,} completions have no verdict and count as not solved."
    if one.truncated > 0.1:
        yield f"{one.title}: {one.truncated:.0%} of the completions hit the token limit; they count as they stand."


def html_table(rows: Sequence[Sequence[str]]) -> str:
    """Writes a table of texts whose first row is its header."""
    head, *body = rows
    lines = ["".join(f"<th>{escape(cell)}</th>" for cell in head)]
    lines += ["".join(f"<td>{escape(cell)}</td>" for cell in row) for row in body]
    return f'<div class="scroll"><table>{"".join(f"<tr>{line}</tr>" for line in lines)}</table></div>'


def as_interval(name: str, found: Estimate) -> Interval:
    """Returns an estimate as a row of a plot."""
    return Interval(name=name, value=found.value, low=found.low, high=found.high)


def _tile(one: Measured) -> str:
    found = one.estimates["pass@1"]
    note = (
        f"pass@1, 95 % interval {100 * found.low:.1f} to {100 * found.high:.1f}<br>"
        f"{one.problems:,} problems x {one.samples} samples"
    )
    return tile(one.title, f"{100 * found.value:.1f} %", note, main=True)


def _rows(measured: Sequence[Measured]) -> list[list[str]]:
    names = columns(measured)
    rows = [["suite", "problems", "samples", *names, "standard error", "no verdict", "cut off", "tokens", "reward"]]
    for one in measured:
        counted = [f"{one.no_verdict:,}", f"{one.truncated:.1%}", f"{one.mean_tokens:,.0f}", one.reward]
        error = f"{100 * one.estimates['pass@1'].error:.2f}"
        rows.append([one.title, f"{one.problems:,}", str(one.samples), *cells(one, names), error, *counted])
    return rows


def _figures(measured: Sequence[Measured]) -> Iterator[str]:
    rows = [as_interval(one.title, one.estimates["pass@1"]) for one in measured]
    yield figure("pass@1", "share of problems", "bars: 95 % interval", interval_plot(rows))
    curves = []
    for one in measured:
        found = [(name.partition("@")[2], e.value) for name, e in one.estimates.items() if name.startswith("pass@")]
        if len(found) > 1:
            curves.append(Series(name=one.title, points=[(float(k), value) for k, value in found]))
    if curves:
        # A figure has as many colours as curves it can tell apart.
        for start in range(0, len(curves), 4):
            plot = line_plot(curves[start : start + 4], percent=True, x_name="k")
            yield figure("pass@k", "at least one of k samples is right", "", plot)
    counts = [["verdict", *(one.title for one in measured)]]
    for reason in dict.fromkeys(reason for one in measured for reason in list(one.reasons)[:8]):
        shares = [f"{100 * one.reasons.get(reason, 0) / sum(one.reasons.values()):.1f} %" for one in measured]
        counts.append([reason, *shares])
    yield figure("Verdicts", "share of completions", "what the rewards said", html_table(counts))


def _samples(suite: Suite, record: Record, one: Measured) -> str:
    stored, judged = record.completions, record.verdicts(reward_mark(suite.reward))
    rows = {row.id: row for row in suite.rows}
    texts = []
    for id in list(one.outcomes)[:SHOWN_PROBLEMS]:
        row = rows[id]
        gold = f' <span class="quiet">(answer: {clip(row.answer)})</span>' if row.answer else ""
        keys = [key for number in range(one.samples) if (key := (id, number)) in stored][:SHOWN_SAMPLES]
        boxes = "".join(
            answer_box(f"sample {key[1] + 1}", _text(row.question, row.answer, stored[key], judged.get(key)))
            for key in keys
        )
        texts.append(
            f'<div class="sample"><p class="question"><b>{clip(row.question)}</b>{gold}</p>'
            f'<div class="answers">{boxes}</div></div>'
        )
    hidden = "".join(texts)
    return f"<details open><summary>{escape(one.title)}</summary>{hidden}</details>"


def _text(question: str, answer: str, line: Completion, verdict: Verdict | None) -> SampleText:
    reason = verdict.reason or f"value {verdict.value}" if verdict else "not judged"
    correct = verdict is not None and verdict.correct
    return SampleText(question=question, answer=answer, completion=line.completion, correct=correct, reason=reason)


def _drawn(measured: Sequence[Measured]) -> list[list[str]]:
    names = list(dict.fromkeys(name for one in measured for name in one.settings))
    return [["", *(one.title for one in measured)]] + [
        [name, *(str(one.settings.get(name, "-")) for one in measured)] for name in names
    ]


def _lives(lives: Sequence[Mapping[str, str]]) -> list[list[str]]:
    names = list(dict.fromkeys(name for life in lives for name in life))
    return [names, *([life.get(name, "-") for name in names] for life in lives)]


def _percent(found: Estimate) -> str:
    return f"{100 * found.value:.1f} % [{100 * found.low:.1f}, {100 * found.high:.1f}]"
