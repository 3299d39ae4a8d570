"""The figures of one stage: numbers that are known have a title, a unit and a place, every other number has a curve.

What is drawn is told by the numbers that a stage recorded, never by its name, which a recipe chooses. A new loss or a
new kind of stage therefore needs no line here to be seen. A number like `max_violation/3` is a detail of the number
before its slash, here of layer 3, and is not drawn alone where that one is there.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from statistics import median
from typing import Any

from rlkit.watch.metrics import HELD_OUT, LOAD, PART, REASON, RESERVED
from rlkit.watch.plots import RAW_LIMIT, Series, line_plot, stacked_plot

Lines = Sequence[Mapping[str, Any]]
"""Lines of metrics.jsonl, of one stage."""
CURVES = 4
"""Curves that one figure can hold, each with a colour of its own."""
LOG = "log/"
"""Numbers that a reward logs start with this."""
_PHASES = ("sample_s", "score_s", "train_s", "sync_s")
_MOST_PHASES = 6
_MOST_FIGURES = 8
"""Figures of the numbers that rewards log, and members of an unknown family that are drawn one by one."""
_WIDE = 1000.0
"""Largest over smallest value above which a number that we know nothing of is drawn on a log axis."""
_COUNTED = frozenset({"weight_version", "flat_groups"})
"""Numbers without a curve: the step itself, and what is drawn as a share of the groups."""


def stage_figures(lines: Lines) -> tuple[list[str], dict[str, float]]:
    """The figures of a stage, as HTML, and the numbers that never changed, which need a word and no curve.

    What completions were worth comes first, how fast it went last, and between them what was learned.
    """
    stage = _Stage(lines)
    figures = [*_judged(stage), *_learned(stage), *_experts(stage), *_time(stage)]
    left = [key for key in stage.family("") if key not in RESERVED | _COUNTED | stage.drawn]
    same = {key: lines[0][key] for key in sorted(left) if "/" not in key and stage.is_constant(key)}
    figures += _others(stage, [key for key in left if key not in same])
    return [figure for figure in figures if figure], same


def figure(title: str, unit: str, note: str, body: str) -> str:
    """A figure with its heading, as HTML."""
    heading = f"<h3>{escape(title)} <small>{escape(unit)}</small></h3>"
    return f"<figure><figcaption>{heading}<span>{escape(note)}</span></figcaption>{body}</figure>"


@dataclass
class _Stage:
    """The lines of a stage, and which of its numbers have a figure by now."""

    lines: Lines
    drawn: set[str] = field(default_factory=set)

    def has(self, key: str) -> bool:
        """Whether any step recorded this number."""
        return any(key in line for line in self.lines)

    def is_constant(self, key: str) -> bool:
        """Whether a number is there at each of several steps, and always the same."""
        return len(self.lines) > 1 and len({line.get(key) for line in self.lines}) == 1

    def family(self, prefix: str) -> list[str]:
        """The numbers whose names start like this, in the order in which they first came."""
        return list(dict.fromkeys(key for line in self.lines for key in line if key.startswith(prefix)))

    def curve(
        self, title: str, keys: Mapping[str, str], unit: str, note: str = "", *, log: bool = False,
        percent: bool = False, exact: bool = False, lines: Lines | None = None,
    ) -> str:  # fmt: skip
        """Draws some numbers under the names given; "" if none of them was recorded.

        `lines` are others in the place of the stage's own; `exact` says that there is no noise to smooth away.
        """
        self.drawn |= keys.keys()
        series = []
        for key, name in keys.items():
            found = [(line["step"], line.get(key, math.nan)) for line in (self.lines if lines is None else lines)]
            if points := [(float(step), float(value)) for step, value in found if math.isfinite(value)]:
                series.append(Series(name=name, points=points))
        if not series:
            return ""
        zeros = sum(y <= 0 for one in series for _, y in one.points) if log else 0
        notes = [*([note] if note else []), *([f"{zeros} exact zeros not shown"] if zeros else [])]
        svg = line_plot(series, log=log, percent=percent, raw_limit=math.inf if exact else RAW_LIMIT)
        return figure(title, unit, "; ".join(notes), svg)


def _judged(stage: _Stage) -> list[str]:
    """What completions were worth, and what the rewards said of them."""
    latency = {"reward_p50_s": "median", "reward_p99_s": "99th percentile"}
    parts = stage.family(PART)
    flat = [
        {"step": line["step"], "flat": line.get("flat_groups", 0) / line["groups"]}
        for line in stage.lines
        if line.get("groups")
    ]
    cut = any(line.get("truncated") for line in stage.lines)
    return [
        stage.curve("Reward and accuracy", {"reward": "reward", "accuracy": "accuracy"}, "mean of the step")
        if stage.has("reward")
        else stage.curve("Accuracy", {"accuracy": "accuracy"}, "share of the batch", percent=True),
        *(
            stage.curve(
                "Parts of the reward", {key: key.removeprefix(PART) for key in few}, "mean of the step",
                "before their weights",
            )
            for few in _fours(parts)
        ),
        _reasons(stage),
        stage.curve("Reward time", latency, "seconds", "that the reward worked on a rollout", log=True),
        stage.curve("Flat groups", {"flat": "flat"}, "share of groups", "all rewards equal", percent=True, lines=flat),
        stage.curve("Cut off", {"truncated": "cut off"}, "share of rollouts", "at the token limit", percent=True)
        if cut
        else "",
    ]  # fmt: skip


def _learned(stage: _Stage) -> list[str]:
    """What the optimiser did, and how far it moved the policy."""
    policy = stage.has("reward")
    tokens = "of the policy, on the sampled tokens" if policy else "of the model, on the trained tokens"
    gaps = {"parity": "after sync", "logprob_gap": "in training"}
    return [
        stage.curve("Completion length", {"length": "tokens"}, "tokens", "mean of the step's rollouts"),
        _loss(stage, policy),
        stage.curve(
            "Held-out loss", {HELD_OUT: "loss"}, "nats per token", "on demonstrations that are not shown", exact=True
        ),
        stage.curve("KL divergence", {"kl": "KL"}, "nats per token", "policy against reference, on the sampled tokens"),
        stage.curve(
            "Reverse KL", {"reverse_kl": "KL"}, "nats per token", "student against teacher, on the student's tokens"
        ),
        stage.curve("Entropy", {"entropy": "entropy"}, "nats per token", tokens),
        stage.curve("Clipped tokens", {"clip_fraction": "clipped"}, "share of tokens", percent=True),
        stage.curve("Parity", gaps, "nats", "largest log-prob difference between engine and trainer", log=True),
        stage.curve(
            "Parity on average",
            {
                "parity_mean": "engine and trainer",
                "parity_trained": "with activations as trained",
                "parity_bf16": "one more rounding to bf16",
            },
            "nats",
            "mean log-prob difference after a sync, where FP8 is involved",
            log=True,
        )
        if stage.has("parity_bf16")
        else "",
        stage.curve("Gradient norm", {"grad_norm": "norm"}, "L2 norm", "before clipping", log=True),
        stage.curve("Learning rate", {"lr": "lr"}, "per step", exact=True),
        stage.curve(
            "Multi-token prediction", {"mtp_loss": "loss"}, "nats per token", "mean over its depths, before its weight"
        ),
    ]  # fmt: skip


def _loss(stage: _Stage, policy: bool) -> str:
    if stage.has("entropy") and not policy:
        return stage.curve("Loss", {"loss": "loss"}, "nats per token", "cross-entropy of the trained tokens")
    return stage.curve("Loss", {"loss": "loss"}, "what the optimiser lowers")


def _experts(stage: _Stage) -> list[str]:
    """How evenly the experts are used: the busiest of each layer, or of many layers in the worst and in the median."""
    layers, lines = stage.family(f"{LOAD}/"), stage.lines
    if len(layers) <= CURVES:
        names = {key: f"layer {key.partition('/')[2]}" for key in layers}
    else:
        names = {LOAD: "worst layer", "median": "median layer"}
        lines = [dict(line) | {"median": median(line[key] for key in layers)} for line in lines if layers[0] in line]
    stage.drawn.add(LOAD)
    even = {"mean_violation": "mean violation", "load_entropy": "entropy"}
    return [
        stage.curve("Expert load", names, "busiest expert / mean", "tokens of the step; even: 1", lines=lines),
        stage.curve(
            "Evenness of the load", even, "of the experts", "means over the layers; even: violation 0, entropy 1"
        ),
    ]


def _time(stage: _Stage) -> list[str]:
    """Where the time of a step goes."""
    speeds = {
        key: key.removesuffix("tok_s").rstrip("_") or "train" for key in stage.family("") if key.endswith("tok_s")
    }
    return [
        _phases(stage),
        stage.curve("Speed", speeds, "tokens per second"),
        stage.curve("Tokens", {"tokens": "tokens"}, "of a batch", "prompts and completions"),
        stage.curve(
            "Drafts accepted", {"drafts_accepted": "accepted"}, "share of drafts",
            "tokens that speculative decoding proposed and the model agreed to", percent=True,
        ),
    ]  # fmt: skip


def _others(stage: _Stage, names: Sequence[str]) -> list[str]:
    """Draws every number that has no figure yet: alone, or with the rest of its family."""
    figures = [_unknown(stage, key, key, "as recorded") for key in names if "/" not in key]
    for family in dict.fromkeys(key.partition("/")[0] for key in names if "/" in key):
        members = [key for key in names if key.startswith(f"{family}/")]
        if stage.has(family) or f"{family}/" == REASON:
            continue  # they are details of a number that has its place
        if f"{family}/" == LOG:
            shown = members[:_MOST_FIGURES]
            more = f"; {len(members) - len(shown)} more in metrics.jsonl" if members[len(shown) :] else ""
            figures += [_unknown(stage, key, key.removeprefix(LOG), f"logged by the reward{more}") for key in shown]
        elif len(members) <= _MOST_FIGURES:
            for few in _fours(members):
                names_of = {key: key.partition("/")[2] for key in few}
                figures.append(stage.curve(family if len(few) > 1 else few[0], names_of, "as recorded"))
        else:
            figures.append(_range(stage, family, members))
    return figures


def _fours(names: Sequence[str]) -> list[Sequence[str]]:
    return [names[at : at + CURVES] for at in range(0, len(names), CURVES)]


def _unknown(stage: _Stage, key: str, title: str, unit: str) -> str:
    values = [line[key] for line in stage.lines if math.isfinite(line.get(key, math.nan))]
    wide = bool(values) and min(values) > 0 and max(values) / min(values) > _WIDE
    return stage.curve(title, {key: title}, unit, log=wide)


def _range(stage: _Stage, family: str, members: Sequence[str]) -> str:
    """A family of many: its lowest, its median and its highest member of each step."""
    lines = []
    for line in stage.lines:
        if found := [line[key] for key in members if math.isfinite(line.get(key, math.nan))]:
            lines.append({"step": line["step"], "highest": max(found), "median": median(found), "lowest": min(found)})
    keys = {name: name for name in ("highest", "median", "lowest")}
    return stage.curve(family, keys, "as recorded", f"of its {len(members)} members", lines=lines)


def _reasons(stage: _Stage) -> str:
    """Curves of the most frequent verdicts, as shares of all that were given a reason."""
    counted = [{key: line[key] for key in line if key.startswith(REASON)} for line in stage.lines]
    common = sum((Counter(counts) for counts in counted), Counter()).most_common(CURVES)
    shares = [
        {"step": line["step"]} | {key: counts.get(key, 0) / sum(counts.values()) for key, _ in common}
        for line, counts in zip(stage.lines, counted, strict=True)
        if counts
    ]
    names = {key: key.removeprefix(REASON) for key, _ in common}
    return stage.curve("Verdicts", names, "share of rollouts", "what the reward said", percent=True, lines=shares)


def _phases(stage: _Stage) -> str:
    """The seconds of each phase of a step, on top of each other; the four of GRPO first."""
    seconds = [key for key in stage.family("") if key.endswith("_s") and not key.endswith("tok_s")]
    others = [key for key in seconds if key not in (*_PHASES, *RESERVED) and not key.startswith("reward_p")]
    keys = [*(key for key in _PHASES if key in seconds), *others][:_MOST_PHASES]
    whole = [line for line in stage.lines if any(math.isfinite(line.get(key, math.nan)) for key in keys)]
    if not whole:
        return ""
    stage.drawn |= set(keys)
    series = []
    for key in keys:
        times = [(float(line["step"]), float(line.get(key, 0.0))) for line in whole]
        points = [(x, y if math.isfinite(y) else 0.0) for x, y in times]
        series.append(Series(name=key.removesuffix("_s"), points=points))
    return figure("Time of a step", "seconds", "by phase; labels: mean over the run", stacked_plot(series))
