"""Small configs drawn at random, each with samples of random lengths: every size, switch and branch of the model."""

from __future__ import annotations

import random

import torch
from torch import Tensor

from rlkit.model import DeepseekV3Config
from rlkit.model.config import Yarn

SEEDS = range(32)


def random_config(seed: int) -> DeepseekV3Config:
    """One config per seed; every fourth has no YaRN."""
    draw = random.Random(seed)
    pick = draw.choice
    groups, per_group, layers = pick([1, 2, 4]), pick([2, 4, 8]), draw.randint(1, 3)
    topk_group = draw.randint(1, groups)
    yarn = None
    if seed % 4:
        mscale, all_dim = pick([(1.0, 1.0), (0.707, 0.707), (1.0, 0.5), (1.0, 0.0), (1.3, 0.4)])
        yarn = Yarn(
            factor=pick([1, 2, 4, 8.5, 40]),
            original_max_position_embeddings=pick([48, 64, 4096]),
            beta_fast=pick([32, 8]),
            beta_slow=pick([1, 0.5]),
            mscale=mscale,
            mscale_all_dim=all_dim,
        )
    return DeepseekV3Config(
        vocab_size=pick([40, 96]),
        hidden_size=pick([32, 64, 72]),
        intermediate_size=pick([48, 80]),
        moe_intermediate_size=pick([8, 24, 32]),
        num_hidden_layers=layers,
        num_attention_heads=pick([1, 2, 3, 8]),
        n_routed_experts=groups * per_group,
        n_shared_experts=pick([1, 2]),
        num_experts_per_tok=draw.randint(1, min(6, topk_group * per_group)),
        n_group=groups,
        topk_group=topk_group,
        first_k_dense_replace=draw.randint(0, layers),
        routed_scaling_factor=pick([1.0, 2.5]),
        norm_topk_prob=pick([True, True, False]),
        q_lora_rank=pick([None, 16, 24]),
        kv_lora_rank=pick([8, 32]),
        qk_nope_head_dim=pick([4, 8, 24]),
        qk_rope_head_dim=pick([2, 4, 8, 16]),
        v_head_dim=pick([4, 12, 32]),
        rope_theta=pick([100.0, 10000.0, 50000.0]),
        rope_scaling=yarn,
        rms_norm_eps=pick([1e-6, 1e-5]),
        max_position_embeddings=yarn.reach if yarn else 256,
        tie_word_embeddings=pick([False, False, True]),
        initializer_range=0.1,
    )


def random_samples(seed: int, config: DeepseekV3Config) -> list[Tensor]:
    """Two to four samples that fit; some longer than the original context, some than the short attention path takes."""
    draw = random.Random(seed)
    longest = min(150, config.max_position_embeddings)
    lengths = [draw.randint(2, longest), *(draw.randint(2, 40) for _ in range(draw.randint(1, 3)))]
    random_ids = torch.Generator().manual_seed(seed)
    return [torch.randint(0, config.vocab_size, (length,), generator=random_ids) for length in lengths]
