"""vLLM serves the checkpoints and the syncs of transformers' models: log-probs agree, blocks have the same names."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor

from rlkit.engine.vllm import VllmEngine
from rlkit.model.hf import HfModel
from rlkit.model.lora import add_lora
from rlkit.parity import GATE, ParityError, check_parity, gate_sequences
from rlkit.train.policy import Policy
from rlkit.train.trainer import ModelTrainer
from tests.hf_folders import make, save

pytestmark = pytest.mark.slow
TOLERANCE = 1e-4


class NoStepper:
    """A trainer that only compares."""

    def __init__(self, model: HfModel) -> None:
        self.module = Policy(model)

    def tensors(self) -> dict[str, Tensor]:
        return self.module.model.state_dict()


@pytest.fixture(scope="module", params=["qwen2", "llama", "mistral", "deepseek"])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(make(request.param), tmp_path_factory.mktemp(request.param))


@pytest.fixture(scope="module")
def engine(folder: Path) -> Iterator[VllmEngine]:
    engine = VllmEngine(folder, max_model_len=64, kv_cache_gib=0.1, threads=1)
    yield engine
    engine.close()


def trainer_of(model: HfModel) -> ModelTrainer:
    return ModelTrainer(model, NoStepper(model), reference=None)  # type: ignore[arg-type]


@torch.no_grad()
def test_parity_after_load_and_after_reloads(engine: VllmEngine, folder: Path) -> None:
    model = HfModel.from_checkpoint(folder)
    trainer = trainer_of(model)
    sequences = gate_sequences(model.lm_head.out_features, 6, 40, seed=0, prompts=[])
    gaps = [check_parity(engine, trainer, sequences, TOLERANCE)]
    ours, theirs = engine.trace(sequences[0]), trainer.trace(sequences[0])
    assert list(ours) == [name for name in theirs if not name.endswith(GATE)]
    for name, ours_TD in ours.items():
        torch.testing.assert_close(ours_TD, theirs[name], rtol=1e-4, atol=1e-4)
    stale = engine.logprobs(sequences)
    for version in (1, 2):
        random = torch.Generator().manual_seed(version)
        for name, parameter in model.named_parameters():
            scale = 0.01 if "norm" in name else 0.03
            parameter.add_(torch.randn(parameter.shape, generator=random), alpha=scale)
        engine.load(trainer.weights(), version)
        gaps.append(check_parity(engine, trainer, sequences, TOLERANCE))
        fresh = engine.logprobs(sequences)
        assert fresh != stale
        stale = fresh
    print(f"{model.files.config.model_type}: vLLM and trainer differ by {max(gaps):.1e} nats after load and syncs")

    add_lora(model, rank=4, alpha=8, targets="all-linear", seed=0)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            parameter.normal_(std=0.1)
    with pytest.raises(ParityError):
        check_parity(engine, trainer, sequences, TOLERANCE)
    engine.load(trainer.weights(), 3)
    merged = check_parity(engine, trainer, sequences, TOLERANCE)
    print(f"{model.files.config.model_type}: merged adapters in vLLM differ by {merged:.1e} nats")


def test_a_block_changed_in_transit_is_named(engine: VllmEngine, folder: Path) -> None:
    model = HfModel.from_checkpoint(folder)
    trainer = trainer_of(model)
    sequences = gate_sequences(model.lm_head.out_features, 2, 40, seed=0, prompts=[])
    name = "model.layers.1.self_attn.o_proj.weight"
    sent = ((n, tensor.flip(0) if n == name else tensor) for n, tensor in trainer.weights())
    engine.load(sent, 1)
    with pytest.raises(ParityError, match=r"First block that differs: model\.layers\.1\.self_attn "):
        check_parity(engine, trainer, sequences, TOLERANCE)
