"""From `rlkit run` to backward() in few calls of ours: the loop can be followed by reading."""

from __future__ import annotations

import traceback
from pathlib import Path

import pytest
from torch import Tensor

import rlkit
from rlkit.cli import main as cli
from rlkit.train.steppers.torch import TorchStepper
from tests.e2e.runs import GRPO_ONLY, LOCAL, SPREAD_REWARD

ROOT = Path(rlkit.__file__).parent.parent
MAX_HOPS = 6
"""The command, the recipe, the run, the two functions of the loop, the trainer."""
OURS = tuple(str(ROOT / package) for package in ("rlkit", "recipes"))


def test_few_calls_from_the_command_to_backward(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plugin = tmp_path / "plugin.py"
    plugin.write_text(SPREAD_REWARD)
    paths: list[list[str]] = []
    original = TorchStepper.backward

    def backward(self: TorchStepper, loss: Tensor) -> None:
        # before Python 3.12 a comprehension is a frame too, but nothing a reader has to follow
        stack = [frame for frame in traceback.extract_stack() if not frame.name.startswith("<")]
        frames = [frame for frame in stack if frame.filename.startswith(OURS)]
        paths.append([f"{Path(frame.filename).stem}.{frame.name}" for frame in frames])
        original(self, loss)

    monkeypatch.setattr(TorchStepper, "backward", backward)
    reward = [f"reward={plugin}:spread", f"output_dir={tmp_path}/run", "algo.steps=1"]
    cli.main(["run", "grpo", *GRPO_ONLY, *LOCAL, *reward])
    assert len(paths[0]) <= MAX_HOPS, paths[0]
    assert paths[0][-1] == "trainer.update" and "loop.grpo_step" in paths[0]
