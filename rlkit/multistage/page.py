"""The report of a pipeline: its table, and one curve of accuracy over the steps of all stages."""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape
from pathlib import Path

from rlkit.multistage.ledger import StageRow
from rlkit.multistage.stage import Made
from rlkit.multistage.table import HEAD, cells_of
from rlkit.reward_model import STAGE as REWARD_MODEL
from rlkit.watch import read_evaluations, read_metrics
from rlkit.watch.evaluations import wilson
from rlkit.watch.figures import figure
from rlkit.watch.metrics import EVAL, write_atomic
from rlkit.watch.page import page
from rlkit.watch.plots import Interval, Point, Series, interval_plot, line_plot
from rlkit.watch.report import REPORT

CURVES = {"accuracy": "sampled while training", EVAL: "held out"}


def write_page(folder: Path, name: str, rows: Sequence[StageRow], made: Sequence[Made]) -> Path:
    """Writes `folder/report.html` and returns its path."""
    pieces = [_table(rows, made), _curve(rows, made), _milestones(rows, made)]
    path = folder / REPORT
    write_atomic(path, page(f"rlkit: {name}", pieces))
    return path


def curves(made: Sequence[Made]) -> tuple[dict[str, list[Point]], list[int]]:
    """Lays the steps of all stages end to end.

    Returns the points (step, accuracy) of what was sampled while training and of what was held out, and the step at
    which each stage begins.
    """
    points: dict[str, list[Point]] = {key: [] for key in CURVES}
    starts, at = [], 0
    for stage in made:
        starts.append(at)
        inner, last = 0, 0  # a run may have stages of its own, which count anew
        lines = read_metrics(stage.folder)
        scores = any(line["stage"] == REWARD_MODEL for line in lines)  # what it gets right is no answer
        for line in lines:
            is_eval = line["stage"] == EVAL
            if not is_eval:
                inner += last if line["step"] <= last else 0
                last = line["step"]
            if not scores and math.isfinite(line.get("accuracy", math.nan)):
                points[EVAL if is_eval else "accuracy"].append((float(at + inner + last), float(line["accuracy"])))
        at += inner + last
    return points, starts


def _table(rows: Sequence[StageRow], made: Sequence[Made]) -> str:
    head = "".join(f"<th>{escape(title)}</th>" for title in HEAD)
    body = ""
    for row, stage in zip(rows, made, strict=True):
        link = f'<a href="{escape(stage.folder.name)}/{REPORT}">{escape(row.stage)}</a>'
        cells = [link, *(escape(cell) for cell in cells_of(row)[1:])]
        body += f"<tr>{''.join(f'<td>{cell}</td>' for cell in cells)}</tr>"
    return f'<h2>Stages</h2><div class="scroll"><table><tr>{head}</tr>{body}</table></div>'


def _curve(rows: Sequence[StageRow], made: Sequence[Made]) -> str:
    points, starts = curves(made)
    series = [Series(name=CURVES[key], points=found) for key, found in points.items() if found]
    if not series:
        return ""
    begins = ", ".join(f"{row.stage} from step {start:,}" for row, start in zip(rows, starts, strict=True))
    plot = line_plot(series, percent=True)
    return f'<div class="figures">{figure("Accuracy over all stages", "share of completions", begins, plot)}</div>'


def _milestones(rows: Sequence[StageRow], made: Sequence[Made]) -> str:
    shown = []
    for row, stage in zip(rows, made, strict=True):
        for one in read_evaluations(stage.folder)[-1:]:
            low, high = wilson(one.accuracy, one.problems)
            shown.append(Interval(name=row.stage, value=one.accuracy, low=low, high=high))
    if not shown:
        return ""
    note = "the last evaluation of each stage; bars are 95 % intervals"
    return f'<div class="figures">{figure("Held out", "accuracy", note, interval_plot(shown))}</div>'
