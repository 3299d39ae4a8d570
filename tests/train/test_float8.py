"""Training in FP8 through the trainer and DeepSpeed: as good as bf16, restored bit for bit, the same with two packs."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, distributed

from rlkit.algo import GrpoLoss, SftLoss, pack_demonstrations
from rlkit.build import build_trainer
from rlkit.quant.fp8 import FLOAT8
from rlkit.train.trainer import ModelTrainer
from rlkit.types import Batch, Demonstration
from tests.model.float8 import TILED
from tests.model.tiny import seeded
from tests.train.test_trainer import CFG, rollouts

pytestmark = pytest.mark.slow
STEPS, SAMPLES, LENGTH = 40, 16, 24
FOLLOWED = 0.7
"""How often the next token is the one that the rule says; the rest is drawn, so that no loss can fall to 0."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Checkpoints of three seeds."""
    made = tmp_path_factory.mktemp("float8")
    for seed in range(3):
        seeded(TILED, seed).save_checkpoint(made / str(seed), dtype="fp32")
    return made


def trainer(folder: Path, dtype: str, seed: int = 0, *, keep_reference: bool = False) -> ModelTrainer:
    cfg = replace(CFG, kind="deepspeed", dtype=dtype)
    store = distributed.HashStore()
    return build_trainer(
        cfg, folder / str(seed), "deepseek", keep_reference=keep_reference, seed=seed, store=store, rank=0
    )


def sentences(seed: int, num: int = SAMPLES) -> Batch:
    """Chains in which token t is followed by 5 t + 3, most of the time."""
    random = torch.Generator().manual_seed(seed)
    rows = torch.randint(2, 64, (num, LENGTH), generator=random)
    obeyed = torch.rand(num, LENGTH, generator=random) < FOLLOWED
    for place in range(1, LENGTH):
        rule = (5 * rows[:, place - 1] + 3) % 62 + 2
        rows[:, place] = torch.where(obeyed[:, place], rule, rows[:, place])
    return pack_demonstrations(
        [Demonstration.of(row[:1], row[1:]) for row in rows.tolist()], max_tokens=SAMPLES * LENGTH
    )


@torch.no_grad()
def loss_on(learner: ModelTrainer, batch: Batch) -> float:
    """Nats per token of text that was not trained on."""
    outputs = [learner.stepper.module(pack, 1.0).logprobs_T * pack.weights_T for pack in batch.packs]
    return -float(torch.cat(outputs).sum())


def trained(folder: Path, dtype: str, seed: int) -> tuple[float, float]:
    learner = trainer(folder, dtype, seed)
    held_out = sentences(10_000 + seed, 64)
    before = loss_on(learner, held_out)
    for step in range(STEPS):
        learner.update(sentences(1000 * seed + step), SftLoss(), 3e-3 * min(1.0, (step + 1) / 5, (STEPS - step) / 20))
    return before, loss_on(learner, held_out)


@pytest.mark.parametrize("seed", range(3))
def test_sft_ends_within_2_percent_of_the_loss_of_bf16(folder: Path, seed: int) -> None:
    before, plain = trained(folder, "bf16", seed)
    found = {mode: trained(folder, mode, seed)[1] for mode in FLOAT8}
    shown = ", ".join(f"{mode} {loss:.4f} ({loss / plain - 1:+.2%})" for mode, loss in found.items())
    print(f"loss {before:.3f} before; bf16 {plain:.4f}, {shown}")
    assert plain < 0.75 * before, "it has learned"
    for loss in found.values():
        assert abs(loss / plain - 1) <= 0.02


def state(learner: ModelTrainer) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in learner.weights()}


@pytest.mark.parametrize("mode", FLOAT8)
def test_a_step_of_grpo_and_a_restored_trainer(folder: Path, tmp_path: Path, mode: str) -> None:
    """The reference computes in FP8 too: before the first step it is the policy, and the KL is 0."""
    first, second = (trainer(folder, mode, keep_reference=True) for _ in range(2))
    one, two = rollouts(), rollouts(seed=1)
    numbers = first.update(one[0], GrpoLoss(kl_coef=0.1), 1e-3)
    assert numbers["kl"] == 0 and numbers["grad_norm"] > 0
    first.save(tmp_path)
    second.load(tmp_path)
    for learner in (first, second):
        assert learner.update(two[0], GrpoLoss(kl_coef=0.1), 1e-3)["kl"] > 0
    again = state(second)
    assert all(torch.equal(tensor, again[name]) for name, tensor in state(first).items())
    assert {tensor.dtype for tensor in again.values()} == {torch.bfloat16, torch.float32}
    assert first.stepper.zero.param_groups[0]["params"][0].dtype == torch.float32  # type: ignore[attr-defined]


def test_modes_differ_and_packs_do_not(folder: Path) -> None:
    """Log-probs of bf16 and both modes on the same weights; a sample's do not depend on what is packed with it."""
    sequences = [list(range(2, 40)), list(range(40, 9, -1))]
    found = {}
    for dtype in ("bf16", *FLOAT8):
        learner = trainer(folder, dtype)
        found[dtype] = torch.tensor([p for row in learner.logprobs(sequences) for p in row])
        alone = torch.tensor([p for row in sequences for p in learner.logprobs([row])[0]])
        assert (alone - found[dtype]).abs().mean() <= 0.01
    gaps = {mode: float((found[mode] - found["bf16"]).abs().mean()) for mode in FLOAT8}
    print(", ".join(f"{mode} {gap:.1e} nats from bf16" for mode, gap in gaps.items()))
    assert 0 < gaps["fp8_weights"] < gaps["fp8"] < 0.2
