"""A loss of the user's own that is no number, once and always: through the recipe, on Ray, and across a SIGKILL."""

from __future__ import annotations

import json
import signal
from pathlib import Path

import pytest
import torch

from rlkit.config import GrpoRun
from rlkit.config.compose import load_config
from rlkit.data.prompts import prompts_for_step
from rlkit.run.plan import show
from rlkit.train.skipped import read_batch
from tests.e2e.runs import GRPO_ONLY, LOCAL, SPREAD_REWARD, final_weights, finish_here, killed_by
from tests.e2e.test_kill import steps

pytestmark = pytest.mark.slow
LOSS = """
import os
import signal

from rlkit.algo import LossTerms


def fragile(logprobs_T, pack, *, bad=(), deadly=()):
    if os.environ.get("RLKIT_TEST_DIES") and set(deadly) & set(pack.ids):
        os.kill(os.getpid(), signal.SIGKILL)
    spoil = float("nan") if set(bad) & set(pack.ids) else 1.0
    loss = -(pack.weights_T * pack.advantages_T * logprobs_T).sum() * spoil
    return LossTerms(loss=loss, sums={})
"""


def words(folder: Path, *place: str) -> list[str]:
    (folder / "plugin.py").write_text(SPREAD_REWARD)
    (folder / "loss.py").write_text(LOSS)
    run = [*GRPO_ONLY, *place, f"reward={folder}/plugin.py:spread", "reward.workers=1", "data.eval_size=4"]
    return [*run, f"algo.loss_fn={folder}/loss.py:fragile", "algo.loss.kl_coef=0", "trainer.bias_update_speed=0.001"]


def prompts(run: list[str], *numbers: int) -> list[str]:
    """The prompts of some steps."""
    cfg = load_config("grpo", GrpoRun, run)
    task = show(cfg, print_only=False)
    assert task is not None
    drawn = [prompts_for_step(task.prompts, cfg.algo.prompts_per_step, number, cfg.seed) for number in numbers]
    return [prompt.id for step in drawn for prompt in step]


def settings(**ids: list[str]) -> str:
    inside = ", ".join(f"{name}: [{', '.join(map(repr, values))}]" for name, values in ids.items())
    return f"algo.loss_settings={{{inside}}}"


def skipped(folder: Path) -> list[float]:
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [line["skipped"] for line in lines if line["stage"] == "grpo"]


@pytest.mark.parametrize(
    "place",
    [
        LOCAL,
        ["cluster=ray", "engine=torch", "trainer.num_ranks=2", "trainer.expert_parallel=2", "trainer.optimizer=muon"],
    ],
    ids=["local", "ray, muon"],
)
def test_once_it_is_skipped_and_written(place: list[str], tmp_path: Path) -> None:
    run = words(tmp_path, *place)
    bad = prompts(run, 2)
    out = tmp_path / "out"
    printed = finish_here("grpo", *run, settings(bad=bad[:1]), "algo.steps=3", f"output_dir={out}")
    file = out / "skipped" / "000002.safetensors"
    assert "warning: the loss of update 2 is nan, so it was skipped (1 in a row; the run ends after mor" in printed
    assert f"the batch is in {file}: if it happens again, look at it" in printed
    assert skipped(out) == [0, 1, 0]
    shares, told = read_batch(file)
    assert len(shares) == (1 if place == LOCAL else 2)
    samples = [sample for pack in told["packs"] for sample in pack["samples"]]
    assert {sample["id"] for sample in samples} == set(bad)
    assert all(sample["prompt"].endswith("=") or sample["prompt"] for sample in samples)
    assert (out / "model").exists() and [path.name for path in (out / "skipped").iterdir()] == [file.name]


def test_always_it_ends_the_run_with_the_name_of_the_file(tmp_path: Path) -> None:
    run = words(tmp_path, *LOCAL)
    out = tmp_path / "out"
    every = settings(bad=prompts(run, 1, 2, 3, 4))
    printed = finish_here("grpo", *run, every, "trainer.max_skipped=1", f"output_dir={out}", code=1)
    assert "Traceback" not in printed
    assert (
        "error: the loss of update 2 is nan, and those before it were skipped too: trainer.max_skipped=1; " in printed
    )
    assert f"the batch is in {out}/skipped/000002.safetensors: look at it" in printed
    assert skipped(out) == [1] and not (out / "model").exists()


def test_killed_and_resumed_it_counts_on(tmp_path: Path) -> None:
    """Steps 2 and 3 are skipped, the kill comes in step 4: the same bits, and the same end where 4 is skipped too."""
    run = [*words(tmp_path, *LOCAL), "checkpoint.every=1", "trainer.max_skipped=2"]
    dies = {"RLKIT_TEST_DIES": "1"}
    for name, bad in (("goes on", prompts(run, 2, 3)), ("ends", prompts(run, 2, 3, 4))):
        whole, killed = tmp_path / name / "whole", tmp_path / name / "killed"
        run_it = [*run, settings(bad=bad, deadly=prompts(run, 4))]
        assert killed_by("grpo", *run_it, f"output_dir={killed}", env=dies) == -signal.SIGKILL
        if name == "ends":
            printed = finish_here("grpo", *run_it, f"output_dir={killed}", code=1)
            assert "error: the loss of update 4 is nan, and those before it" in printed
            continue
        finish_here("grpo", *run_it, f"output_dir={whole}")
        assert "resuming after grpo step 3" in finish_here("grpo", *run_it, f"output_dir={killed}")
        expected, found = final_weights(whole), final_weights(killed)
        assert all(torch.equal(found[key], tensor) for key, tensor in expected.items())
        assert steps(killed) == steps(whole) and skipped(whole) == [0, 1, 1, 0]
