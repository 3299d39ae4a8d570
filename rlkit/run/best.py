"""The model with the lowest held-out loss so far: `best/` in the run's folder, beside the model of the last step."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rlkit.watch.metrics import HELD_OUT, read_metrics

BEST = "best"
"""The folder, inside the output folder."""
SCORE_FILE = "held_out.json"
"""Says, inside it, of which step the model is and what its loss was."""


def is_lowest(folder: Path, stage: str, step: int, loss: float) -> bool:
    """Says whether a loss is lower than all others that the record has.

    The record is cut back to the checkpoint when a run goes on, so that the same steps find the same best again.
    """
    others = [line for line in read_metrics(folder) if (line["stage"], line["step"]) != (stage, step)]
    return math.isfinite(loss) and all(not line.get(HELD_OUT, math.inf) <= loss for line in others)


@contextmanager
def replacing_best(folder: Path) -> Iterator[Path]:
    """Makes a folder to write a model into, which takes the place of `best/` when the block ends: whole, or not at all.

    A process that dies in the block leaves the old one; the next call removes the remains.
    """
    best = folder / BEST
    new, old = (best.with_name(f".{BEST}.{end}") for end in ("new", "replaced"))
    if old.exists() and not best.exists():  # killed between the two renames below
        old.rename(best)
    for remains in (new, old):
        shutil.rmtree(remains, ignore_errors=True)
    yield new
    # A folder that is not empty cannot be renamed over, hence two renames.
    if best.exists():
        best.rename(old)
    new.rename(best)
    shutil.rmtree(old, ignore_errors=True)


def write_score(folder: Path, stage: str, step: int, loss: float) -> None:
    """Notes beside a model what it was chosen by."""
    (folder / SCORE_FILE).write_text(json.dumps({"stage": stage, "step": step, HELD_OUT: loss}) + "\n")
