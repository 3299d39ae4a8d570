"""The numbers of a run: one JSON line per step, and the same numbers in TensorBoard and in Weights & Biases.

`metrics.jsonl` is the record, and the other two are copies of it. A resumed run takes the steps after its checkpoint
again, so everything newer than the checkpoint is dropped before the first new line is written.
"""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Protocol
from uuid import uuid4

from rlkit.errors import UserError

if TYPE_CHECKING:
    from tensorboard.summary.writer.event_file_writer import EventFileWriter

EVAL = "eval"
"""The stage of a line that holds an evaluation."""
REASON = "reason/"
"""Numbers that start with this count rollouts by what the reward said of them: `reason/correct`, `reason/timeout`."""
PART = "part/"
"""Numbers that start with this are the parts of a reward, averaged over the rollouts: `part/format`."""
LOAD = "max_violation"
"""Load of the busiest expert over the mean, in the worst layer; that of layer 3 is `max_violation/3`."""
HELD_OUT = "held_out_loss"
"""The loss on demonstrations that are not trained on, of the steps that measured it."""
_FILE = "metrics.jsonl"
_BOARD = "tensorboard"
RESERVED = frozenset({"stage", "step", "name", "elapsed_s"})
"""What a line says of itself; no number of a step has one of these names."""


class _Sink(Protocol):
    """A copy of the record somewhere else; `index` is the place of the line in metrics.jsonl."""

    def write(self, index: int, line: Mapping[str, Any], values: Mapping[str, float]) -> None: ...

    def close(self) -> None: ...


class Metrics:
    """Appends to `folder/metrics.jsonl`, and copies to TensorBoard and Weights & Biases when asked.

    `resume_after=(stage, step)` names the last step in the checkpoint: lines newer than it are dropped, and so is a
    torn last line. None means that the run starts from nothing, so that nothing in the folder is kept.
    Raises UserError if `wandb_project` is set and wandb is not installed.
    """

    def __init__(
        self, folder: Path, *, tensorboard: bool, wandb_project: str = "", resume_after: tuple[str, int] | None
    ) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        kept = [] if resume_after is None else _up_to(read_metrics(folder), *resume_after)
        path = folder / _FILE
        write_atomic(path, "".join(json.dumps(line) + "\n" for line in kept))
        if resume_after is None:
            shutil.rmtree(folder / _BOARD, ignore_errors=True)
        self._index = len(kept)
        self._evaluated = {_key(line) for line in kept if line["stage"] == EVAL}
        # Time spent on lost steps and between two lives of a run is not counted: elapsed_s goes on from the checkpoint.
        elapsed_s = kept[-1]["elapsed_s"] if kept else 0.0
        self._started = time.monotonic() - elapsed_s
        self._sinks: list[_Sink] = [_TensorBoard(folder / _BOARD, kept, elapsed_s)] if tensorboard else []
        if wandb_project:
            self._sinks.append(_Wandb(folder, wandb_project, fresh=resume_after is None))
        self._file = path.open("a", encoding="utf-8")

    def write(self, stage: str, step: int, values: Mapping[str, float], name: str = "") -> None:
        """Appends one line; `name` says which evaluation it is ("before SFT").

        An evaluation that the record already has is not written again: it ran before a resume and again after it, with
        the same weights.
        """
        assert not RESERVED & values.keys(), f"reserved metric names: {sorted(RESERVED & values.keys())}"
        line: dict[str, Any] = {"stage": stage, "step": step} | ({"name": name} if name else {})
        if _key(line) in self._evaluated:
            return
        line["elapsed_s"] = round(time.monotonic() - self._started, 3)
        numbers = {key: value if isinstance(value, int) else float(value) for key, value in values.items()}
        self._file.write(json.dumps(line | numbers) + "\n")
        self._file.flush()
        for sink in self._sinks:
            sink.write(self._index, line, numbers)
        self._index += 1

    def close(self) -> None:
        """Flushes and closes every file; the metrics take no more lines."""
        self._file.close()
        for sink in self._sinks:
            sink.close()

    def __enter__(self) -> Metrics:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def read_metrics(folder: Path) -> list[dict[str, Any]]:
    """Every whole line of `folder/metrics.jsonl`, oldest first; none if there is no file.

    A last line without its newline is left out: the run died, or is writing it right now.
    Raises UserError if any other line is not JSON.
    """
    path = folder / _FILE
    if not path.exists():
        return []
    whole, _, _ = path.read_bytes().rpartition(b"\n")
    lines = []
    for number, text in enumerate(whole.splitlines(), start=1):
        try:
            lines.append(json.loads(text))
        except ValueError as error:
            raise UserError(f"{path} line {number} is not JSON: {text[:80]!r}. Delete that line.") from error
    return lines


def named(stage: str) -> str:
    """A stage as people write it: "sft" and "grpo" are abbreviations, longer names stay as they are."""
    return stage.upper() if len(stage) <= 4 else stage.replace("_", " ")


def write_atomic(path: Path, text: str) -> None:
    """Replaces a file so that a reader, or a kill at any moment, sees the old text or the new, never a part."""
    path.parent.mkdir(parents=True, exist_ok=True)
    fresh = path.with_name(f".{path.name}.{os.getpid()}")
    with fresh.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(fresh, path)


