"""A DeepSeek-V3 that is as small as FP8 allows: every inner width is one tile of 128, or two."""

from __future__ import annotations

from rlkit.model import DeepseekV3Config

TILED = DeepseekV3Config(
    vocab_size=96,
    hidden_size=128,
    intermediate_size=256,
    moe_intermediate_size=128,
    num_hidden_layers=3,
    first_k_dense_replace=1,
    num_attention_heads=4,
    n_routed_experts=4,
    num_experts_per_tok=2,
    n_group=2,
    topk_group=1,
    q_lora_rank=128,
    kv_lora_rank=128,
    qk_nope_head_dim=32,
    qk_rope_head_dim=16,
    v_head_dim=32,
    initializer_range=0.05,
)
