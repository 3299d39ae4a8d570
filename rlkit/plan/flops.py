"""Floating point operations of a token, from the shapes: two for each parameter it meets, and attention's products.

Norms, rotations, softmax and the router's choice are left out; they are a few in a thousand.
"""

from __future__ import annotations

from rlkit.model.config import DeepseekV3Config


def forward_flops(active: int, config: DeepseekV3Config | None, context: float) -> float:
    """Returns the FLOPs of a forward pass per token that sees `context` tokens on average.

    2 N_active + 2 layers H (d_k + d_v) context. `active` counts one row of the embedding, which is looked up. Without
    a config (models of transformers) attention's products are left out.
    """
    if config is None:
        return 2.0 * active
    key = config.qk_nope_head_dim + config.qk_rope_head_dim
    attended = config.num_hidden_layers * config.num_attention_heads * (key + config.v_head_dim) * context
    return 2.0 * (active - config.hidden_size) + 2.0 * attended


def decode_flops(active: int, config: DeepseekV3Config | None, context: float) -> float:
    """Returns the FLOPs of one decoded token that sees `context` cached latents.

    2 N_active + 2 layers H (2 C + R) context: with the absorbed projections a head meets the latent itself, C + R
    numbers for a score and C for the output.
    """
    if config is None:
        return 2.0 * active
    width = 2 * config.kv_lora_rank + config.qk_rope_head_dim
    attended = config.num_hidden_layers * config.num_attention_heads * width * context
    return 2.0 * (active - config.hidden_size) + 2.0 * attended


def backward_flops(forward: float, *, recompute: bool) -> float:
    """Returns the FLOPs of the backward pass: twice the forward pass, and that once more where blocks are run again."""
    return forward * (3.0 if recompute else 2.0)


def experts_read(num_experts: int, chosen: int, tokens: float) -> float:
    """Returns how many experts of a layer a batch of tokens visits, if choices were even: E (1 - (1 - K/E)^T)."""
    return num_experts * (1.0 - (1.0 - chosen / num_experts) ** tokens)
