"""Checkpoints at step boundaries: a folder appears whole or not at all, and the newest one is where a run goes on."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

from rlkit.errors import UserError
from rlkit.run.inputs import digest
from rlkit.train.base import Trainer
from rlkit.watch.metrics import EVAL

CHECKPOINTS = "checkpoints"
"""Their folder, inside the output folder."""
STATE_FILE = "state.json"
STAGE = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*")
"""What the name of a stage looks like."""
FILES = "files"
"""In that file: the fingerprints of all others."""


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
    """The stages before this one, in the order in which the recipe ran them; some may have had no step to take."""
    cursors: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    """Where every streamed data set stands (`Step.cursors`)."""

    def steps_done(self, stage: str, total: int) -> int:
        """Steps of a stage that need not be run again."""
        return total if stage in self.finished else self.step if stage == self.stage else 0

    def has_begun(self, stage: str) -> bool:
        """Says whether the run is inside a stage or behind it."""
        return stage in (self.stage, *self.finished)

    def begin(self, stage: str) -> Position:
        """The position before the first step of a new stage; UserError for a name that cannot be one.

        Checkpoints are folders named after their stage, and a resumed run looks for them there.
        """
        if not STAGE.fullmatch(stage) or stage == EVAL:
            raise UserError(
                f"stage={stage!r} is no name for a stage, because its checkpoints and metrics carry it; use letters, "
                f"digits, '-' and '_', and not {EVAL!r}"
            )
        earlier = (*self.finished, self.stage) if self.stage else self.finished
        return Position(stage=stage, step=0, weight_version=self.weight_version, finished=earlier)

    def after(
        self, stage: str, step: int, weight_version: int | None, cursors: Mapping[str, tuple[int, ...]] | None = None
    ) -> Position:
        """The position after a step; a `weight_version` of None means that the engine keeps the weights it had."""
        here = self if stage == self.stage else self.begin(stage)
        version = here.weight_version if weight_version is None else weight_version
        return replace(here, step=step, weight_version=version, cursors=dict(cursors or {}))


START = Position(stage="", step=0, weight_version=0)


def save_checkpoint(folder: Path, position: Position, trainer: Trainer, keep: int) -> Path:
    """Writes and returns `folder/<stage>-<step>`, then drops all but the newest `keep`.

    Everything goes to a temporary folder first; the rename makes it a checkpoint, so a kill leaves the older one. The
    fingerprints of its files are written with it, so that a torn file is found before a trainer reads it.
    """
    for leftover in folder.glob("*.tmp"):
        shutil.rmtree(leftover)
    final = folder / f"{position.stage}-{position.step:06d}"
    if final.exists():
        return final  # written by an earlier life of this run, from the same state
    unfinished = final.with_suffix(".tmp")
    unfinished.mkdir(parents=True)
    trainer.save(unfinished)
    files = {str(file.relative_to(unfinished)): digest(file, sampled=True) for file in _files(unfinished)}
    (unfinished / STATE_FILE).write_text(json.dumps(asdict(position) | {FILES: files}))
    _flush(unfinished)
    unfinished.rename(final)
    _flush(folder)
    for old, _ in _complete(folder)[:-keep]:
        # First out of sight: a kill while deleting must not leave half a checkpoint under its name.
        shutil.rmtree(old.rename(old.with_suffix(".tmp")))
    return final


def newest_checkpoint(folder: Path) -> tuple[Path, Position] | None:
    """Returns the complete checkpoint that is furthest on; None if there is none.

    Raises:
        UserError: for a folder that is named like a checkpoint but holds no readable state, and for a newest one whose
            files are not as they were written. The message offers the checkpoint before it.
    """
    complete = _complete(folder)
    if not complete:
        return None
    path, _ = complete[-1]
    for name, written in json.loads((path / STATE_FILE).read_text()).get(FILES, {}).items():
        file = path / name
        if not file.is_file() or digest(file, sampled=True) != written:
            what = "is not as it was written" if file.is_file() else "is gone"
            raise UserError(f"the checkpoint {path} is torn: its file {name} {what}; {_way_on(path, complete[:-1])}")
    return complete[-1]


def _complete(folder: Path) -> list[tuple[Path, Position]]:
    """Returns all checkpoints, the one that is furthest on last; raises UserError for a folder that is none."""
    found: list[tuple[Path, Position]] = []
    broken: dict[Path, Exception] = {}
    for path in folder.glob("*-*"):
        if not path.is_dir() or path.suffix == ".tmp":
            continue
        try:
            state = json.loads((path / STATE_FILE).read_text())
            state.pop(FILES, None)
            cursors = {name: tuple(cursor) for name, cursor in state.pop("cursors", {}).items()}
            found.append((path, Position(**state | {"finished": tuple(state["finished"]), "cursors": cursors})))
        except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
            broken[path] = error
    found.sort(key=lambda item: (len(item[1].finished), item[1].step))
    for path, error in broken.items():
        raise UserError(f"{path} is not a checkpoint ({STATE_FILE}: {error}); {_way_on(path, found)}") from error
    return found


def _way_on(broken: Path, older: list[tuple[Path, Position]]) -> str:
    start = f"the run goes on from {older[-1][0].name}" if older else "the run begins anew, as there is no older one"
    return f"remove that folder ({broken}), and {start}; or set another output_dir"


def _files(folder: Path) -> list[Path]:
    return sorted(file for file in folder.rglob("*") if file.is_file())


def _flush(path: Path) -> None:
    """Asks the disk to keep a folder's files: a rename must not survive a power cut that its content did not."""
    for entry in [path, *path.rglob("*")]:
        descriptor = os.open(entry, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
