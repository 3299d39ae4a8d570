"""vLLM with its own latent cache (VLLM_MLA_DISABLE=0), at the one width that its CPU kernel has: 512 + 64."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from rlkit.engine.local import TorchEngine
from rlkit.engine.vllm import VllmEngine
from rlkit.parity import check_parity, gate_sequences
from rlkit.types import Prompt, Sampling
from tests.hf_reference import VOCAB, make_model, save_checkpoint
from tests.model.tiny import BASE, seeded

pytestmark = pytest.mark.slow
CONFIG = replace(
    BASE, vocab_size=VOCAB, kv_lora_rank=512, qk_rope_head_dim=64, qk_nope_head_dim=32, v_head_dim=32
)  # the absorbed matrices are packed in rows of 32
PROMPTS = [Prompt(id=f"p{i}", tokens=tuple(range(5 + i, 13 + 3 * i)), text="", meta={}) for i in range(4)]


@pytest.fixture
def engine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[VllmEngine]:
    monkeypatch.setenv("VLLM_MLA_DISABLE", "0")
    save_checkpoint(make_model(), tmp_path)  # for its tokenizer
    seeded(CONFIG).save_checkpoint(tmp_path, dtype="fp32")
    engine = VllmEngine(tmp_path, max_model_len=128, kv_cache_gib=0.25, threads=1)
    yield engine
    engine.close()


def test_latent_attention_of_vllm_agrees_before_and_after_a_sync_and_while_it_decodes(engine: VllmEngine) -> None:
    layers = engine._engine.apply_model(lambda model: [type(m).__name__ for m in model.modules()])[0]
    assert any("MLAAttention" in name for name in layers), "vLLM expanded keys and values, so this shows nothing"
    sequences = gate_sequences(VOCAB, 6, 100, seed=0, prompts=[prompt.tokens for prompt in PROMPTS])
    for version, model in enumerate((seeded(CONFIG), seeded(CONFIG, seed=1)), start=1):
        ours = TorchEngine(model, eos_token_id=1, decode=str)
        if version > 1:
            engine.load(model.checkpoint_weights(), version)
        gap = check_parity(engine, ours, sequences, 1e-4)
        print(f"latent width 576, weights {version}: {gap:.1e} nats")
        # Sampled with the decode kernel, judged with whole sequences by ours.
        sampling = Sampling(temperature=1.0, top_p=1.0, max_new_tokens=40, seed=7)
        for group in engine.generate(PROMPTS, 2, sampling):
            for rollout in group.rollouts:
                start = len(group.prompt.tokens)
                [logprobs] = ours.logprobs([(*group.prompt.tokens, *rollout.tokens)])
                torch.testing.assert_close(
                    torch.tensor(rollout.logprobs), torch.tensor(logprobs[start - 1 :]), rtol=0, atol=1e-4
                )
