"""What each stage came to, one row in one file of its folder: written when it is done, read by whoever comes later."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from pyarrow import parquet

from rlkit.distill.journal import read_counts
from rlkit.errors import UserError
from rlkit.multistage.origin import Origin, check_origin
from rlkit.multistage.stage import Made
from rlkit.run.job import JOURNAL
from rlkit.watch import read_evaluations
from rlkit.watch.metrics import EVAL, read_metrics, write_atomic
from rlkit.watch.preferences import read_judgements

ROW_FILE = "stage.json"
CLOCK_FILE = "clock.json"
"""When the life of a stage that is at work began, and how long those before it worked."""


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


def start_clock(made: Made, now: float) -> float:
    """Notes that a life of a stage begins `now`, in seconds since 1970, and returns how long earlier ones worked.

    Each counts until it last wrote to the journal of a data job; other stages keep a time of their own.
    """
    clock, journal = made.folder / CLOCK_FILE, made.folder / JOURNAL
    worked = 0.0
    if clock.exists() and journal.exists():
        before = json.loads(clock.read_text(encoding="utf-8"))
        files = [journal, journal.with_name(f"{JOURNAL}-wal")]  # SQLite writes to the second one first
        last = max(file.stat().st_mtime for file in files if file.exists())
        worked = before["worked_s"] + max(0.0, last - before["began"])
    write_atomic(clock, json.dumps({"worked_s": worked, "began": now}) + "\n")
    return worked


def write_row(made: Made, row: StageRow, origin: Origin) -> None:
    """Writes the row of a stage, which says that it is done, and what it was made from."""
    write_atomic(made.folder / ROW_FILE, json.dumps(asdict(row) | asdict(origin), indent=1, ensure_ascii=False) + "\n")


def is_done(made: Made) -> bool:
    """Says whether a stage is done, whatever it was made from."""
    return (made.folder / ROW_FILE).exists()


def read_row(made: Made, origin: Origin) -> StageRow | None:
    """Returns the row of a stage that is done; None for one that is not.

    Raises:
        UserError: if it was made from something else than `origin`.
    """
    if not is_done(made):
        return None
    saved: dict[str, Any] = json.loads((made.folder / ROW_FILE).read_text(encoding="utf-8"))
    if not {"settings", "files"} <= saved.keys():
        raise UserError(
            f"{made.folder / ROW_FILE} does not say what the stage was made from; use another output_dir, or remove "
            "that folder and those behind it"
        )
    before = Origin(settings=saved.pop("settings"), files=saved.pop("files"))
    check_origin(made.folder, before, origin)
    saved["words"] = tuple(saved["words"])
    return StageRow(**saved)


def _tokens(line: Mapping[str, Any]) -> int:
    """Returns the tokens of a step: as it says itself, or as its speeds and seconds do."""
    if "tokens" in line:
        return int(line["tokens"])
    phases = [key.removesuffix("_tok_s") for key in line if key.endswith("_tok_s") and key != "tok_s"]
    return round(sum(line[f"{phase}_tok_s"] * line[f"{phase}_s"] for phase in phases))
