"""What a reward model says of held-out preferences: accuracy, calibration, and what length has to do with it."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from html import escape
from pathlib import Path
from statistics import fmean, variance
from typing import NamedTuple

from rlkit.watch.calibration import Bin, calibration_curve, expected_calibration_error
from rlkit.watch.evaluations import wilson
from rlkit.watch.figures import Lines, figure
from rlkit.watch.metrics import PART, write_atomic
from rlkit.watch.plots import Series, line_plot

FOLDER = "preferences"
"""Where they are, inside the output folder."""
MODEL = f"{PART}model"
"""The number of a step that a composite gives a reward model's score."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Judgements:
    """The scores of held-out samples. Without labels they are pairs: chosen, rejected, chosen, rejected."""

    name: str
    step: int
    scores: tuple[float, ...]
    lengths: tuple[int, ...]
    """Tokens of each sample, prompt included."""
    labels: tuple[float, ...]
    """How good each sample is, 0 to 1; () for pairs."""

    @property
    def margins(self) -> list[float]:
        """How sure the model is that the chosen sample, or a good one, is better: the logit of its probability."""
        if self.labels:
            return list(self.scores)
        return [chosen - rejected for chosen, rejected in zip(self.scores[::2], self.scores[1::2], strict=True)]

    @property
    def right(self) -> list[float]:
        """1 where the model agrees with the preference or label, 0 where it does not; equal scores do not."""
        labels = self.labels or (1.0,) * len(self.margins)
        return [float((margin > 0) == (label > 0.5)) for margin, label in zip(self.margins, labels, strict=True)]

    @property
    def accuracy(self) -> float:
        """The share of pairs, or of labels, that the model has right."""
        return fmean(self.right)

    def curve(self) -> list[Bin]:
        """The calibration curve: p = sigmoid(|margin|) against the share that is right."""
        return calibration_curve([1 / (1 + math.exp(-min(abs(m), 500.0))) for m in self.margins], self.right)

    def numbers(self) -> dict[str, float]:
        """Accuracy, calibration error and length bias, as they are recorded."""
        found = {"accuracy": self.accuracy, "ece": expected_calibration_error(self.curve()), "pairs": len(self.right)}
        found["length_correlation"] = correlation(self.scores, [float(length) for length in self.lengths])
        for name, rights in self.by_length().items():
            if rights:
                found[f"accuracy/{name}"] = fmean(rights)
        return found

    def summary(self) -> str:
        """The numbers in a line."""
        numbers = self.numbers()
        words = [f"accuracy {self.accuracy:.1%} of {len(self.right)}"]
        for key, chosen in (("accuracy/chosen_shorter", "shorter"), ("accuracy/chosen_longer", "longer")):
            if key in numbers:
                words.append(f"{numbers[key]:.1%} where the chosen is {chosen}")
        words.append(f"expected calibration error {numbers['ece']:.3f}")
        return ", ".join([*words, f"correlation with length {numbers['length_correlation']:+.2f}"])

    def by_length(self) -> dict[str, list[float]]:
        """What is right of the pairs whose chosen sample is the shorter one, and the longer one; {} for labels."""
        if self.labels:
            return {}
        pairs = list(zip(self.lengths[::2], self.lengths[1::2], self.right, strict=True))
        return {
            "chosen_shorter": [right for chosen, rejected, right in pairs if chosen < rejected],
            "chosen_longer": [right for chosen, rejected, right in pairs if chosen > rejected],
        }


def correlation(xs: Sequence[float], ys: Sequence[float]) -> float:
    """Pearson's r; 0 where one of the two never changes."""
    x_mean, y_mean = fmean(xs), fmean(ys)
    spread = math.sqrt(sum((x - x_mean) ** 2 for x in xs) * sum((y - y_mean) ** 2 for y in ys))
    return sum((x - x_mean) * (y - y_mean) for x, y in zip(xs, ys, strict=True)) / spread if spread else 0.0


def write_judgements(folder: Path, judgements: Judgements) -> None:
    """Writes `folder/preferences/STEP-name.json`."""
    slug = re.sub(r"[^a-z0-9]+", "-", judgements.name.lower()).strip("-")
    write_atomic(folder / FOLDER / f"{judgements.step:06d}-{slug}.json", json.dumps(asdict(judgements)))


