"""Neither packs nor ranks change what a reward model learns: real DeepSpeed in two processes, against autograd."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from rlkit.algo import BradleyTerryLoss, PointwiseLoss, pack_labelled, pack_pairs
from rlkit.config import LoraConfig, TrainerConfig
from rlkit.model.load import load_model
from rlkit.model.matrices import matrix_shapes
from rlkit.model.scorer import DeepseekScorer, write_scorer
from rlkit.train.reward_model import ScorerTrainer
from rlkit.train.steppers.torch import TorchStepper
from rlkit.types import Batch
from tests.train.ranks import run_ranks
from tests.train.test_trainer import CFG, make_model

DRAW = torch.Generator().manual_seed(5)
SEQUENCES = [torch.randint(2, 64, (length,), generator=DRAW).tolist() for length in (5, 3, 9, 4, 6, 6, 2, 8, 7, 3)]
PAIRS = list(zip(SEQUENCES[::2], SEQUENCES[1::2], strict=True))
LABELS = [1.0, 0.0, 0.5, 1.0, 0.0, 0.25, 1.0, 0.0, 1.0, 0.75]


class Layout(NamedTuple):
    """One way to take the same step."""

    kind: str = "pairwise"
    zero_stage: int = 1
    expert_parallel: int = 1
    recompute: bool = False
    lora: bool = False
    offload: str = "none"

    def cfg(self, num_ranks: int) -> TrainerConfig:
        """Without clipping and decay, so that AdamW's first moment is a tenth of the gradient."""
        return replace(
            CFG, kind="deepspeed", num_ranks=num_ranks, zero_stage=self.zero_stage, offload=self.offload,
            expert_parallel=self.expert_parallel, recompute=self.recompute, grad_clip=1e9, weight_decay=0.0,
            lora=LoraConfig(rank=2, alpha=4) if self.lora else None,
        )  # fmt: skip


LAYOUTS = {
    "pairs": Layout(),
    "one pair, for two ranks": Layout("one pair"),
    "labels": Layout("pointwise"),
    "zero 2": Layout(zero_stage=2, recompute=True),
    "zero 3": Layout(zero_stage=3),
    "experts": Layout(expert_parallel=2),
    "experts, zero 3, offload": Layout(zero_stage=3, expert_parallel=2, offload="all", recompute=True),
    "experts, one pair": Layout("one pair", zero_stage=3, expert_parallel=2),
    "lora": Layout(lora=True),
    "resumed": Layout(zero_stage=3, expert_parallel=2),
}


def batch_of(kind: str, max_tokens: int) -> tuple[Batch, BradleyTerryLoss | PointwiseLoss]:
    if kind == "pointwise":
        return pack_labelled(list(zip(SEQUENCES, LABELS, strict=True)), max_tokens=max_tokens), PointwiseLoss()
    return pack_pairs(PAIRS[:1] if kind == "one pair" else PAIRS, max_tokens=max_tokens), BradleyTerryLoss()


def expected_gradients(model: DeepseekScorer, kind: str) -> tuple[float, dict[str, Tensor]]:
    """By autograd, every sample alone; of a sum over the pairs that is written out here."""

    def score(tokens: Sequence[int]) -> Tensor:
        return model.score(model.hidden(torch.tensor(tokens))[-1])[0]

    if kind == "pointwise":
        targets = torch.tensor(LABELS)
        loss = F.binary_cross_entropy_with_logits(torch.stack([score(tokens) for tokens in SEQUENCES]), targets)
    else:
        pairs = PAIRS[:1] if kind == "one pair" else PAIRS
        loss = torch.stack([F.softplus(score(rejected) - score(chosen)) for chosen, rejected in pairs]).mean()
    model.zero_grad()
    loss.backward()
    gradients = {
        name: parameter.grad.clone() for name, parameter in model.named_parameters() if parameter.grad is not None
    }
    return float(loss.detach()), gradients


def scorer(folder: Path) -> DeepseekScorer:
    model = load_model(folder / "scorer", torch.float32, "deepseek")
    assert isinstance(model, DeepseekScorer)
    return model


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("scorer")
    make_model().save_checkpoint(folder / "language", dtype="fp32")
    write_scorer(folder / "language", folder / "scorer", seed=0)
    return folder


@pytest.mark.parametrize("max_tokens", [8, 24, 1000])
@pytest.mark.parametrize("kind", ["pairwise", "pointwise"])
def test_one_rank_has_the_gradient_of_autograd(folder: Path, kind: str, max_tokens: int) -> None:
    model = scorer(folder)
    loss, expected = expected_gradients(scorer(folder), kind)
    trainer = ScorerTrainer(model, TorchStepper(model, replace(CFG, grad_clip=1e9, weight_decay=0.0)), reference=None)
    batch, objective = batch_of(kind, max_tokens)
    numbers = trainer.update(batch, objective, 1e-3)
    assert numbers["loss"] == pytest.approx(loss, abs=1e-6) and "entropy" not in numbers
    found = {name: trainer.stepper.state(p).get("exp_avg") for name, p in model.named_parameters()}
    assert "score.weight" in expected
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name] * 10, gradient, atol=2e-6, rtol=1e-4)


def test_the_head_is_not_for_muon_and_new_for_lora(folder: Path) -> None:
    model = scorer(folder)
    assert model.score.weight not in matrix_shapes(model) and len(matrix_shapes(model)) > 0
    assert list(model.new_layers()) == [model.score] and model.head() is model.score


@pytest.mark.slow
def test_two_ranks_have_it_in_every_layout(folder: Path) -> None:
    [seen], _ = run_ranks("one_scorer_rank", folder, ("steps", 2))
    model = scorer(folder)
    with torch.no_grad():
        scores = [float(model(torch.tensor(tokens))) for tokens in SEQUENCES]
    for name, layout in LAYOUTS.items():
        loss, expected = expected_gradients(model, layout.kind)
        assert seen[name]["scores"] == pytest.approx(scores, abs=1e-5), name
        assert seen[name]["numbers"]["loss"] == pytest.approx(loss, abs=1e-5), name
        found = seen[name]["moments"]
        assert "score.weight" in found and (layout.lora or found.keys() == expected.keys()), name
        for key, moment in found.items():
            if key in expected:
                torch.testing.assert_close(moment * 10, expected[key], atol=5e-6, rtol=1e-3, msg=f"{name}: {key}")
    trained = seen["lora"]["moments"].keys() - {"score.weight"}
    assert trained and all("lora_" in key for key in trained)
    assert seen["resumed"]["same bits"]
