"""The record of a run survives kills: every step is in it once, whatever was lost."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
from itertools import product
from pathlib import Path
from typing import Any

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from rlkit.watch.metrics import Metrics, read_metrics, write_atomic

Event = tuple[str, int, str]

# Two stages with evaluations around and inside them: every line that a run writes, in order.
RUN: list[Event] = [
    ("eval", 0, "before SFT"),
    ("sft", 1, ""),
    ("sft", 2, ""),
    ("sft", 3, ""),
    ("eval", 3, "after SFT"),
    ("grpo", 1, ""),
    ("grpo", 2, ""),
    ("eval", 2, "GRPO step 2"),
    ("grpo", 3, ""),
    ("eval", 3, "after GRPO"),
]


def value(event: Event) -> dict[str, float]:
    """Numbers that differ between any two events, so that a line in the wrong place is seen."""
    return {"loss": RUN.index(event) + 1 / 3, "tokens": RUN.index(event)}


def play(folder: Path, events: list[Event], resume_after: tuple[str, int] | None, *, tensorboard: bool = False) -> None:
    with Metrics(folder, tensorboard=tensorboard, resume_after=resume_after) as metrics:
        for event in events:
            metrics.write(event[0], event[1], value(event), name=event[2])


def record(folder: Path) -> list[dict[str, Any]]:
    return [{key: v for key, v in line.items() if key != "elapsed_s"} for line in read_metrics(folder)]


def test_a_line_is_on_disk_as_soon_as_it_is_written(tmp_path: Path) -> None:
    with Metrics(tmp_path, tensorboard=False, resume_after=None) as metrics:
        metrics.write("grpo", 3, {"reward": 0.5, "kl": 1 / 3})
        (line,) = (tmp_path / "metrics.jsonl").read_text().splitlines()
        assert json.loads(line) | {"elapsed_s": 0} == {
            "stage": "grpo", "step": 3, "elapsed_s": 0, "reward": 0.5, "kl": 1 / 3
        }  # fmt: skip


def test_numbers_come_back_exactly(tmp_path: Path) -> None:
    values = {"a": 0.1 + 0.2, "b": 5e-324, "c": 1.7976931348623157e308, "d": 12, "e": math.inf, "f": math.nan}
    with Metrics(tmp_path, tensorboard=False, resume_after=None) as metrics:
        metrics.write("sft", 1, values)
    (line,) = record(tmp_path)
    assert math.isnan(line.pop("f"))
    assert line == {"stage": "sft", "step": 1} | {key: values[key] for key in "abcde"}
    assert isinstance(line["d"], int)


def test_tensors_and_numpy_scalars_are_numbers_too(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    numpy = pytest.importorskip("numpy")
    with Metrics(tmp_path, tensorboard=False, resume_after=None) as metrics:
        metrics.write("sft", 1, {"loss": torch.tensor(0.25), "lr": numpy.float32(0.5), "tokens": numpy.int64(7)})
    assert record(tmp_path) == [{"stage": "sft", "step": 1, "loss": 0.25, "lr": 0.5, "tokens": 7}]


def training_lines() -> list[int]:
    return [place for place, event in enumerate(RUN) if event[0] != "eval"]


@pytest.mark.parametrize("evaluate_before_saving", [False, True])
def test_a_run_killed_anywhere_leaves_the_same_record(tmp_path: Path, evaluate_before_saving: bool) -> None:
    """Every checkpoint, every later moment of death, with and without a torn line; against the uninterrupted run."""
    play(tmp_path / "whole", RUN, None)
    expected = record(tmp_path / "whole")
    tried = 0
    for checkpoint, torn in product(training_lines(), (False, True)):
        # The resumed run starts behind the checkpoint; behind its evaluation where that is made before saving.
        after = checkpoint + 1
        while evaluate_before_saving and after < len(RUN) and RUN[after][0] == "eval":
            after += 1
        for death in range(after, len(RUN) + 1):
            folder = tmp_path / f"{checkpoint}-{death}-{torn}"
            play(folder, RUN[:death], None)
            if torn:
                with (folder / "metrics.jsonl").open("a") as file:
                    file.write('{"stage": "grpo", "st')
            stage, step, _ = RUN[checkpoint]
            play(folder, RUN[after:], (stage, step))
            assert record(folder) == expected, f"checkpoint at {RUN[checkpoint]}, killed after {death} lines"
            tried += 1
    assert tried > 50


def test_a_checkpoint_at_the_start_of_a_stage_keeps_the_stages_before_it(tmp_path: Path) -> None:
    play(tmp_path, RUN, None)
    play(tmp_path, [], ("grpo", 0))
    assert [(line["stage"], line["step"]) for line in record(tmp_path)] == [event[:2] for event in RUN[:5]]


def test_a_run_that_starts_from_nothing_keeps_nothing(tmp_path: Path) -> None:
    play(tmp_path, RUN, None, tensorboard=True)
    play(tmp_path, RUN[:1], None)
    assert len(record(tmp_path)) == 1
    assert not (tmp_path / "tensorboard").exists()


def test_elapsed_time_goes_on_where_the_checkpoint_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr("rlkit.watch.metrics.time.monotonic", lambda: now[0])
    with Metrics(tmp_path, tensorboard=False, resume_after=None) as metrics:
        for step in (1, 2, 3):
            now[0] += 10
            metrics.write("sft", step, {})
    now[0] = 5000.0
    with Metrics(tmp_path, tensorboard=False, resume_after=("sft", 2)) as metrics:
        now[0] += 11
        metrics.write("sft", 3, {})
    assert [line["elapsed_s"] for line in read_metrics(tmp_path)] == [10, 20, 31]


def test_the_record_of_a_killed_process_can_be_read(tmp_path: Path) -> None:
    """SIGKILL right after a line: the line is whole."""
    code = (
        "import sys\nfrom pathlib import Path\nfrom rlkit.watch.metrics import Metrics\n"
        "m = Metrics(Path(sys.argv[1]), tensorboard=False, resume_after=None)\n"
        "for i in range(1, 10**9):\n    m.write('sft', i, {'loss': 1 / i})\n    print(i, flush=True)\n"
    )
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).resolve().parents[2])}
    with subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE, text=True, env=environment
    ) as child:
        assert child.stdout is not None
        told = 0
        while told < 50:
            told = int(child.stdout.readline())
        child.send_signal(signal.SIGKILL)
    lines = record(tmp_path)
    assert len(lines) >= 50
    assert lines == [{"stage": "sft", "step": n, "loss": 1 / n} for n in range(1, len(lines) + 1)]


def test_a_missing_file_is_an_empty_record(tmp_path: Path) -> None:
    assert read_metrics(tmp_path) == []


def test_damage_inside_the_record_is_an_error_that_names_the_line(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text(
        '{"stage": "sft", "step": 1}\n{"stage": oops\n{"stage": "sft", "step": 3}\n'
    )
    with pytest.raises(ValueError, match=r"metrics\.jsonl line 2 is not JSON.*Delete that line"):
        read_metrics(tmp_path)


def test_names_of_the_line_itself_are_no_metrics(tmp_path: Path) -> None:
    with (
        Metrics(tmp_path, tensorboard=False, resume_after=None) as metrics,
        pytest.raises(AssertionError, match="step"),
    ):
        metrics.write("sft", 1, {"step": 2.0})


def scalars(folder: Path, tag: str) -> list[tuple[int, float]]:
    board = EventAccumulator(str(folder))
    board.Reload()
    return [(point.step, point.value) for point in board.Scalars(tag)]


def test_tensorboard_shows_every_step_once_after_a_resume(tmp_path: Path) -> None:
    """The first life writes wrong values after its checkpoint; TensorBoard's own reader must not see them."""
    with Metrics(tmp_path, tensorboard=True, resume_after=None) as metrics:
        for step in (1, 2):
            metrics.write("sft", step, {"loss": 1.0 * step})
        metrics.write("eval", 2, {"accuracy": 0.25}, name="after SFT")
        for step in (1, 2, 3):
            metrics.write("grpo", step, {"reward": 1.0 if step == 1 else -1.0})
        metrics.write("eval", 3, {"accuracy": -1.0}, name="after GRPO")
    with Metrics(tmp_path, tensorboard=True, resume_after=("grpo", 1)) as metrics:
        for step in (2, 3):
            metrics.write("grpo", step, {"reward": 1.0 * step})
        metrics.write("eval", 3, {"accuracy": 0.5}, name="after GRPO")
    board = tmp_path / "tensorboard"
    assert scalars(board / "sft", "sft/loss") == [(1, 1.0), (2, 2.0)]
    assert scalars(board / "grpo", "grpo/reward") == [(1, 1.0), (2, 2.0), (3, 3.0)]
    assert [value for _, value in scalars(board / "eval", "eval/accuracy")] == [0.25, 0.5]