def _key(line: Mapping[str, Any]) -> tuple[str, int, str]:
    return line["stage"], line["step"], line.get("name", "")


def _up_to(lines: list[dict[str, Any]], stage: str, step: int) -> list[dict[str, Any]]:
    """The lines at or before (stage, step), by their place in the file: stages follow each other, steps count up.

    Evaluations right behind the checkpoint's own line are kept: they measured the weights that it holds.
    """
    inside = [place for place, line in enumerate(lines) if line["stage"] == stage and line["step"] <= step]
    if inside:
        newer = range(inside[-1] + 1, len(lines))
        end = next((place for place in newer if lines[place]["stage"] != EVAL), len(lines))
    else:  # the checkpoint was taken before the stage wrote anything
        end = next((place for place, line in enumerate(lines) if line["stage"] == stage), len(lines))
    return lines[:end]


class _TensorBoard:
    """One TensorBoard run per stage, because each stage counts its own steps.

    A resumed run writes the kept lines of the record once more, into new files. Their times are those of a run without
    the break, as the record has no others.
    """

    def __init__(self, folder: Path, kept: Sequence[Mapping[str, Any]], elapsed_s: float) -> None:
        self._folder = folder
        self._started = time.time() - elapsed_s
        self._writers: dict[str, EventFileWriter] = {}
        for index, line in enumerate(kept):
            self._add(index, line, {key: value for key, value in line.items() if key not in RESERVED})
        for writer in self._writers.values():
            writer.flush()  # a stage that is over gets no other line that would do it

    def write(self, index: int, line: Mapping[str, Any], values: Mapping[str, float]) -> None:
        self._add(index, line, values)
        self._writers[line["stage"]].flush()

    def _add(self, index: int, line: Mapping[str, Any], values: Mapping[str, float]) -> None:
        # Imported only when TensorBoard is asked for. torch's SummaryWriter stands around the same class, but writes an
        # event for every number instead of every line, which takes five times as long.
        from tensorboard.compat.proto.event_pb2 import Event  # pyright: ignore[reportAttributeAccessIssue]
        from tensorboard.compat.proto.summary_pb2 import Summary  # pyright: ignore[reportAttributeAccessIssue]

        stage, at = line["stage"], self._started + line["elapsed_s"]
        # Evaluations of several stages share one axis; their place in the record always grows.
        step = index if stage == EVAL else line["step"]
        if stage not in self._writers:
            self._writers[stage] = _start(self._folder / stage, step, at)
        points = [Summary.Value(tag=f"{stage}/{key}", simple_value=value) for key, value in values.items()]
        self._writers[stage].add_event(Event(wall_time=at, step=step, summary=Summary(value=points)))

    def close(self) -> None:
        for writer in self._writers.values():
            writer.close()


def _start(folder: Path, step: int, at: float) -> EventFileWriter:
    """Opens a file of TensorBoard events that takes the place of all earlier ones of its folder, from `step` on.

    A START event tells a TensorBoard that is open to drop what it has read from `step` on. That is all
    that SummaryWriter's `purge_step` does, and it is not enough. TensorBoard reads files in the order of their names,
    which begin with the second they were opened in. If the clock is behind by now (another machine, a corrected one),
    the file with the lost steps is read after ours, and the reader sees the lost steps last. So ours repeats the steps
    that are kept, and files that would be read after it go.
    """
    from tensorboard.compat.proto.event_pb2 import Event, SessionLog  # pyright: ignore[reportAttributeAccessIssue]
    from tensorboard.summary.writer.event_file_writer import EventFileWriter

    earlier = set(folder.glob("*.tfevents.*"))
    writer = EventFileWriter(str(folder))
    writer.add_event(Event(wall_time=at, step=step, session_log=SessionLog(status=SessionLog.START)))
    (ours,) = set(folder.glob("*.tfevents.*")) - earlier
    for path in earlier:
        if path.name > ours.name:
            path.unlink()
    return writer


class _Wandb:
    """One wandb run for the life of the folder.

    A wandb step is the place of the line in metrics.jsonl. wandb ignores a step that it already has, so that steps
    which a resumed run takes again are not shown twice.
    """

    def __init__(self, folder: Path, project: str, *, fresh: bool) -> None:
        try:
            import wandb  # pyright: ignore[reportMissingImports]
        except ModuleNotFoundError as error:
            raise UserError(
                f"wandb_project={project!r} needs the wandb package: pip install wandb, or leave wandb_project empty."
            ) from error
        id_file = folder / "wandb_id"
        if fresh or not id_file.exists():
            write_atomic(id_file, uuid4().hex)
        self._stages: set[str] = set()
        self._run = wandb.init(
            project=project, name=folder.name, dir=str(folder), id=id_file.read_text(), resume="allow"
        )

    def write(self, index: int, line: Mapping[str, Any], values: Mapping[str, float]) -> None:
        stage = line["stage"]
        if stage not in self._stages:
            self._stages.add(stage)
            self._run.define_metric(f"{stage}/*", step_metric=f"{stage}/step")
        self._run.log({f"{stage}/step": line["step"]} | {f"{stage}/{k}": v for k, v in values.items()}, step=index)

    def close(self) -> None:
        self._run.finish()
