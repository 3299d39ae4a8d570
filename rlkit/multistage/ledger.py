"""What each stage came to, one row in one file of its folder: written when it is done, read by whoever comes later."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from pyarrow import parquet

from rlkit.distill.journal import read_counts
from rlkit.errors import UserError
from rlkit.multistage.stage import Made
from rlkit.run.job import JOURNAL
from rlkit.watch import read_evaluations
from rlkit.watch.metrics import EVAL, read_metrics, write_atomic
from rlkit.watch.preferences import read_judgements

ROW_FILE = "stage.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class StageRow:
    """One finished stage.

    Example: `StageRow(stage="cold_start", recipe="sft", words=("sft.steps=60",), before=0.0, after=0.52, rows=None,
    tokens=276000, seconds=61.0)`
    """

    stage: str
    recipe: str
    words: tuple[str, ...]
    """The command line that it ran with."""
    before: float | None
    """Held-out accuracy of the model it started from; None where nothing was evaluated."""
    after: float | None
    """Of the model it made; a reward model's is that of held-out pairs, a data job's the share of right answers."""
    rows: int | None
    """Rows that a data job kept, or pairs where it makes preferences; None for a stage that trains."""
    tokens: int
    """Tokens that were sampled and learned from."""
    seconds: float
    """Of work that counted: what a kill threw away is not in it."""


def measure(stage: str, recipe: str, words: Sequence[str], made: Made, seconds: float) -> StageRow:
    """Reads a finished stage's folder; `seconds` counts where it kept no time of its own."""
    lines = read_metrics(made.folder)
    measured = [one.accuracy for one in read_evaluations(made.folder) or read_judgements(made.folder)]
    tokens = sum(_tokens(line) for line in lines if line["stage"] != EVAL)
    journal = made.folder / JOURNAL
    if journal.exists():
        counts = read_counts(journal)
        measured, tokens = [counts.correct / max(1, counts.judged)], counts.tokens
    shards = sorted((made.preferences if made.preferences.exists() else made.dataset).glob("*.parquet"))
    return StageRow(
        stage=stage,
        recipe=recipe,
        words=tuple(words),
        before=measured[0] if len(measured) > 1 else None,
        after=measured[-1] if measured else None,
        rows=sum(parquet.read_metadata(shard).num_rows for shard in shards) if shards else None,
        tokens=tokens,
        seconds=lines[-1]["elapsed_s"] if lines else seconds,
    )


def write_row(made: Made, row: StageRow) -> None:
    """Writes the row of a stage, which says that it is done."""
    write_atomic(made.folder / ROW_FILE, json.dumps(asdict(row), indent=1) + "\n")


def read_row(made: Made, words: Sequence[str]) -> StageRow | None:
    """Returns the row of a stage that is done; None for one that is not.

    Raises:
        UserError: if it was done with other settings than `words`.
    """
    file = made.folder / ROW_FILE
    if not file.exists():
        return None
    saved: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    saved["words"] = tuple(saved["words"])
    row = StageRow(**saved)
    if set(row.words) != set(words):
        other = ", ".join(sorted(set(row.words) ^ set(words)))
        raise UserError(
            f"{made.folder} is done, but with other settings ({other}); use another output_dir, or remove that folder "
            "and those behind it"
        )
    return row


def _tokens(line: Mapping[str, Any]) -> int:
    """Returns the tokens of a step: as it says itself, or as its speeds and seconds do."""
    if "tokens" in line:
        return int(line["tokens"])
    phases = [key.removesuffix("_tok_s") for key in line if key.endswith("_tok_s") and key != "tok_s"]
    return round(sum(line[f"{phase}_tok_s"] * line[f"{phase}_s"] for phase in phases))
