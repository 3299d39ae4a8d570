"""From `rlkit run` to the loss in few calls of ours, in one process and on Ray: the loop can be followed by reading."""

from __future__ import annotations

import json
import traceback
from pathlib import Path
from typing import Any

import pytest

import rlkit
from rlkit.cli import main as cli
from rlkit.cluster.remote import RemoteTrainer
from tests.e2e.runs import GRPO_ONLY, LOCAL, SPREAD_REWARD

ROOT = Path(rlkit.__file__).parent.parent
OURS = tuple(str(ROOT / package) for package in ("rlkit", "recipes"))
MAX_HOPS, MAX_HOPS_ON_RAY = 7, 9
"""The command, the recipe, the run, two functions of the loop, the watch over skipped steps, the trainer; on Ray also
the handle and the actor."""
LOSS = """
import json, traceback
from pathlib import Path
from rlkit.algo import LossTerms


def traced(logprobs_T, pack, *, out):
    stack = [[frame.filename, frame.name] for frame in traceback.extract_stack()]
    Path(out).write_text(json.dumps(stack))
    return LossTerms(loss=-(pack.weights_T * pack.advantages_T * logprobs_T).sum(), sums={})
"""


def ours(stack: list[tuple[str, str]]) -> list[str]:
    """Calls of ours; before Python 3.12 a comprehension is a frame too, but nothing a reader has to follow."""
    kept = [(file, name) for file, name in stack if file.startswith(OURS) and not name.startswith("<")]
    return [f"{Path(file).stem}.{name}" for file, name in kept]


def run(folder: Path, *where: str) -> list[str]:
    """Take one step with a loss that writes down who called it."""
    (folder / "plugin.py").write_text(SPREAD_REWARD)
    (folder / "loss.py").write_text(LOSS)
    settings = [f"algo.loss_fn={folder}/loss.py:traced", f"algo.loss_settings={{out: {folder}/stack.json}}"]
    words = [f"reward={folder}/plugin.py:spread", f"output_dir={folder}/run", "algo.steps=1"]
    cli.main(["run", "grpo", *GRPO_ONLY, *where, *words, *settings])
    found = ours([(file, name) for file, name in json.loads((folder / "stack.json").read_text())])
    assert found[-1] == "custom.__call__", "what calls the loss of this test"
    return found[:-1]


@pytest.mark.slow
def test_few_calls_from_the_command_to_the_loss(tmp_path: Path) -> None:
    found = run(tmp_path, *LOCAL)
    assert len(found) <= MAX_HOPS, found
    assert "loop.grpo_step" in found and found[-1] == "trainer.update"


@pytest.mark.slow
def test_few_calls_from_the_command_to_the_loss_on_ray(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    driver: list[str] = []
    update = RemoteTrainer.update

    def watched(self: RemoteTrainer, *args: Any, **kwargs: Any) -> Any:
        driver[:] = ours([(frame.filename, frame.name) for frame in traceback.extract_stack()])
        return update(self, *args, **kwargs)

    monkeypatch.setattr(RemoteTrainer, "update", watched)
    actor = run(tmp_path, "engine=torch", "trainer=torch")
    found = [*driver, "remote.update", *actor]
    assert len(found) <= MAX_HOPS_ON_RAY, found
    assert actor[-1] == "trainer.update" and "loop.grpo_step" in driver