def read_judgements(folder: Path) -> list[Judgements]:
    """Reads what a run has judged, in the order of its steps; "before" comes before "after"."""
    found = [json.loads(path.read_text(encoding="utf-8")) for path in (folder / FOLDER).glob("*.json")]
    read = [Judgements(**row | {key: tuple(row[key]) for key in ("scores", "lengths", "labels")}) for row in found]
    return sorted(read, key=lambda one: (one.step, one.name.startswith("after")))


def preference_section(judged: Sequence[Judgements]) -> str:
    """The part of a report about a reward model, as HTML; "" for a run that trains none."""
    if not judged:
        return ""
    last = judged[-1]
    points = [(100 * each.confidence, each.accuracy) for each in last.curve()]
    even = [(50.0, 0.5), (100.0, 1.0)]
    curves = [Series(name="measured", points=points), Series(name="perfect", points=even)]
    note = f"{last.name}: of pairs that the model is so sure of, how many it has right; ECE {last.numbers()['ece']:.3f}"
    plot = line_plot(curves, percent=True, x_name="confidence, %")
    counts = ", ".join(f"{each.size} at {each.confidence:.0%}" for each in last.curve())
    figures = figure("Calibration", "share that is right", note, plot + f'<p class="quiet">{escape(counts)}</p>')
    return f'<h2>Held-out preferences</h2>{_table(judged)}<div class="figures">{figures}</div>'


def _table(judged: Sequence[Judgements]) -> str:
    """A column for each time that the held-out preferences were judged."""
    columns = [one.numbers() for one in judged]
    names = {
        "accuracy": "accuracy",
        "accuracy/chosen_shorter": "accuracy where the chosen is shorter",
        "accuracy/chosen_longer": "accuracy where the chosen is longer",
        "ece": "expected calibration error",
        "length_correlation": "correlation of score and length",
        "pairs": "judged",
    }
    head = "".join(f"<th>{escape(one.name)}</th>" for one in judged)
    body = ""
    for key, name in names.items():
        if any(key in column for column in columns):
            cells = "".join(f"<td>{_cell(key, column, one)}</td>" for column, one in zip(columns, judged, strict=True))
            body += f"<tr><td>{name}</td>{cells}</tr>"
    return f'<div class="scroll"><table><tr><th></th>{head}</tr>{body}</table></div>'


def _cell(key: str, column: dict[str, float], judged: Judgements) -> str:
    if key not in column:
        return "-"
    if key == "pairs":
        return f"{column[key]:.0f}"
    if not key.startswith("accuracy"):
        return f"{column[key]:.3f}"
    rights = judged.right if key == "accuracy" else judged.by_length()[key.removeprefix("accuracy/")]
    low, high = wilson(column[key], len(rights))
    return f"{column[key]:.1%} of {len(rights)} [{100 * low:.1f}, {100 * high:.1f}]"


def hacked(lines: Lines) -> str:
    """Says that a stage's reward model is worth less and less: its score rose and the rule's beside it fell; else "".

    Compared are the first and the last quarter of the steps, by two standard errors.
    """
    rule = next((key for line in lines for key in line if key.startswith(PART) and key != MODEL), "")
    both = [(line[MODEL], line[rule]) for line in lines if MODEL in line and rule in line]
    quarter = len(both) // 4
    if quarter < 2:
        return ""
    model, true = (_change(values[:quarter], values[-quarter:]) for values in zip(*both, strict=True))
    if model.sure > 0 > true.sure:
        return (
            f"the reward model's score rose from {model.first:.3g} to {model.last:.3g} while {rule.removeprefix(PART)} "
            f"fell from {true.first:.3g} to {true.last:.3g}: the policy learns what the reward model gets wrong"
        )
    return ""


class _Change(NamedTuple):
    first: float
    last: float
    sure: int
    """1 for a rise and -1 for a fall that chance does not explain, else 0."""


def _change(first: Sequence[float], last: Sequence[float]) -> _Change:
    before, after = fmean(first), fmean(last)
    error = math.sqrt((variance(first) + variance(last)) / len(first))
    sure = 0 if abs(after - before) <= 2 * error else 1 if after > before else -1
    return _Change(before, after, sure)
