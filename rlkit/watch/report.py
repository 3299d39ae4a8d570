"""Write the report of a run: one HTML file that needs no network and no JavaScript.

It is made of metrics.jsonl, evaluations/, warnings.json and config.yaml of the run folder, whichever are there.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path

from rlkit.watch.console import read_warnings
from rlkit.watch.evaluations import (
    Evaluation,
    SampleText,
    by_question,
    milestones,
    paired,
    read_evaluations,
    wilson,
    write_evaluation,
)
from rlkit.watch.figures import Lines, figure, stage_figures
from rlkit.watch.metrics import EVAL, HELD_OUT, named, read_metrics, write_atomic
from rlkit.watch.page import answer_box, clip, page, settings_fold, tile
from rlkit.watch.plots import RAW_LIMIT, Interval, histogram, interval_plot
from rlkit.watch.preferences import hacked, preference_section, read_judgements

__all__ = ["Evaluation", "SampleText", "read_evaluations", "write_evaluation", "write_report"]

REPORT = "report.html"
_SHOWN, _FOLDED = 8, 16
"""Questions shown at once, and behind a fold: 24 x 3 completions keep the page well below 1 MB."""
_ROWS_LIMIT = 12


def write_report(folder: Path, title: str) -> Path:
    """Writes `folder/report.html` and returns its path; also works on a run that is still going."""
    lines = read_metrics(folder)
    evaluations = read_evaluations(folder)
    config = folder / "config.yaml"
    parts = [
        _headline(lines, evaluations),
        _alerts(lines, evaluations, read_warnings(folder)),
        _accuracy(evaluations),
        preference_section(read_judgements(folder)),
        *(_stage(stage, [line for line in lines if line["stage"] == stage]) for stage in _stages(lines)),
        _samples(evaluations),
        settings_fold(config.read_text(encoding="utf-8") if config.exists() else ""),
    ]
    path = folder / REPORT
    write_atomic(path, page(title, parts))
    return path


def _stages(lines: Lines) -> list[str]:
    return [stage for stage in dict.fromkeys(line["stage"] for line in lines) if stage != EVAL]


def _headline(lines: Lines, evaluations: Sequence[Evaluation]) -> str:
    tiles = []
    for one in milestones(evaluations):
        low, high = wilson(one.accuracy, one.problems)
        note = f"95 % interval {100 * low:.1f} to {100 * high:.1f}<br>{one.problems} held-out problems"
        tiles.append(tile(f"accuracy {one.name}", f"{100 * one.accuracy:.1f} %", note, main=True))
    if lines:
        steps = " + ".join(f"{_last_step(lines, stage)} {named(stage)}" for stage in _stages(lines)) or "no"
        tiles.append(tile("wall time", _duration(lines[-1]["elapsed_s"]), f"{escape(steps)} steps"))
    losses = [line for line in lines if math.isfinite(line.get(HELD_OUT, math.nan))]
    if losses:
        best = min(losses, key=lambda line: line[HELD_OUT])
        place = f"nats per token, at {escape(named(best['stage']))} step {best['step']}<br>that model is in best/"
        tiles.append(tile("lowest held-out loss", f"{best[HELD_OUT]:.4f}", place))
    gaps = [line for line in lines if math.isfinite(line.get("parity", math.nan))]
    if gaps:
        worst = max(gaps, key=lambda line: line["parity"])
        place = f"nats, at {escape(named(worst['stage']))} step {worst['step']}<br>engine against trainer"
        tiles.append(tile("largest parity gap", f"{worst['parity']:.1e}", place))
    return f'<div class="tiles">{"".join(tiles)}</div>' if tiles else '<p class="quiet">Nothing is measured yet.</p>'


def _alerts(lines: Lines, evaluations: Sequence[Evaluation], warnings: Mapping[str, int]) -> str:
    """Says what a reader must know before trusting the curves."""
    texts = [f"{text} ({count} times)" if count > 1 else text for text, count in warnings.items()]
    broken = [
        f"{named(line['stage'])} step {line['step']}: {key}"
        for line in lines
        for key, value in line.items()
        if isinstance(value, float) and not math.isfinite(value)
    ]
    if broken:
        texts.append(f"{len(broken)} values are not finite and are left out of the plots; the first is {broken[0]}.")
    steps = [line for line in lines if line.get("groups")]
    masked = sum(line.get("masked", 0) for line in steps)
    if masked:
        texts.append(f"{masked} rollouts had no verdict and were left out of their groups.")
    for stage in _stages(steps):
        counts = [line.get("flat_groups", 0) >= line["groups"] for line in steps if line["stage"] == stage]
        if skipped := sum(counts):
            which = f"{skipped} of {len(counts)} {named(stage)} steps"
            texts.append(f"{which} changed nothing: in every group all rewards were equal.")
    for stage in _stages(lines):
        if words := hacked([line for line in lines if line["stage"] == stage]):
            texts.append(f"{named(stage)}: {words}.")
    texts += [
        f"{one.name}: {one.truncated:.0%} of the completions hit the token limit; accuracy counts them as they stand."
        for one in evaluations
        if one.truncated > 0.1
    ]
    items = "".join(f"<li>{escape(text)}</li>" for text in texts)
    return f'<h2>Warnings</h2><ul class="alerts">{items}</ul>' if items else ""


def _accuracy(evaluations: Sequence[Evaluation]) -> str:
    if not evaluations:
        return ""
    rows = evaluations if len(evaluations) <= _ROWS_LIMIT else [evaluations[0], *evaluations[1 - _ROWS_LIMIT :]]
    intervals = []
    for one in rows:
        low, high = wilson(one.accuracy, one.problems)
        intervals.append(Interval(name=one.name, value=one.accuracy, low=low, high=high))
    note = "bars: 95 % Wilson interval; the table is what the reward said of the kept samples"
    figures = [figure("Accuracy", "problems solved", note, interval_plot(intervals) + _verdicts(evaluations))]
    shown = [one for one in milestones(evaluations) if len(one.samples) >= 20]
    if len(shown) > 1:
        lengths = [(one.name, [float(len(sample.completion)) for sample in one.samples]) for one in shown]
        note = "of the completions that evaluations/ keeps"
        figures.append(figure("Completion length", "share of completions", note, histogram(lengths, "characters")))
    return f'<h2>Held-out results</h2><div class="figures">{"".join(figures)}</div>'


def _verdicts(evaluations: Sequence[Evaluation]) -> str:
    """Counts what the reward said in each evaluation; "wrong: got 8" counts as "wrong"."""
    shown = [one for one in milestones(evaluations) if one.samples]
    if not shown:
        return ""
    counts = [Counter(sample.reason.split(":")[0].strip() for sample in one.samples) for one in shown]
    common = [reason for reason, _ in sum(counts, Counter()).most_common(8)]
    head = "".join(f"<th>{escape(one.name)}</th>" for one in shown)
    body = ""
    for reason in common:
        cells = "".join(f"<td>{100 * count[reason] / count.total():.1f} %</td>" for count in counts)
        body += f"<tr><td>{escape(reason[:60]) or '(none)'}</td>{cells}</tr>"
    return f'<div class="scroll"><table><tr><th>verdict</th>{head}</tr>{body}</table></div>'


def _stage(stage: str, lines: Lines) -> str:
    figures, constants = stage_figures(lines)
    same = ", ".join(f"{key} {value:.6g}" for key, value in constants.items())
    notes = ["Dots are single steps, lines their running mean."] if len(lines) > RAW_LIMIT else []
    notes += [f"The same at every step: {same}."] if same else []
    note = f'<p class="quiet">{escape(" ".join(notes))}</p>' if notes else ""
    body = f'{note}<div class="figures">{"".join(figures)}</div>'
    return f"<h2>{escape(named(stage))}</h2>{body}" if figures or same else ""


def _samples(evaluations: Sequence[Evaluation]) -> str:
    """Shows what the model wrote at each milestone to the same questions, in the order of the data set."""
    shown = [one for one in milestones(evaluations) if one.samples]
    if not shown:
        return ""
    tables = [by_question(one) for one in shown]
    keys = [key for key in tables[0] if all(key in table for table in tables)]
    rows = [
        f'<div class="sample"><p class="question"><b>{clip(question)}</b> '
        f'<span class="quiet">(answer: {clip(answer)})</span></p><div class="answers">'
        + "".join(answer_box(one.name, table[question, answer]) for one, table in zip(shown, tables, strict=True))
        + "</div></div>"
        for question, answer in keys[: _SHOWN + _FOLDED]
    ]
    note = f"The first {min(_SHOWN, len(keys))} of {len(keys)} questions, in the order of the data, not selected."
    if len(shown) > 1:
        moves = paired(shown[0], shown[-1])
        note += (
            f" From {shown[0].name} to {shown[-1].name}: {moves[False, True]} went from wrong to right, "
            f"{moves[True, False]} from right to wrong, {moves[True, True]} stayed right, {moves[False, False]} wrong."
        )
    more = "".join(rows[_SHOWN:])
    fold = f"<details><summary>{len(rows) - _SHOWN} more questions</summary>{more}</details>" if more else ""
    return f"<h2>Samples</h2><p>{escape(note)}</p>{''.join(rows[:_SHOWN])}{fold}"


def _last_step(lines: Lines, stage: str) -> int:
    return max(line["step"] for line in lines if line["stage"] == stage)


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"
