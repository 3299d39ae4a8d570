"""Weight decay falls on matrices and on nothing else, whatever the model and the optimiser around it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, distributed

from rlkit.algo import NO_MTP, MtpTerm, SftLoss
from rlkit.config import LoraConfig, TrainerConfig
from rlkit.model import DeepseekV3
from rlkit.model.base import CausalLM
from rlkit.model.hf import HfModel
from rlkit.model.lora import add_lora
from rlkit.train.steppers.base import parameter_groups
from rlkit.train.steppers.deepspeed import DeepSpeedStepper, join_ranks
from rlkit.train.steppers.torch import TorchStepper
from rlkit.train.trainer import ModelTrainer
from tests.hf_folders import make, save
from tests.model.tiny import seeded
from tests.train.test_trainer import ARCHITECTURE, CFG, demonstrations

DECAY, LR = 0.5, 1e-2
SFT = MtpTerm(weight=0.3, detached=False)


def spared(name: str) -> bool:
    """By name, as a reader would say it: gains of norms, biases, embeddings, and a head tied to one."""
    return name.endswith(("norm.weight", ".bias")) or "embed_tokens" in name or name.endswith(("hnorm", "enorm"))


def ours(**changes: object) -> Callable[[Path], CausalLM]:
    return lambda _folder: seeded(replace(ARCHITECTURE, **changes))  # type: ignore[arg-type]


def theirs(kind: str) -> Callable[[Path], CausalLM]:
    return lambda folder: HfModel.from_checkpoint(save(make(kind), folder))


MODELS = {
    "ours": ours(),
    "tied": ours(tie_word_embeddings=True),
    "with MTP": ours(num_nextn_predict_layers=2),
    "qwen2": theirs("qwen2"),
    "llama": theirs("llama"),
    "deepseek of transformers": theirs("deepseek"),
}
CONFIGS = {
    "torch": replace(CFG, kind="torch"),
    "ZeRO-1": replace(CFG, kind="deepspeed"),
    "ZeRO-2": replace(CFG, kind="deepspeed", zero_stage=2),
}


def stepped(model: CausalLM, cfg: TrainerConfig, weight_decay: float, mtp: MtpTerm) -> dict[str, Tensor]:
    cfg = replace(cfg, weight_decay=weight_decay)
    if cfg.kind == "deepspeed":
        join_ranks(distributed.HashStore(), 0, 1)
    stepper = TorchStepper(model, cfg) if cfg.kind == "torch" else DeepSpeedStepper(model, cfg)
    trainer = ModelTrainer(model, stepper, reference=None)
    trainer.update(demonstrations(), SftLoss(), LR, mtp)
    return {name: parameter.detach().clone() for name, parameter in trainer.model.named_parameters()}


@pytest.mark.slow
@pytest.mark.parametrize("optimiser", CONFIGS)
@pytest.mark.parametrize("kind", MODELS)
def test_a_step_decays_matrices_alone(kind: str, optimiser: str, tmp_path: Path) -> None:
    """w - lr (update + decay w) beside w - lr update: they differ by lr decay w, or not at all."""
    model = MODELS[kind](tmp_path)
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    with_decay = stepped(model, CONFIGS[optimiser], DECAY, SFT)
    without = stepped(MODELS[kind](tmp_path), CONFIGS[optimiser], 0.0, SFT)
    names = set()
    for name, tensor in before.items():
        expected = torch.zeros(()) if spared(name) else LR * DECAY * tensor
        torch.testing.assert_close(without[name] - with_decay[name], expected.expand_as(tensor), rtol=1e-3, atol=1e-6)
        names.add(spared(name))
        assert tensor.ndim > 1 or spared(name), name
    assert names == {True, False}


@pytest.mark.parametrize("optimiser", CONFIGS)
def test_modules_that_did_not_run_are_not_decayed(optimiser: str, tmp_path: Path) -> None:
    model = MODELS["with MTP"](tmp_path)
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    after = stepped(model, CONFIGS[optimiser], DECAY, NO_MTP)
    apart = ("model.layers.3.", "model.layers.4.")
    assert all(torch.equal(after[name], tensor) == name.startswith(apart) for name, tensor in before.items())


def test_adapters_are_matrices() -> None:
    model = seeded(ARCHITECTURE)
    lora = LoraConfig()
    add_lora(model, rank=lora.rank, alpha=lora.alpha, targets=lora.targets, seed=0)
    [group] = parameter_groups(model, DECAY)
    assert group["weight_decay"] == DECAY
    assert len(group["params"]) == sum(parameter.requires_grad for parameter in model.parameters())


def test_without_decay_there_is_nothing_to_tell_apart() -> None:
    """One group, as an optimiser that knows nothing of decay has it; every parameter once."""
    model = DeepseekV3(ARCHITECTURE)
    [group] = parameter_groups(model, 0.0)
    assert [id(parameter) for parameter in group["params"]] == [id(parameter) for parameter in model.parameters()]
    held = [id(parameter) for group in parameter_groups(model, DECAY) for parameter in group["params"]]
    assert sorted(held) == sorted(id(parameter) for parameter in model.parameters())
