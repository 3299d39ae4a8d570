"""Run folders as a stage leaves them, with numbers that can be added up by hand."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow
from pyarrow import parquet

from rlkit.multistage.ledger import StageRow
from rlkit.multistage.stage import Made
from rlkit.watch import write_evaluation
from rlkit.watch.evaluations import Evaluation


def lines(folder: Path, *steps: dict[str, Any]) -> None:
    """Writes metrics.jsonl."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "metrics.jsonl").write_text("".join(json.dumps(step) + "\n" for step in steps))


def evaluated(folder: Path, name: str, accuracy: float, problems: int = 100) -> None:
    """Writes an evaluation behind those that are there."""
    found = Evaluation(
        name=name, step=0, accuracy=accuracy, problems=problems, mean_length=8.0, truncated=0.0, samples=()
    )
    write_evaluation(folder, found)


def shards(folder: Path, sizes: Sequence[int]) -> None:
    """Writes parquet files of so many rows each."""
    (folder / "dataset").mkdir(parents=True)
    for number, size in enumerate(sizes):
        rows = pyarrow.table({"question": [f"{i} + 1" for i in range(size)]})
        parquet.write_table(rows, folder / "dataset" / f"part-{number:05d}.parquet")


def finished(folder: Path) -> Made:
    """An RL stage: 3 steps, 25 % before and 50 % after."""
    lines(
        folder,
        {"stage": "eval", "step": 0, "elapsed_s": 1.0, "name": "before GRPO", "accuracy": 0.25},
        {"stage": "grpo", "step": 1, "elapsed_s": 3.0, "accuracy": 0.25, "tokens": 100},
        {"stage": "grpo", "step": 2, "elapsed_s": 5.0, "accuracy": 0.375, "tokens": 200},
        {"stage": "grpo", "step": 3, "elapsed_s": 7.5, "accuracy": 0.5, "tokens": 300},
        {"stage": "eval", "step": 3, "elapsed_s": 9.25, "name": "after GRPO", "accuracy": 0.5},
    )
    evaluated(folder, "before GRPO", 0.25)
    evaluated(folder, "after GRPO", 0.5)
    return Made(folder=folder)


def row(**values: Any) -> StageRow:
    """A row of which only some numbers matter."""
    given: dict[str, Any] = {
        "stage": "rl",
        "recipe": "grpo",
        "words": ("seed=1",),
        "before": None,
        "after": None,
        "rows": None,
        "tokens": 0,
        "seconds": 0.0,
    }
    return StageRow(**given | values)
