"""Decoding from latents, in absorbed form, against the full forward pass."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from rlkit.model import DeepseekV3, DeepseekV3Config
from rlkit.model.decode import decode_step, prefill
from tests.model.tiny import BASE, relative, seeded

PROMPTS = ((3, 1, 4, 1, 5, 9, 2, 6), (7,), (27, 18, 28), (3, 1, 4, 1, 5, 9, 2, 6, 5, 3, 5, 8, 9, 7, 9))


@torch.no_grad()
def full(model: DeepseekV3, tokens: list[int]) -> torch.Tensor:
    return model(torch.tensor(tokens))[-1]


@pytest.mark.parametrize("config", [BASE, replace(BASE, q_lora_rank=24, n_group=2, v_head_dim=20)])
@torch.no_grad()
def test_steps_equal_the_full_forward_pass(config: DeepseekV3Config) -> None:
    model = seeded(config)
    texts = [list(prompt) for prompt in PROMPTS]
    logits_BV, cache = prefill(model, PROMPTS)
    cache = cache.rows(torch.arange(4), 15 + 6)
    for step in range(6):
        for text, logits in zip(texts, logits_BV, strict=True):
            assert relative(logits, full(model, text)) <= 1e-5, f"step {step}, prompt of {len(text)} tokens"
        tokens_B = torch.randint(0, 96, (4,))
        for text, token in zip(texts, tokens_B.tolist(), strict=True):
            text.append(token)
        logits_BV, cache = decode_step(model, tokens_B, cache)
    assert cache.lengths_B.tolist() == [len(text) for text in texts]


@torch.no_grad()
def test_rows_repeat_drop_and_reorder_samples() -> None:
    model = seeded()
    _, cache = prefill(model, PROMPTS)
    kept = cache.rows(torch.tensor([2, 0, 2]), 10)
    tokens_B = torch.tensor([11, 12, 13])
    logits_BV, after = decode_step(model, tokens_B, kept)
    for row, (prompt, token) in enumerate(((2, 11), (0, 12), (2, 13))):
        assert relative(logits_BV[row], full(model, [*PROMPTS[prompt], token])) <= 1e-5
    assert after.lengths_B.tolist() == [4, 9, 4]
    assert cache.lengths_B.tolist() == [8, 1, 3, 15], "rows makes a new cache"


def test_the_cache_holds_one_latent_per_token_and_layer() -> None:
    """V3 keeps 512 + 64 numbers per token and layer where plain attention with 128 heads keeps 32768 + 16384."""
    with torch.no_grad():
        _, cache = prefill(seeded(), PROMPTS)
    assert len(cache.layers) == BASE.num_hidden_layers
    width = BASE.kv_lora_rank + BASE.qk_rope_head_dim
    assert all(layer.shape == (4, 15, width) for layer in cache.layers)


def test_refuses_to_write_past_the_room() -> None:
    with torch.no_grad():
        model = seeded()
        _, cache = prefill(model, PROMPTS)
        with pytest.raises(AssertionError, match="room for 15 tokens"):
            decode_step(model, torch.zeros(4, dtype=torch.long), cache)
