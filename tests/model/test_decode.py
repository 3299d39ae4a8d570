"""Decoding from latents, in absorbed form, against the full forward pass."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from rlkit.model import DeepseekV3, DeepseekV3Config
from rlkit.model.config import Yarn
from tests.model.random_configs import SEEDS, random_config
from tests.model.tiny import BASE, relative, seeded

PROMPTS = ((3, 1, 4, 1, 5, 9, 2, 6), (7,), (27, 18, 28), (3, 1, 4, 1, 5, 9, 2, 6, 5, 3, 5, 8, 9, 7, 9))


@torch.no_grad()
def full(model: DeepseekV3, tokens: list[int]) -> torch.Tensor:
    return model(torch.tensor(tokens))[-1]


YARN = Yarn(factor=4, original_max_position_embeddings=8, mscale=1.0, mscale_all_dim=0.5)
CONFIGS = [
    BASE,
    replace(BASE, q_lora_rank=24, n_group=2, v_head_dim=20),
    replace(BASE, rope_scaling=YARN, max_position_embeddings=32),
    replace(BASE, scoring_func="softmax", norm_topk_prob=False, n_group=4, topk_group=2),
    *(random_config(seed) for seed in SEEDS),
]


@pytest.mark.parametrize("config", CONFIGS, ids=range(len(CONFIGS)))
@torch.no_grad()
def test_steps_equal_the_full_forward_pass(config: DeepseekV3Config) -> None:
    """Absorbed decoding from latents against attention with keys and values expanded."""
    model = seeded(config)
    texts = [list(prompt) for prompt in PROMPTS]
    logits_BV, cache = model.prefill(PROMPTS)
    cache = cache.rows(torch.arange(4), 15 + 6)
    for step in range(6):
        for text, logits in zip(texts, logits_BV, strict=True):
            assert relative(logits, full(model, text)) <= 1e-5, f"step {step}, prompt of {len(text)} tokens"
        tokens_B = torch.randint(0, config.vocab_size, (4,))
        for text, token in zip(texts, tokens_B.tolist(), strict=True):
            text.append(token)
        logits_BV, cache = model.decode_step(tokens_B, cache)
    assert cache.lengths_B.tolist() == [len(text) for text in texts]


@torch.no_grad()
def test_rows_repeat_drop_and_reorder_samples() -> None:
    model = seeded()
    _, cache = model.prefill(PROMPTS)
    kept = cache.rows(torch.tensor([2, 0, 2]), 10)
    tokens_B = torch.tensor([11, 12, 13])
    logits_BV, after = model.decode_step(tokens_B, kept)
    for row, (prompt, token) in enumerate(((2, 11), (0, 12), (2, 13))):
        assert relative(logits_BV[row], full(model, [*PROMPTS[prompt], token])) <= 1e-5
    assert after.lengths_B.tolist() == [4, 9, 4]
    assert cache.lengths_B.tolist() == [8, 1, 3, 15], "rows makes a new cache"


@torch.no_grad()
def test_the_cache_is_57_times_smaller_than_keys_and_values_at_v3_geometry() -> None:
    """V3's attention behind a hidden size of 64: bytes of the real cache against those that expanding it makes."""
    config = replace(
        DeepseekV3Config(), vocab_size=40, hidden_size=64, intermediate_size=64, num_hidden_layers=1, q_lora_rank=8,
        first_k_dense_replace=1,
    )  # fmt: skip
    with torch.device("meta"):
        model = DeepseekV3(config)
    model = model.bfloat16().to_empty(device="cpu")
    for parameter in model.parameters():
        parameter.fill_(0.01)
    _, cache = model.prefill(PROMPTS)
    (layer_BSW,) = cache.layers
    tokens = layer_BSW.shape[0] * layer_BSW.shape[1]
    assert layer_BSW.nbytes == layer_BSW.untyped_storage().nbytes() == tokens * 576 * 2, "bytes of bf16"
    latent, rotary_key = layer_BSW.split([512, 64], dim=-1)
    expanded = model.model.blocks()[0].self_attn.kv_b_proj(latent)
    ratio = (expanded.nbytes + rotary_key.numel() * 2) / layer_BSW.nbytes
    print(f"cache of a token and layer: {layer_BSW.nbytes // tokens} bytes, {ratio:.1f}x smaller than keys and values")
    assert ratio == 57.0, "128 heads x (128 + 128) and one shared rotary key of 64"


def test_the_cache_holds_one_latent_per_token_and_layer() -> None:
    with torch.no_grad():
        _, cache = seeded().prefill(PROMPTS)
    assert len(cache.layers) == BASE.num_hidden_layers
    width = BASE.kv_lora_rank + BASE.qk_rope_head_dim
    assert all(layer.shape == (4, 15, width) for layer in cache.layers)


def test_refuses_to_write_past_the_room() -> None:
    with torch.no_grad():
        model = seeded()
        _, cache = model.prefill(PROMPTS)
        with pytest.raises(AssertionError, match="room for 15 tokens"):
            model.decode_step(torch.zeros(4, dtype=torch.long), cache)
