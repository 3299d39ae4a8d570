"""vLLM reads YaRN from our export: its log-probs are ours to the end of the stretched context."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from rlkit.engine.vllm import VllmEngine
from rlkit.model import DeepseekV3
from rlkit.model.config import Yarn
from tests.hf_reference import make_model, save_checkpoint
from tests.model.tiny import BASE, seeded

pytestmark = pytest.mark.slow
YARN = Yarn(factor=8, original_max_position_embeddings=32, beta_fast=8, mscale=1.0, mscale_all_dim=0.7)
CONFIG = replace(BASE, rope_scaling=YARN, max_position_embeddings=256, qk_rope_head_dim=16)


@torch.no_grad()
def logprobs(model: DeepseekV3, tokens: tuple[int, ...]) -> torch.Tensor:
    ids_T = torch.tensor(tokens)
    return model(ids_T).log_softmax(-1)[:-1].gather(1, ids_T[1:, None])[:, 0]


def test_logprobs_equal_ours_at_a_factor_of_8(tmp_path: Path) -> None:
    model = seeded(CONFIG)
    save_checkpoint(make_model(), tmp_path)  # for its tokenizer
    model.save_checkpoint(tmp_path, dtype="fp32")
    sequences = [tuple(torch.randint(0, 96, (length,)).tolist()) for length in (8, 31, 100, 240)]
    engine = VllmEngine(tmp_path, max_model_len=256, kv_cache_gib=0.25, threads=1)
    try:
        found = engine.logprobs(sequences)
    finally:
        engine.close()
    plain = seeded(replace(CONFIG, rope_scaling=None))
    plain.load_state_dict(model.state_dict())
    for tokens, theirs in zip(sequences, found, strict=True):
        ours = logprobs(model, tokens)
        gap = float((torch.tensor(theirs) - ours).abs().max())
        moved = float((logprobs(plain, tokens) - ours).abs().max())
        print(f"{len(tokens)} tokens: vLLM differs by {gap:.1e} nats; without YaRN by {moved:.1e}")
        assert gap <= 1e-4
        assert moved > 1e-2, "YaRN makes no difference here, so this shows nothing"
