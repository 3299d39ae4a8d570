"""vLLM on our export of a model with V2's softmax router: its log-probs are ours after start and after a sync."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from rlkit.engine.local import TorchEngine
from rlkit.engine.vllm import VllmEngine
from rlkit.model import DeepseekV3, DeepseekV3Config
from rlkit.parity import check_parity, gate_sequences
from tests.hf_reference import make_model, save_checkpoint
from tests.model.tiny import seeded
from tests.parity.test_deepseek_v2 import CONFIGS

pytestmark = pytest.mark.slow


def started(model: DeepseekV3, folder: Path) -> VllmEngine:
    save_checkpoint(make_model(), folder)  # for its tokenizer
    model.save_checkpoint(folder, dtype="fp32")
    return VllmEngine(folder, max_model_len=128, kv_cache_gib=0.25, threads=1)


@pytest.fixture(params=["greedy", "group_limited_yarn"])
def config(request: pytest.FixtureRequest) -> DeepseekV3Config:
    return replace(CONFIGS[request.param], qk_rope_head_dim=16)  # vLLM's attention on the CPU wants heads of 32


def test_logprobs_equal_ours_after_start_and_after_a_sync(config: DeepseekV3Config, tmp_path: Path) -> None:
    """With groups also YaRN and a scaling factor of 16, as in DeepSeek-V2."""
    trained = TorchEngine(seeded(config), 1, lambda _tokens: "")
    sequences = gate_sequences(96, 6, 96, seed=0, prompts=())
    engine = started(trained.model, tmp_path)
    try:
        gaps = [check_parity(engine, trained, sequences, 1e-4)]
        before = engine.logprobs(sequences)
        trained.model.load_weights(seeded(config, seed=1).checkpoint_weights())
        engine.load(trained.model.checkpoint_weights(), 1)
        gaps.append(check_parity(engine, trained, sequences, 1e-4))
        assert engine.logprobs(sequences) != before
    finally:
        engine.close()
    print(f"{config.topk_method}: vLLM differs by {gaps[0]:.1e} nats, after a sync by {gaps[1]:.1e}")
    assert max(gaps) <= 1e-4
