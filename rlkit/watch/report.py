"""The report of a run: one HTML file that needs no network and no JavaScript.

It reads metrics.jsonl, evaluations/, warnings.json and config.yaml of the run folder, whichever are there.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from statistics import median
from typing import Any

from rlkit.watch.console import read_warnings, visible
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
from rlkit.watch.metrics import EVAL, LOAD, PART, REASON, read_metrics, write_atomic
from rlkit.watch.plots import RAW_LIMIT, Interval, Series, histogram, interval_plot, line_plot, stacked_plot

__all__ = ["Evaluation", "SampleText", "read_evaluations", "write_evaluation", "write_report"]

Lines = Sequence[Mapping[str, Any]]

_SHOWN, _FOLDED = 8, 16
"""Questions shown at once, and behind a fold: 24 x 3 completions keep the page well below 1 MB."""
_TEXT_LIMIT = 1500
_ROWS_LIMIT = 12
_CURVES_LIMIT = 4
_PHASES = (("sample_s", "sample"), ("score_s", "score"), ("train_s", "train"), ("sync_s", "sync"))


def write_report(folder: Path, title: str) -> Path:
    """Write `folder/report.html` and return its path; also works on a run that is still going."""
    lines = read_metrics(folder)
    evaluations = read_evaluations(folder)
    config = folder / "config.yaml"
    parts = [
        f"<h1>{escape(title)}</h1>",
        _headline(lines, evaluations),
        _alerts(lines, evaluations, read_warnings(folder)),
        _accuracy(evaluations),
        *(_stage(stage, [line for line in lines if line["stage"] == stage]) for stage in _stages(lines)),
        _samples(evaluations),
        _config(config.read_text(encoding="utf-8") if config.exists() else ""),
    ]
    style = Path(__file__).with_name("report.css").read_text(encoding="utf-8")
    page = (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>\n{style}</style></head>\n<body>\n{''.join(parts)}\n</body></html>\n"
    )
    path = folder / "report.html"
    write_atomic(path, page)
    return path


def _stages(lines: Lines) -> list[str]:
    return [stage for stage in dict.fromkeys(line["stage"] for line in lines) if stage != EVAL]


def _headline(lines: Lines, evaluations: Sequence[Evaluation]) -> str:
    tiles = []
    for one in milestones(evaluations):
        low, high = wilson(one.accuracy, one.problems)
        note = f"95 % interval {100 * low:.1f} to {100 * high:.1f}<br>{one.problems} held-out problems"
        tiles.append(_tile(f"accuracy {one.name}", f"{100 * one.accuracy:.1f} %", note, main=True))
    if lines:
        steps = " + ".join(f"{_last_step(lines, stage)} {_title(stage)}" for stage in _stages(lines)) or "no"
        tiles.append(_tile("wall time", _duration(lines[-1]["elapsed_s"]), f"{escape(steps)} steps"))
    parity = [(line["parity"], line["step"]) for line in lines if math.isfinite(line.get("parity", math.nan))]
    if parity:
        worst, step = max(parity)
        tiles.append(_tile("largest parity gap", f"{worst:.1e}", f"nats, at step {step}<br>engine against trainer"))
    return f'<div class="tiles">{"".join(tiles)}</div>' if tiles else '<p class="quiet">Nothing is measured yet.</p>'


def _tile(label: str, value: str, note: str, *, main: bool = False) -> str:
    kind = "tile main" if main else "tile"
    return f'<div class="{kind}"><span>{escape(label)}</span><b>{value}</b><span>{note}</span></div>'


def _alerts(lines: Lines, evaluations: Sequence[Evaluation], warnings: Mapping[str, int]) -> str:
    """What a reader must know before trusting the curves."""
    texts = [f"{text} ({count} times)" if count > 1 else text for text, count in warnings.items()]
    broken = [
        f"{line['stage']} step {line['step']}: {key}"
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
    skipped = sum(line.get("flat_groups", 0) >= line["groups"] for line in steps)
    if skipped:
        texts.append(f"{skipped} of {len(steps)} GRPO steps changed nothing: in every group all rewards were equal.")
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
    figures = [_figure("Accuracy", "problems solved", note, interval_plot(intervals) + _verdicts(evaluations))]
    ends = [one for one in (evaluations[0], evaluations[-1]) if one.samples]
    if len(ends) == 2 and ends[0] is not ends[1]:
        lengths = [(one.name, [float(len(sample.completion)) for sample in one.samples]) for one in ends]
        if min(len(values) for _, values in lengths) >= 20:
            note = f"{len(lengths[0][1])} and {len(lengths[1][1])} kept samples"
            figures.append(_figure("Completion length", "share of completions", note, histogram(lengths, "characters")))
    return f'<h2>Held-out results</h2><div class="figures">{"".join(figures)}</div>'


def _verdicts(evaluations: Sequence[Evaluation]) -> str:
    """Table of what the reward said, by evaluation; "wrong: got 8" counts as "wrong"."""
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
    figures = _grpo_figures(lines) if stage == "grpo" else _training_figures(lines)
    body = "".join(figures)
    note = '<p class="quiet">Dots are single steps, lines their running mean.</p>' if len(lines) > RAW_LIMIT else ""
    return f'<h2>{escape(_title(stage))}</h2>{note}<div class="figures">{body}</div>' if body else ""


def _training_figures(lines: Lines) -> list[str]:
    return [
        _curve(lines, "Loss", {"loss": "loss"}, "nats per token", "cross-entropy of the trained tokens"),
        _curve(lines, "Entropy", {"entropy": "entropy"}, "nats per token", "of the model, on the trained tokens"),
        _curve(lines, "Accuracy", {"accuracy": "accuracy"}, "share of the batch", percent=True),
        _curve(lines, "Gradient norm", {"grad_norm": "norm"}, "L2 norm", "before clipping", log=True),
        *_load_figures(lines),
        _curve(lines, "Learning rate", {"lr": "lr"}, "per step"),
        _curve(lines, "Speed", {"tok_s": "training"}, "tokens per second"),
    ]


def _grpo_figures(lines: Lines) -> list[str]:
    flat = [
        dict(line) | {"flat_share": line.get("flat_groups", 0) / line["groups"]} for line in lines if line.get("groups")
    ]
    gaps = {"parity": "after sync", "logprob_gap": "in training"}
    speed = {"sample_tok_s": "sampling", "train_tok_s": "training"}
    latency = {"reward_p50_s": "median", "reward_p99_s": "99th percentile"}
    kl_note = "policy against reference, on the sampled tokens"
    return [
        _curve(lines, "Reward and accuracy", {"reward": "reward", "accuracy": "accuracy"}, "mean of the step"),
        _parts(lines),
        _reasons(lines),
        _curve(lines, "Reward time", latency, "seconds", "that the reward worked on a rollout", log=True),
        _curve(lines, "Completion length", {"length": "tokens"}, "tokens", "mean of the step's rollouts"),
        _curve(lines, "KL divergence", {"kl": "KL"}, "nats per token", kl_note),
        _curve(lines, "Entropy", {"entropy": "entropy"}, "nats per token", "of the policy, on the sampled tokens"),
        _curve(lines, "Clipped tokens", {"clip_fraction": "clipped"}, "share of tokens", percent=True),
        _curve(flat, "Flat groups", {"flat_share": "flat"}, "share of groups", "all rewards equal", percent=True),
        _curve(lines, "Parity", gaps, "nats", "largest log-prob difference between engine and trainer", log=True),
        _curve(lines, "Gradient norm", {"grad_norm": "norm"}, "L2 norm", "before clipping", log=True),
        *_load_figures(lines),
        _phases(lines),
        _curve(lines, "Speed", speed, "tokens per second"),
    ]


def _load_figures(lines: Lines) -> list[str]:
    """How evenly the experts are used: the busiest one of each layer, or of the worst and the median of many layers."""
    layers = list(dict.fromkeys(key for line in lines for key in line if key.startswith(f"{LOAD}/")))
    if len(layers) <= _CURVES_LIMIT:
        names, busiest = {key: f"layer {key.partition('/')[2]}" for key in layers}, lines
    else:
        names = {LOAD: "worst layer", "median": "median layer"}
        busiest = [dict(line) | {"median": median(line[key] for key in layers)} for line in lines if layers[0] in line]
    even = {"mean_violation": "mean violation", "load_entropy": "entropy"}
    note = "means over the layers; even: violation 0, entropy 1"
    return [
        _curve(busiest, "Expert load", names, "busiest expert / mean", "tokens of the step; even: 1"),
        _curve(lines, "Evenness of the load", even, "of the experts", note),
    ]


def _curve(
    lines: Lines, title: str, keys: Mapping[str, str], unit: str, note: str = "", *,
    log: bool = False, percent: bool = False,
) -> str:  # fmt: skip
    series = []
    for key, name in keys.items():
        points = [(float(line["step"]), float(line[key])) for line in lines if math.isfinite(line.get(key, math.nan))]
        if points:
            series.append(Series(name=name, points=points))
    if not series:
        return ""
    zeros = sum(y <= 0 for one in series for _, y in one.points) if log else 0
    notes = [note] if note else []
    exact = "lr" in keys  # a schedule has no noise to smooth away
    notes += [f"{zeros} exact zeros not shown"] if zeros else []
    svg = line_plot(series, log=log, percent=percent, raw_limit=math.inf if exact else RAW_LIMIT)
    return _figure(title, unit, "; ".join(notes), svg)


def _parts(lines: Lines) -> str:
    """Curves of what a composite reward is made of."""
    keys = dict.fromkeys(key for line in lines for key in line if key.startswith(PART))
    names = {key: key.removeprefix(PART) for key in list(keys)[:_CURVES_LIMIT]}
    return _curve(lines, "Parts of the reward", names, "mean of the step", "before their weights")


def _reasons(lines: Lines) -> str:
    """Curves of the most frequent verdicts, as shares of all that were given a reason."""
    counted = [{key: line[key] for key in line if key.startswith(REASON)} for line in lines]
    common = sum((Counter(counts) for counts in counted), Counter()).most_common(_CURVES_LIMIT)
    shares = [
        {"step": line["step"]} | {key: counts.get(key, 0) / sum(counts.values()) for key, _ in common}
        for line, counts in zip(lines, counted, strict=True)
        if counts
    ]
    names = {key: key.removeprefix(REASON) for key, _ in common}
    return _curve(shares, "Verdicts", names, "share of rollouts", "what the reward said", percent=True)


def _phases(lines: Lines) -> str:
    whole = [line for line in lines if any(math.isfinite(line.get(key, math.nan)) for key, _ in _PHASES)]
    if not whole:
        return ""
    series = []
    for key, name in _PHASES:
        times = [(float(line["step"]), float(line.get(key, 0.0))) for line in whole]
        series.append(Series(name=name, points=[(x, y if math.isfinite(y) else 0.0) for x, y in times]))
    return _figure("Time of a step", "seconds", "by phase; labels: mean over the run", stacked_plot(series))


def _figure(title: str, unit: str, note: str, body: str) -> str:
    heading = f"<h3>{escape(title)} <small>{escape(unit)}</small></h3>"
    return f"<figure><figcaption>{heading}<span>{escape(note)}</span></figcaption>{body}</figure>"


def _samples(evaluations: Sequence[Evaluation]) -> str:
    """The same questions side by side, in the order of the data set."""
    shown = [one for one in milestones(evaluations) if one.samples]
    if not shown:
        return ""
    tables = [by_question(one) for one in shown]
    keys = [key for key in tables[0] if all(key in table for table in tables)]
    rows = [
        f'<div class="sample"><p class="question"><b>{_clip(question)}</b> '
        f'<span class="quiet">(answer: {_clip(answer)})</span></p><div class="answers">'
        + "".join(_answer(one.name, table[question, answer]) for one, table in zip(shown, tables, strict=True))
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


def _answer(name: str, sample: SampleText) -> str:
    kind, word = ("answer correct", "right") if sample.correct else ("answer", "wrong")
    detail = sample.reason.removeprefix("correct").removeprefix("wrong").lstrip(": ")
    reason = f" ({_clip(detail)})" if detail else ""
    return (
        f'<div class="{kind}"><header>{escape(name)}: <b>{word}</b>{reason}</header>'
        f"<pre>{_clip(sample.completion) or '(empty)'}</pre></div>"
    )


def _config(text: str) -> str:
    fold = f"<details><summary>config.yaml, resolved</summary><pre>{escape(text)}</pre></details>"
    return f"<h2>Configuration</h2>{fold}" if text else ""


def _clip(text: str) -> str:
    """Text of the model, made harmless and bounded."""
    rest = len(text) - _TEXT_LIMIT
    return escape(visible(text[:_TEXT_LIMIT])) + (f" ... ({rest:,} more characters)" if rest > 0 else "")


def _title(stage: str) -> str:
    return {"sft": "SFT", "grpo": "GRPO"}.get(stage, stage.replace("_", " "))


def _last_step(lines: Lines, stage: str) -> int:
    return max(line["step"] for line in lines if line["stage"] == stage)


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"