def write_rewards(folder: Path, rewards: dict[int, float], resume_after: tuple[str, int] | None) -> None:
    with Metrics(folder, tensorboard=True, resume_after=resume_after) as metrics:
        for step, reward in rewards.items():
            metrics.write("grpo", step, {"reward": reward})


def test_tensorboard_shows_the_resumed_run_if_its_clock_is_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """TensorBoard reads files in the order of their names, which begin with the second they were opened in.

    A run resumed on another machine, or within the same second, may open a file that sorts before the lost steps.
    """
    write_rewards(tmp_path, {1: 1.0, 2: -1.0}, None)
    monkeypatch.setattr("time.time", lambda: 1_000_000_000.0)
    write_rewards(tmp_path, {2: 2.0}, ("grpo", 1))
    assert scalars(tmp_path / "tensorboard" / "grpo", "grpo/reward") == [(1, 1.0), (2, 2.0)]


def test_a_tensorboard_that_stays_open_over_a_resume_drops_the_lost_steps(tmp_path: Path) -> None:
    write_rewards(tmp_path, {1: 1.0, 2: -1.0}, None)
    name = "events.out.tfevents.1000000000.host.1.0"  # so that the next one is not of the same second
    (written,) = (tmp_path / "tensorboard" / "grpo").iterdir()
    board = EventAccumulator(str(written.rename(written.with_name(name)).parent))
    board.Reload()
    assert [point.value for point in board.Scalars("grpo/reward")] == [1.0, -1.0]
    write_rewards(tmp_path, {2: 2.0}, ("grpo", 1))
    board.Reload()
    assert [(point.step, point.value) for point in board.Scalars("grpo/reward")] == [(1, 1.0), (2, 2.0)]


