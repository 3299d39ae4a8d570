"""Keep what each held-out evaluation found as one JSON file in `evaluations/`, and compare them."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import NormalDist

from rlkit.watch.metrics import write_atomic


@dataclass(frozen=True, slots=True, kw_only=True)
class SampleText:
    """One held-out question and what the model wrote.

    Example: `SampleText(question="3 + 4 =", answer="7", completion="7", correct=True, reason="correct")`
    """

    question: str
    answer: str
    completion: str
    correct: bool
    reason: str
    """What the reward said, for example "unparsable: no boxed answer"."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluation:
    """One pass over held-out problems, one completion each.

    Example: `Evaluation(name="before SFT", step=0, accuracy=0.25, problems=128, mean_length=31.5, truncated=0.02,
    samples=())`
    """

    name: str
    """Says when it was made: "before SFT", "after GRPO". A second evaluation of that name replaces the first."""
    step: int
    accuracy: float
    """The share of problems that were solved, 0..1."""
    problems: int
    mean_length: float
    """The mean number of tokens of a completion."""
    truncated: float
    """The share of completions that hit the token limit, 0..1."""
    samples: tuple[SampleText, ...]


def write_evaluation(folder: Path, evaluation: Evaluation) -> None:
    """Writes `folder/evaluations/NN-name.json`; NN is the order in which the names first came up."""
    files = _files(folder)
    names = [json.loads(path.read_text(encoding="utf-8"))["name"] for path in files]
    slug = re.sub(r"[^a-z0-9]+", "-", evaluation.name.lower()).strip("-")
    path = folder / "evaluations" / f"{len(files):03d}-{slug}.json"
    if evaluation.name in names:
        path = files[names.index(evaluation.name)]
    write_atomic(path, json.dumps(asdict(evaluation), indent=1))


def read_evaluations(folder: Path) -> list[Evaluation]:
    """Reads the evaluations of a run, in the order in which they were first made."""
    rows = [json.loads(path.read_text(encoding="utf-8")) for path in _files(folder)]
    return [Evaluation(**row | {"samples": tuple(SampleText(**sample) for sample in row["samples"])}) for row in rows]


def wilson(share: float, n: float, level: float = 0.95) -> tuple[float, float]:
    """Computes the confidence interval of a share that was measured on trials worth `n` independent ones.

    (p + z^2/2n +- z sqrt(p (1 - p) / n + z^2 / 4n^2)) / (1 + z^2/n)    (Wilson 1927; Newcombe 1998, method 3)
    """
    assert n > 0, "an interval needs at least one trial"
    z = NormalDist().inv_cdf(0.5 + level / 2)
    centre = share + z * z / (2 * n)
    reach = z * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    scale = 1 + z * z / n
    return max(0.0, (centre - reach) / scale), min(1.0, (centre + reach) / scale)


def paired(first: Evaluation, last: Evaluation) -> dict[tuple[bool, bool], int]:
    """Counts the questions of both evaluations by whether `first` and `last` had them right."""
    before, after = by_question(first), by_question(last)
    counts = {(a, b): 0 for a in (False, True) for b in (False, True)}
    for key in before.keys() & after.keys():
        counts[before[key].correct, after[key].correct] += 1
    return counts


def by_question(evaluation: Evaluation) -> dict[tuple[str, str], SampleText]:
    """Returns the samples under (question, answer), in the order of the data; a repeated question keeps its last."""
    return {(sample.question, sample.answer): sample for sample in evaluation.samples}


def milestones(evaluations: Sequence[Evaluation], limit: int = 3) -> list[Evaluation]:
    """Chooses at most `limit` evaluations that tell the story.

    These are the ones before and after a stage, or else the first and the last.
    """
    if len(evaluations) <= limit:
        return list(evaluations)
    named = [one for one in evaluations if one.name.startswith(("before ", "after "))]
    pool = named if len(named) > 1 else list(evaluations)
    return pool if len(pool) <= limit else [pool[0], *pool[1 - limit :]]


def _files(folder: Path) -> list[Path]:
    """Lists the files in their order, which is not that of the alphabet once there are more than a thousand."""
    written = (folder / "evaluations").glob("[0-9]*.json")
    return sorted(written, key=lambda path: (int(re.sub(r"\D.*", "", path.name)), path.name))
