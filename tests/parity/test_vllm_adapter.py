"""vLLM serves the adapter itself: a sync replaces it, every request has it, and a wrong number in it is found."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor

from rlkit.config import LoraConfig
from rlkit.engine.vllm import VllmEngine
from rlkit.model.hf import HfModel
from rlkit.model.lora import add_lora
from rlkit.parity import GATE, ParityError, check_parity, gate_sequences
from rlkit.train.policy import Policy
from rlkit.train.trainer import ModelTrainer
from rlkit.types import Prompt, Sampling
from tests.hf_folders import make, save

pytestmark = pytest.mark.slow
TOLERANCE = 1e-4
LAYERS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
LORA = LoraConfig(rank=12, alpha=9, targets=LAYERS, served="adapter")  # no rank of vLLM's, no power of two as scale


class NoStepper:
    """A trainer that only compares."""

    def __init__(self, model: HfModel) -> None:
        self.module = Policy(model)

    def tensors(self) -> dict[str, Tensor]:
        return self.module.model.state_dict()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Its head is not tied: vLLM would put an adapter there too, and fail."""
    return save(make("llama"), tmp_path_factory.mktemp("llama"))


@pytest.fixture(scope="module")
def engine(folder: Path) -> Iterator[VllmEngine]:
    engine = VllmEngine(folder, max_model_len=64, kv_cache_gib=0.1, threads=1, lora=LORA)
    yield engine
    engine.close()


@torch.no_grad()
def adapted(folder: Path, seed: int, size: float = 0.1, dtype: torch.dtype = torch.float32) -> ModelTrainer:
    """A trainer whose adapters have B of this size."""
    model = HfModel.from_checkpoint(folder, dtype)
    add_lora(model, rank=LORA.rank, alpha=LORA.alpha, targets=LORA.targets, seed=seed)
    random = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            parameter.copy_(torch.randn(parameter.shape, generator=random) * size)
    return ModelTrainer(model, NoStepper(model), reference=None)  # type: ignore[arg-type]


def test_every_sync_replaces_the_adapter(engine: VllmEngine, folder: Path) -> None:
    one, two = adapted(folder, 1), adapted(folder, 2)
    sequences = gate_sequences(one.model.lm_head.out_features, 6, 40, seed=0, prompts=[])
    gaps = []
    for version, trainer in enumerate((one, two, one), start=1):
        with pytest.raises(ParityError):  # the base alone, or the adapter before
            check_parity(engine, trainer, sequences, TOLERANCE)
        sent = trainer.adapter()
        for _ in range(2):  # what was sent is not used up
            engine.load(sent.items(), version)
            gaps.append(check_parity(engine, trainer, sequences, TOLERANCE))
    print(f"vLLM with an adapter and the trainer differ by {max(gaps):.1e} nats")
    ours, theirs = engine.trace(sequences[0]), one.trace(sequences[0])
    assert list(ours) == [name for name in theirs if not name.endswith(GATE)]
    for name, ours_TD in ours.items():
        torch.testing.assert_close(ours_TD, theirs[name], rtol=1e-4, atol=1e-4)


def test_what_is_sampled_comes_from_the_adapter(engine: VllmEngine, folder: Path) -> None:
    """Prompts of several lengths, decoded together."""
    trainer = adapted(folder, 3)
    engine.load(trainer.adapter().items(), 7)
    prompts = [Prompt(id=f"p{i}", tokens=tuple(range(9, 12 + 3 * i)), text="", meta={}) for i in range(4)]
    sampling = Sampling(temperature=1.0, top_p=1.0, max_new_tokens=16, seed=0)
    rollouts = [(g.prompt, r) for g in engine.generate(prompts, 3, sampling) for r in g.rollouts]
    assert len(rollouts) == 12 and {rollout.weight_version for _, rollout in rollouts} == {7}
    whole = trainer.logprobs([prompt.tokens + rollout.tokens for prompt, rollout in rollouts])
    for (prompt, rollout), logprobs in zip(rollouts, whole, strict=True):
        assert rollout.logprobs == pytest.approx(logprobs[len(prompt.tokens) - 1 :], abs=TOLERANCE)


def test_a_wrong_number_is_found_and_its_block_named(engine: VllmEngine, folder: Path) -> None:
    trainer = adapted(folder, 4)
    sequences = gate_sequences(trainer.model.lm_head.out_features, 6, 40, seed=0, prompts=[])
    sent = dict(trainer.adapter())
    key = "base_model.model.model.layers.1.self_attn.v_proj.lora_B.weight"
    numbers = sent[key].view(torch.int32)
    numbers[3, 5] ^= 1 << 25  # one bit of the exponent's
    engine.load(sent.items(), 1)
    with pytest.raises(ParityError, match=r"First block that differs: model\.layers\.1\.self_attn "):
        check_parity(engine, trainer, sequences, TOLERANCE)


def test_in_bf16_vllm_computes_what_the_trainer_does_where_merging_rounds_it_away(tmp_path: Path) -> None:
    """A trainer that holds the merged weights stands for an engine that does: both are as far from the policy."""
    shape = {"hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 4, "initializer_range": 0.05}
    base = save(make("llama", num_attention_heads=4, num_key_value_heads=2, **shape).bfloat16(), tmp_path / "base")
    tiny, small = (adapted(base, 0, size, torch.bfloat16) for size in (1e-5, 5e-3))
    before = dict(HfModel.from_checkpoint(base, torch.bfloat16).checkpoint_weights())
    kept = [(tensor == before[name]).flatten() for name, tensor in tiny.weights() if name.split(".")[-2] in LAYERS]
    assert torch.cat(kept).float().mean() > 0.98, "B of 1e-5 is lost in the rounding of W"

    sequences = gate_sequences(small.model.lm_head.out_features, 32, 60, seed=0, prompts=[])
    engine = VllmEngine(base, dtype="bfloat16", max_model_len=64, kv_cache_gib=0.1, threads=1, lora=LORA)
    engine.load(small.adapter().items(), 1)
    sampled = engine.logprobs(sequences)
    engine.close()
    model = HfModel.from_checkpoint(base, torch.bfloat16)
    model.load_weights(small.weights())
    merged = ModelTrainer(model, NoStepper(model), reference=None)  # type: ignore[arg-type]
    apart, apart_merged = (mean_gap(sampled, trainer.logprobs(sequences)) for trainer in (small, merged))
    print(f"vLLM in bf16 differs from the trainer by {apart:.1e} nats, from merged weights by {apart_merged:.1e}")
    assert 1.15 * apart < apart_merged


def mean_gap(ours: list[list[float]], theirs: list[list[float]]) -> float:
    return float((torch.tensor(ours) - torch.tensor(theirs)).abs().mean())


def test_a_layer_that_vllm_has_no_place_for_is_no_silent_loss(engine: VllmEngine, folder: Path) -> None:
    sent = {name.replace("o_proj", "z_proj"): tensor for name, tensor in adapted(folder, 5).adapter().items()}
    with pytest.raises(ValueError, match=r"no place for an adapter on model\.layers\.0\.self_attn\.z_proj; leave"):
        engine.load(sent.items(), 1)
