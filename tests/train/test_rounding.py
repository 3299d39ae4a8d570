"""Numbers rounded once more: how much changes, and that nothing of it stays."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from rlkit.model.base import CausalLM
from rlkit.model.hf import HfModel
from rlkit.model.lora import add_lora
from rlkit.train.rounding import UNIT, Rounding, rounded_anew
from rlkit.train.steppers.torch import TorchStepper
from rlkit.train.trainer import ModelTrainer
from tests.hf_folders import make, save
from tests.model.tiny import seeded
from tests.train.test_trainer import CFG

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


def learner(model: CausalLM) -> ModelTrainer:
    return ModelTrainer(model, TorchStepper(model, CFG), reference=None)


MODELS: dict[str, Callable[[Path], CausalLM]] = {
    "ours": lambda folder: seeded(),
    "qwen2": lambda folder: HfModel.from_checkpoint(save(make("qwen2"), folder)),
    "mistral": lambda folder: HfModel.from_checkpoint(save(make("mistral"), folder)),
    "deepseek of transformers": lambda folder: HfModel.from_checkpoint(save(make("deepseek"), folder)),
}


@pytest.mark.parametrize("kind", MODELS)
@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_rounding_anew_changes_little_and_leaves_nothing_behind(kind: str, dtype: str, tmp_path: Path) -> None:
    model = MODELS[kind](tmp_path).to(DTYPES[dtype])
    trainer = learner(model)
    sequences = [(5, 6, 7, 8, 9, 10), (4, 3, 2)]
    before, state = trainer.logprobs(sequences), {n: t.clone() for n, t in model.state_dict().items()}
    random = torch.get_rng_state()
    one, again, two = (trainer.logprobs(sequences, Rounding(unit=UNIT[dtype], seed=seed)) for seed in (0, 0, 1))
    assert one == again != two != before
    changes = [abs(a - b) for rows in zip(one, before, strict=True) for a, b in zip(*rows, strict=True)]
    assert 0 < max(changes) <= {"fp32": 1e-4, "bf16": 1.5}[dtype]
    assert trainer.logprobs(sequences) == before, "hooks are gone"
    assert torch.equal(torch.get_rng_state(), random), "a resumed run draws the same numbers"
    assert all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())
    traced, noisy = trainer.trace(sequences[0]), trainer.trace(sequences[0], Rounding(unit=UNIT[dtype], seed=0))
    assert traced.keys() == noisy.keys()
    assert not any(torch.equal(tensor, noisy[name]) for name, tensor in traced.items() if "gate" not in name)


def test_a_failure_inside_leaves_no_hooks() -> None:
    model = seeded()
    with pytest.raises(RuntimeError, match="on purpose"), rounded_anew(model, Rounding(unit=1e-3, seed=0)):
        raise RuntimeError("on purpose")
    assert not any(module._forward_hooks for module in model.modules())


def test_adapters_are_rounded_too() -> None:
    model = seeded()
    add_lora(model, rank=2, alpha=4, targets="all-linear", seed=0)
    trainer = learner(model)
    assert trainer.logprobs([(5, 6, 7)]) != trainer.logprobs([(5, 6, 7)], Rounding(unit=1e-3, seed=0))
