"""Checkpoints at step boundaries: a folder appears whole or not at all, and the newest one is where a run goes on."""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path

from rlkit.train.base import Trainer

STATE_FILE = "state.json"
STAGES = ("sft", "grpo")


@dataclass(frozen=True, slots=True, kw_only=True)
class Position:
    """How far a run has come: `step` steps of `stage` are done.

    Example: `Position(stage="grpo", step=20, weight_version=20)`
    """

    stage: str
    step: int
    weight_version: int
    """Of the weights that the engine had."""

    def steps_done(self, stage: str, total: int) -> int:
        """Steps of a stage that need not be run again."""
        mine, other = STAGES.index(self.stage), STAGES.index(stage)
        return total if other < mine else self.step if other == mine else 0


START = Position(stage=STAGES[0], step=0, weight_version=0)


def save_checkpoint(folder: Path, position: Position, trainer: Trainer, keep: int) -> None:
    """Write `folder/<stage>-<step>`, then drop all but the newest `keep`.

    Everything goes to a temporary folder first; the rename makes it a checkpoint, so a kill leaves the older one.
    """
    for leftover in folder.glob("*.tmp"):
        shutil.rmtree(leftover)
    final = folder / f"{position.stage}-{position.step:06d}"
    if final.exists():
        return  # written by an earlier life of this run, from the same state
    unfinished = final.with_suffix(".tmp")
    unfinished.mkdir(parents=True)
    trainer.save(unfinished)
    (unfinished / STATE_FILE).write_text(json.dumps(asdict(position)))
    _flush(unfinished)
    unfinished.rename(final)
    _flush(folder)
    for old, _ in _complete(folder)[:-keep]:
        # First out of sight: a kill while deleting must not leave half a checkpoint under its name.
        shutil.rmtree(old.rename(old.with_suffix(".tmp")))


def newest_checkpoint(folder: Path) -> tuple[Path, Position] | None:
    """The complete checkpoint that is furthest on; None if there is none.

    Raises:
        ValueError: for a folder that is named like a checkpoint but holds no readable state.
    """
    complete = _complete(folder)
    return complete[-1] if complete else None


def _complete(folder: Path) -> list[tuple[Path, Position]]:
    found = [(path, _read(path)) for path in folder.glob("*-*") if path.is_dir() and path.suffix != ".tmp"]
    return sorted(found, key=lambda item: (STAGES.index(item[1].stage), item[1].step))


def _read(path: Path) -> Position:
    try:
        position = Position(**json.loads((path / STATE_FILE).read_text()))
        STAGES.index(position.stage)
    except (OSError, ValueError, TypeError) as error:
        raise ValueError(
            f"{path} is not a checkpoint ({STATE_FILE}: {error}); remove that folder, or set another output_dir"
        ) from error
    return position


def _flush(path: Path) -> None:
    """Ask the disk to keep a folder's files: a rename must not survive a power cut that its content did not."""
    for entry in [path, *path.rglob("*")]:
        descriptor = os.open(entry, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
