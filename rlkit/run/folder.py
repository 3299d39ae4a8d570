"""Checkpoints at step boundaries: a folder appears whole or not at all, and the newest one is where a run goes on."""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path

from rlkit.train.base import Trainer

STATE_FILE = "state.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class Position:
    """How far a run has come: `step` steps of `stage` are done, and all of the stages in `finished`.

    Example: `Position(stage="grpo", step=20, weight_version=20, finished=("sft",))`
    """

    stage: str
    """The name under which the recipe runs the stage; "" before the first step of the first one."""
    step: int
    weight_version: int
    """The version of the weights that the engine had."""
    finished: tuple[str, ...] = ()
    """The stages before this one, in the order in which the recipe ran them."""

    def steps_done(self, stage: str, total: int) -> int:
        """Steps of a stage that need not be run again."""
        return total if stage in self.finished else self.step if stage == self.stage else 0

    def after(self, stage: str, step: int, weight_version: int | None) -> Position:
        """The position after a step; a `weight_version` of None means that the engine keeps the weights it had."""
        version = self.weight_version if weight_version is None else weight_version
        earlier = self.finished if stage == self.stage or not self.stage else (*self.finished, self.stage)
        return Position(stage=stage, step=step, weight_version=version, finished=earlier)


START = Position(stage="", step=0, weight_version=0)


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
    return sorted(found, key=lambda item: (len(item[1].finished), item[1].step))


def _read(path: Path) -> Position:
    try:
        state = json.loads((path / STATE_FILE).read_text())
        position = Position(**state | {"finished": tuple(state["finished"])})
    except (OSError, ValueError, TypeError, KeyError) as error:
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
