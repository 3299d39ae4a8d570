"""How much a forward pass of our DeepSeek keeps for its backward pass, and how much the logits take.

Counted from what autograd saves in `rlkit.model`, tensor by tensor. T tokens, D hidden, H heads, K experts a token.
"""

from __future__ import annotations

from collections.abc import Sequence

from rlkit.algo.logprobs import MAX_LOGITS
from rlkit.model.attention import SHORT
from rlkit.model.config import DeepseekV3Config
from rlkit.plan.layout import Layout

LOGIT_COPIES = 4
"""Logits, those over the temperature, their log-softmax and its exponential, in fp32, of one chunk."""


def block_numbers(config: DeepseekV3Config, *, dense: bool, sample: int, width: int, on_cpu: bool) -> int:
    """Returns how many numbers one token leaves in one block: those of the attention and those of the MLP.

    attention = 2 D + 2 Q + 2 C + R + 4 H d_k + H d_v           (q, k, v and output at one width, as kernels want them)
              or 2 D + 2 Q + 2 C + R + 2 H d_k + 2 H d_v + H L    for samples of L <= 128 tokens on a CPU
    dense MLP = 2 D + 4 I;   experts = 2 D + K D + 3 K I + 4 S I, and 2 D more where numbers have 2 bytes: the router
    computes in fp32 and keeps its input so
    """
    cfg, heads = config, config.num_attention_heads
    key, value = cfg.qk_nope_head_dim + cfg.qk_rope_head_dim, cfg.v_head_dim
    if on_cpu and sample <= SHORT:
        attended = heads * (2 * key + 2 * value + sample)
    else:
        attended = heads * (4 * max(key, value) + value)
    low = 2 * cfg.q_lora_rank if cfg.q_lora_rank else 0
    attention = 2 * cfg.hidden_size + low + 2 * cfg.kv_lora_rank + cfg.qk_rope_head_dim + attended
    if dense:
        return attention + 2 * cfg.hidden_size + 4 * cfg.intermediate_size
    chosen, inner = cfg.num_experts_per_tok, cfg.moe_intermediate_size
    routed = chosen * (cfg.hidden_size + 3 * inner)
    router = 2 * cfg.hidden_size if width == 2 else 0
    return attention + 2 * cfg.hidden_size + routed + 4 * cfg.n_shared_experts * inner + router


def activation_bytes(
    config: DeepseekV3Config,
    layout: Layout,
    layers: Sequence[int],
    *,
    tokens: int,
    sample: int,
    width: int,
    on_cpu: bool,
) -> int:
    """Returns the bytes that a rank with these layers keeps of packs of `tokens` tokens, in samples of `sample`.

    `width` is the bytes of a number. Experts get as many rows from other ranks as they send, on average. In a pipeline
    of P stages, 2 P + 1 pieces of the 2 P wait for their backward pass at once (DualPipeV), the rank's two each so
    often. With recomputation a block keeps its input, and one block at a time all that it needs.
    """
    per_layer = [
        block_numbers(config, dense=layer < config.first_k_dense_replace, sample=sample, width=width, on_cpu=on_cpu)
        for layer in layers
    ]
    once = 0
    if layout.recompute:
        once = max(per_layer, default=0)
        per_layer = [config.hidden_size] * len(layers)
    in_flight = (2 * layout.pipeline_stages + 1) / 2 if layout.pipeline_stages > 1 else 1
    ends = 2 * config.hidden_size  # input and output of the last norm
    return round(tokens * width * (sum(per_layer) * in_flight + once + ends))


def logit_bytes(vocab_size: int, tokens: int) -> int:
    """Returns the bytes of the logits that are alive at once: of a chunk of the tokens, in fp32."""
    rows = min(tokens, max(1, MAX_LOGITS // vocab_size))
    return LOGIT_COPIES * rows * vocab_size * 4
