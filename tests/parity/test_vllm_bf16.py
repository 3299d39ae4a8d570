"""The gate over vLLM in bf16: honest weights pass after every sync, wrong ones do not."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch

pytest.importorskip("vllm")

from rlkit.algo import SftLoss
from rlkit.engine.vllm import VllmEngine
from rlkit.model import DeepseekV3
from rlkit.parity import ParityError, gate, gate_sequences
from rlkit.train.rounding import UNIT
from rlkit.train.steppers.torch import TorchStepper
from rlkit.train.trainer import ModelTrainer
from tests.hf_reference import VOCAB, make_model, save_checkpoint
from tests.train.test_trainer import CFG, demonstrations

pytestmark = pytest.mark.slow
SEQUENCES = gate_sequences(VOCAB, 8, 40, seed=2, prompts=[tuple(range(5, 20))])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bf16")
    save_checkpoint(make_model(), folder)
    return folder


@pytest.fixture(scope="module")
def engine(folder: Path) -> Iterator[VllmEngine]:
    engine = VllmEngine(folder, dtype="bfloat16", max_model_len=128, max_num_seqs=16, kv_cache_gib=0.1, threads=1)
    yield engine
    engine.close()


def test_the_gate_tells_rounding_from_wrong_weights(folder: Path, engine: VllmEngine) -> None:
    model = DeepseekV3.from_checkpoint(folder, torch.bfloat16)
    trainer = ModelTrainer(model, TorchStepper(model, replace(CFG, weight_decay=0.0)), reference=None)
    check = gate(engine, trainer, SEQUENCES, 1e-4, UNIT["bf16"])
    for step in range(3):
        engine.load(trainer.weights(), step)
        found = check()
        print(f"sync {step}: {found}")
        assert 1e-3 < found.mean < found.gap and "3 x what rounding changes" in found.limit
        trainer.update(demonstrations(step), SftLoss(), 1e-2)

    weights = {name: tensor.clone() for name, tensor in trainer.weights()}
    for wrong in (
        lambda name, tensor: tensor * 0 if name == "model.layers.1.self_attn.o_proj.weight" else tensor,
        lambda name, tensor: tensor.roll(1, 0) if name == "model.layers.1.mlp.gate.weight" else tensor,
        lambda name, tensor: weights[name.replace("layers.1", "layers.2")] if "layers.1.mlp.sh" in name else tensor,
        lambda name, tensor: tensor.roll(1, 0) if name == "model.embed_tokens.weight" else tensor,
    ):
        engine.load(((name, wrong(name, tensor)) for name, tensor in weights.items()), 9)
        with pytest.raises(ParityError, match="nats on average") as error:
            check()
        print(str(error.value)[:160])
    engine.load(trainer.weights(), 10)
    check()
