"""A DeepSeek-V3 small enough for unit tests, and how far two tensors are apart."""

from __future__ import annotations

import torch
from torch import Tensor

from rlkit.model import DeepseekV3, DeepseekV3Config

BASE = DeepseekV3Config(
    vocab_size=96,
    hidden_size=64,
    intermediate_size=96,
    moe_intermediate_size=32,
    num_hidden_layers=3,
    num_attention_heads=4,
    n_routed_experts=8,
    n_shared_experts=1,
    num_experts_per_tok=2,
    n_group=1,
    topk_group=1,
    first_k_dense_replace=1,
    q_lora_rank=None,
    kv_lora_rank=32,
    qk_nope_head_dim=16,
    qk_rope_head_dim=8,
    v_head_dim=12,
    initializer_range=0.1,
    max_position_embeddings=128,
)


def seeded(config: DeepseekV3Config = BASE, seed: int = 0) -> DeepseekV3:
    """A model whose norms and correction bias are not at their starting values, so that no term is trivially right."""
    torch.manual_seed(seed)
    model = DeepseekV3(config)
    for name, tensor in model.state_dict().items():
        if name.endswith("e_score_correction_bias"):
            tensor.normal_(std=0.1)
        elif "norm" in name:
            tensor.uniform_(0.5, 1.5)
    return model


def relative(a: Tensor, b: Tensor) -> float:
    """|a - b| / |b|, both norms over the whole tensor."""
    return float((a - b).detach().norm() / b.detach().norm().clamp_min(1e-12))