def test_a_stage_before_the_resume_is_on_disk_at_once(tmp_path: Path) -> None:
    """A kill later on must not cost its curve: the resumed run writes nothing more to it."""
    with Metrics(tmp_path, tensorboard=True, resume_after=None) as metrics:
        metrics.write("sft", 1, {"loss": 1.0})
    earlier = set((tmp_path / "tensorboard" / "sft").iterdir())
    with Metrics(tmp_path, tensorboard=True, resume_after=("sft", 1)):
        (newest,) = set((tmp_path / "tensorboard" / "sft").iterdir()) - earlier
        assert scalars(newest, "sft/loss") == [(1, 1.0)]


def test_tensorboard_is_not_written_unless_asked_for(tmp_path: Path) -> None:
    play(tmp_path, RUN, None)
    assert [path.name for path in tmp_path.iterdir()] == ["metrics.jsonl"]


def test_a_missing_wandb_is_an_error_that_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(ValueError, match=r"wandb_project='mine' needs the wandb package: pip install wandb, or leave"):
        Metrics(tmp_path, tensorboard=False, wandb_project="mine", resume_after=None)


def test_replacing_a_file_fails_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "file"
    write_atomic(path, "old")

    def die(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("rlkit.watch.metrics.os.replace", die)
    with pytest.raises(KeyboardInterrupt):
        write_atomic(path, "new")
    assert path.read_text() == "old"
    monkeypatch.undo()
    write_atomic(path, "new")
    assert path.read_text() == "new"
    assert [one.name for one in tmp_path.iterdir()] == ["file"]
