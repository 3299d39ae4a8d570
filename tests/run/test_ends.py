"""How a run ends that does not come to its end: in words, with what is kept, and with the traceback of a bug."""

from __future__ import annotations

import errno
import shutil
from collections import namedtuple
from pathlib import Path

import pytest
from ray.exceptions import RayTaskError

from rlkit.errors import DivergedError, PartDiedError, UserError
from rlkit.interrupt import GO_ON
from rlkit.parity import ParityError
from rlkit.parts import SyncError
from rlkit.run.lock import Lock
from rlkit.run.progress import Run
from rlkit.watch import Metrics
from tests.run.test_progress import configured, shown

Usage = namedtuple("Usage", ["total", "used", "free"])


class Saver:
    """As much of a trainer as a checkpoint needs."""

    def save(self, folder: Path) -> None:
        (folder / "state.bin").write_text("weights")


class Joined:
    trainer = Saver()


def end(folder: Path, error: BaseException, steps: int = 0) -> int:
    """A run that ends with an error after some steps, each with a checkpoint; returns the exit code."""
    cfg, task = configured(folder, "checkpoint.every=1", "logging.tensorboard=true")
    with pytest.raises(SystemExit) as leaving, Run(cfg, task) as run:
        for step in range(1, steps + 1):
            run.record(shown(step), 9, Joined())  # type: ignore[arg-type]
        raise error
    Lock(folder).release()  # whatever happened, the next run may come
    assert isinstance(leaving.value.code, int)
    return leaving.value.code


def test_a_part_that_has_died(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    died = PartDiedError("trainer rank 1 of 2, process 7 on host has died (killed)")
    assert end(tmp_path, died) == 1
    first = capsys.readouterr().err
    assert first == f"error: {died}; no checkpoint was due yet; the same command begins again\n"
    assert end(tmp_path, died, steps=2) == 1
    kept = tmp_path / "checkpoints" / "sft-000002"
    words = f"{kept} and metrics.jsonl are kept; with resume=auto the same command goes on from there"
    assert capsys.readouterr().err == f"error: {died}; {words}\n"
    assert end(tmp_path, died) == 1, "also when it had just resumed"
    assert words in capsys.readouterr().err
    assert (tmp_path / "report.html").exists()


def test_weights_that_arrived_wrong(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The error comes from an engine on Ray, whose own text is a traceback."""
    wrong = SyncError("lm_head.weight: the bytes that arrived are not those that rank 1 published in version 3")
    raised = RayTaskError("load", "Traceback: ...", wrong).as_instanceof_cause()
    assert end(tmp_path, raised, steps=2) == 1
    kept = tmp_path / "checkpoints" / "sft-000002"
    words = f"{kept} and metrics.jsonl are kept; with resume=auto the same command goes on from there"
    assert capsys.readouterr().err == f"error: {wrong}; {words}\n"


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        OSError(errno.EDQUOT, "Disk quota exceeded"),
        RuntimeError("[enforce fail at inline_container.cc:603] . PytorchStreamWriter failed writing file data/6"),
        ValueError("whatever a library makes of it"),
    ],
)
def test_a_disk_that_has_filled_up(
    error: Exception, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def close(_: Metrics) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as full:
        real = shutil.disk_usage
        cfg, task = configured(tmp_path)
        with pytest.raises(SystemExit) as leaving, Run(cfg, task) as run:
            run.record(shown(9), 9, Joined())  # type: ignore[arg-type]
            full.setattr(shutil, "disk_usage", lambda place: Usage(*real(place)[:2], 4096))
            full.setattr(Metrics, "close", close)  # nothing else can be written either
            raise error
    assert leaving.value.code == 1
    printed = capsys.readouterr().err
    assert printed.startswith(f"error: the disk of output_dir={tmp_path} is full; ") and "sft-000009" in printed
    assert "the same command goes on from there, when there is room again" in printed
    run.metrics.close()


def test_a_bug_keeps_its_traceback(tmp_path: Path) -> None:
    cfg, task = configured(tmp_path)
    for error in (ZeroDivisionError("a bug"), ValueError("a bug"), OSError(errno.EACCES, "a bug")):
        with pytest.raises(type(error), match="a bug"), Run(cfg, task):
            raise error


@pytest.mark.parametrize(
    "error", [UserError("algo.loss_fn='f': mend it"), DivergedError("the loss is nan"), ParityError("they disagree")]
)
def test_a_message_to_the_user_is_one_line_also_when_it_comes_from_ray(
    error: Exception, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert end(tmp_path, error) == 1
    assert capsys.readouterr().err == f"error: {error}\n"
    remote = RayTaskError("update", "a traceback\nof many lines", error, "here", 1, "rank", 7).as_instanceof_cause()
    assert end(tmp_path, remote) == 1
    assert capsys.readouterr().err == f"error: {error}\n"


def test_ctrl_c_in_a_step(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert end(tmp_path, KeyboardInterrupt(), steps=1) == 130
    assert capsys.readouterr().err == f"{GO_ON}\n"
    assert (tmp_path / "report.html").exists()
