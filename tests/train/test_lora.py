"""Training adapters: what moves, what is saved, what the reference is; DeepSpeed and torch, both kinds of model."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import distributed

from rlkit.algo import GrpoLoss, SftLoss
from rlkit.build import build_trainer
from rlkit.config import LoraConfig, TrainerConfig
from rlkit.engine.local import TorchEngine
from rlkit.model import DeepseekV3
from rlkit.model.files.sent import ADAPTER
from rlkit.model.hf import HfModel
from rlkit.parity import check_parity
from rlkit.train.steppers.deepspeed import DeepSpeedStepper
from rlkit.train.trainer import ModelTrainer
from tests.hf_folders import make, save
from tests.train.test_trainer import CFG, demonstrations, make_model, rollouts

pytestmark = pytest.mark.slow

LORA = replace(CFG, lora=LoraConfig(rank=2, alpha=4))
KINDS = ["ours", "qwen2"]


@pytest.fixture(scope="module", params=KINDS)
def checkpoint(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp(request.param)
    if request.param == "ours":
        make_model().save_checkpoint(folder, dtype="fp32")
        return folder
    return save(make(request.param), folder)


def build(checkpoint: Path, kind: str = "torch", cfg: TrainerConfig = LORA) -> ModelTrainer:
    model_kind = "deepseek" if checkpoint.name.startswith("ours") else "hf"
    cfg = replace(cfg, kind=kind)
    store = distributed.HashStore()
    return build_trainer(cfg, checkpoint, model_kind, keep_reference=True, seed=3, store=store, rank=0)


def frozen(trainer: ModelTrainer) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in trainer.model.named_parameters() if not p.requires_grad}


def grpo(trainer: ModelTrainer, step: int) -> None:
    for batch in rollouts(step, num_batches=2):
        trainer.update(batch, GrpoLoss(kl_coef=0.1), 1e-2)


@pytest.mark.parametrize("kind", ["torch", "deepspeed"])
def test_only_adapters_move_and_have_an_optimiser(checkpoint: Path, kind: str) -> None:
    trainer = build(checkpoint, kind)
    before, adapter = frozen(trainer), trainer.adapter()
    for step in range(2):
        trainer.update(demonstrations(step), SftLoss(), 1e-2)
    for name, tensor in frozen(trainer).items():
        assert torch.equal(tensor, before[name]), name
    assert all(not torch.equal(tensor, adapter[name]) for name, tensor in trainer.adapter().items())
    numbers = sum(parameter.numel() for parameter in trainer.model.parameters() if parameter.requires_grad)
    assert numbers == sum(tensor.numel() for tensor in trainer.adapter().values())
    sent = dict(trainer.weights(form=ADAPTER))
    assert sent.keys() == trainer.adapter().keys()
    assert all(torch.equal(tensor, trainer.adapter()[name]) for name, tensor in sent.items())
    stepper = trainer.stepper
    optimizer = stepper.zero.optimizer if isinstance(stepper, DeepSpeedStepper) else stepper.optimizer
    assert sum(state["exp_avg"].numel() for state in optimizer.state.values()) == numbers


def test_the_engine_serves_what_the_trainer_computes(checkpoint: Path) -> None:
    """The parity gate over an engine with merged weights and a trainer without."""
    trainer = build(checkpoint)
    trainer.update(demonstrations(), SftLoss(), 3e-2)
    ours = checkpoint.name.startswith("ours")
    model = DeepseekV3.from_checkpoint(checkpoint) if ours else HfModel.from_checkpoint(checkpoint)
    engine = TorchEngine(model, 1, str)
    sequences = [(5, 6, 7, 8, 9), (4, 3)]
    stale = check_parity(engine, trainer, sequences, None)
    engine.load(trainer.weights(), 1)
    assert check_parity(engine, trainer, sequences, 1e-4) < 1e-5 < stale


def test_deepspeed_equals_torch(checkpoint: Path) -> None:
    ours, theirs = build(checkpoint, "deepspeed"), build(checkpoint)
    for step in range(3):
        one, two = (t.update(demonstrations(step), SftLoss(), 1e-2) for t in (ours, theirs))
        assert one["loss"] == pytest.approx(two["loss"], rel=1e-4)
        assert one["grad_norm"] == pytest.approx(two["grad_norm"], rel=1e-3)
    for name, tensor in theirs.adapter().items():
        assert (ours.adapter()[name] - tensor).norm() <= 1e-4 * tensor.norm(), name


@pytest.mark.parametrize("kind", ["torch", "deepspeed"])
def test_saved_adapters_continue_bit_for_bit(checkpoint: Path, kind: str, tmp_path: Path) -> None:
    whole = build(checkpoint, kind)
    for step in range(3):
        grpo(whole, step)
        if step == 0:
            whole.refresh_reference()
        if step == 1:
            whole.save(tmp_path)
    second = build(checkpoint, kind)
    second.load(tmp_path)
    grpo(second, 2)
    resumed = dict(second.weights())
    for name, tensor in whole.weights():
        assert torch.equal(resumed[name], tensor), name
    names = [name for file in tmp_path.glob("state-*.safetensors") for name in load_file(file)]
    assert any("lora_A" in name for name in names)
    assert not any("embed_tokens" in name for name in names), "what is frozen comes from the model's own folder"


def test_the_policy_with_its_adapter_becomes_the_reference(checkpoint: Path) -> None:
    trainer = build(checkpoint)
    assert trainer.reference is not None
    base = trainer.model.lm_head.weight
    assert trainer.reference.model.lm_head.weight is base, "what is frozen is in memory once"
    trainer.update(demonstrations(), SftLoss(), 1e-2)
    at_begin = {name: tensor.clone() for name, tensor in trainer.weights()}
    trainer.begin_stage()
    grpo(trainer, 0)
    reference = dict(trainer.reference.model.checkpoint_weights())
    assert all(torch.equal(reference[name], tensor) for name, tensor in at_begin.items())
    moved = dict(trainer.weights())
    assert any(not torch.equal(moved[name], tensor) for name, tensor in at_begin.items())
    assert not any(parameter.requires_grad for parameter in trainer.reference.parameters())


def test_small_steps_are_not_lost_in_bf16(checkpoint: Path) -> None:
    """DeepSpeed keeps fp32 masters of the adapters: steps of a tenth of a rounding add up."""
    trainer = build(checkpoint, "deepspeed", replace(LORA, kind="deepspeed", dtype="bf16", weight_decay=0.0))
    key = next(name for name in trainer.adapter() if "lora_A" in name)
    assert trainer.adapter()[key].dtype == torch.bfloat16
    trainer.update(demonstrations(), SftLoss(), 1e-2)  # B leaves 0, so that A has a gradient
    before = trainer.adapter()[key]
    for _ in range(20):
        trainer.update(demonstrations(), SftLoss(), float(before.abs().mean()) * 2**-8 / 10)
    assert (trainer.adapter()[key] != before).float().mean() > 0.25
    assert "inv_freq" in str(kept := exact_buffers(trainer)) or "e_score_correction_bias" in str(kept)


def exact_buffers(trainer: ModelTrainer) -> list[str]:
    return [name for name, tensor in trainer.model.named_buffers() if tensor.dtype == torch.float32]
