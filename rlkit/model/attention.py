"""Multi-head latent attention (DeepSeek-V2, arXiv:2405.04434, section 2.1; V3, arXiv:2412.19437, section 2.1.1).

Keys and values of a token are one latent of C numbers plus one rotary key of R numbers, shared by all heads.
Shapes: H heads, C = kv_lora_rank, R = qk_rope_head_dim, W = C + R.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rlkit.model.config import DeepseekV3Config
from rlkit.model.norm import RMSNorm
from rlkit.model.ragged import Ragged
from rlkit.model.rope import rotate_tail, softmax_scale

SHORT = 128
"""Samples up to this length keep their L x L probabilities for the gradient, which is faster on a CPU than computing
them again."""


def causal_attention(q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
    """Computes softmax(scale q k^T) v on [N, L, H, d]; each token sees itself and those before it: [N, L, H, d_v].

    Padding sits behind each sample, so no real token ever sees it.
    """
    q, k, v = q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)
    if q.device.type == "cpu" and q.shape[2] <= SHORT:
        flat = _ShortAttention.apply(q.flatten(0, 1), k.flatten(0, 1), v.flatten(0, 1), scale)
        return flat.unflatten(0, v.shape[:2]).transpose(1, 2)
    # The fused kernel wants one width for q, k and v.
    width = max(k.shape[-1], v.shape[-1])
    wide_q, wide_k, wide_v = (F.pad(t, (0, width - t.shape[-1])) for t in (q, k, v))
    out = F.scaled_dot_product_attention(wide_q, wide_k, wide_v, is_causal=True, scale=scale)
    return out[..., : v.shape[-1]].transpose(1, 2)


class _ShortAttention(torch.autograd.Function):
    """Computes causal attention on [M, L, d] by plain batched products, with the backward pass written out.

    The fused kernel of torch throws the probabilities away and computes them again for the gradient. That saves memory
    where L is large; for short samples on a CPU the second computation costs more than the memory.
    """

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
        future_LL = torch.full((q.shape[1], q.shape[1]), float("-inf"), dtype=q.dtype).triu(1)
        probs = torch.baddbmm(future_LL, q, k.transpose(1, 2), alpha=scale).softmax(-1)
        ctx.save_for_backward(q, k, v, probs)
        ctx.scale = scale
        return torch.bmm(probs, v)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        q, k, v, probs = ctx.saved_tensors
        grad_probs = torch.bmm(grads[0], v.transpose(1, 2))
        # d softmax: p (g - sum p g), row by row. Masked places have p = 0, so they get no gradient without a mask here.
        grad_scores = torch.ops.aten._softmax_backward_data(grad_probs, probs, -1, probs.dtype).mul_(ctx.scale)
        grad_v = torch.bmm(probs.transpose(1, 2), grads[0])
        return torch.bmm(grad_scores, k), torch.bmm(grad_scores.transpose(1, 2), q), grad_v, None


class MLA(nn.Module):
    """Lets each sample attend to itself, and new tokens to the cached latents of their sample."""

    def __init__(self, config: DeepseekV3Config) -> None:
        super().__init__()
        self.config = config
        hidden, heads, rank = config.hidden_size, config.num_attention_heads, config.kv_lora_rank
        key_width = config.qk_nope_head_dim + config.qk_rope_head_dim
        self.scale = softmax_scale(key_width, config.rope_scaling)
        if config.q_lora_rank is None:
            self.q_proj = nn.Linear(hidden, heads * key_width, bias=False)
        else:
            self.q_a_proj = nn.Linear(hidden, config.q_lora_rank, bias=False)
            self.q_a_layernorm = RMSNorm(config.q_lora_rank)
            self.q_b_proj = nn.Linear(config.q_lora_rank, heads * key_width, bias=False)
        self.kv_a_proj_with_mqa = nn.Linear(hidden, rank + config.qk_rope_head_dim, bias=False)
        self.kv_a_layernorm = RMSNorm(rank)
        self.kv_b_proj = nn.Linear(rank, heads * (config.qk_nope_head_dim + config.v_head_dim), bias=False)
        self.o_proj = nn.Linear(heads * config.v_head_dim, hidden, bias=False)

    def queries(self, x_TD: Tensor, rotations_T: Tensor) -> Tensor:
        """Computes the queries of every head, content first, then the rotated part: [T, H, nope + R]."""
        low = x_TD if self.config.q_lora_rank is None else self.q_a_layernorm(self.q_a_proj(x_TD))
        q = (self.q_proj if self.config.q_lora_rank is None else self.q_b_proj)(low)
        return rotate_tail(q.unflatten(-1, (self.config.num_attention_heads, -1)), rotations_T)

    def latents(self, x_TD: Tensor, rotations_T: Tensor) -> tuple[Tensor, Tensor]:
        """Computes what a cache keeps of each token: the normed latent [T, C] and the rotated shared key [T, R]."""
        row = rotate_tail(self.kv_a_proj_with_mqa(x_TD), rotations_T)
        latent, key = row.split([self.config.kv_lora_rank, self.config.qk_rope_head_dim], dim=-1)
        return self.kv_a_layernorm(latent), key

    def forward(self, x_TD: Tensor, rotations_T: Tensor, ragged: Ragged) -> Tensor:
        """Computes causal attention within each sample, with keys and values expanded: [T, D] -> [T, D]."""
        cfg = self.config
        q = self.queries(x_TD, rotations_T)
        latent, k_rope = self.latents(x_TD, rotations_T)
        kv = self.kv_b_proj(latent).unflatten(-1, (cfg.num_attention_heads, -1))
        k_nope, v = kv.split([cfg.qk_nope_head_dim, cfg.v_head_dim], dim=-1)
        # The content part of a key is the head's own; the rotated part is one for all heads, so it is repeated.
        k = torch.cat([k_nope, k_rope.unsqueeze(1).expand(-1, cfg.num_attention_heads, -1)], dim=-1)
        qkv = zip(ragged.pad(q), ragged.pad(k), ragged.pad(v), strict=True)
        out = ragged.unpad([causal_attention(*batch, self.scale) for batch in qkv])
        return self.o_proj(out.flatten(1))

    def remember(self, x_TD: Tensor, rotations_T: Tensor, cache_BSW: Tensor, positions_BM: Tensor) -> None:
        """Writes the latents of M tokens of each of B samples into the cache, T = B M."""
        rows_B1 = torch.arange(len(positions_BM), device=x_TD.device).unsqueeze(1)
        latents_TW = torch.cat(self.latents(x_TD, rotations_T), dim=-1)
        cache_BSW[rows_B1, positions_BM] = latents_TW.unflatten(0, positions_BM.shape)

    def decode(self, x_TD: Tensor, rotations_T: Tensor, cache_BSW: Tensor, positions_BM: Tensor) -> Tensor:
        """Lets M new tokens per sample attend to its cached latents, T = B M: [T, D] -> [T, D]; writes their own first.

        With kv_b_proj = [W_UK; W_UV] per head: scores = (W_UK^T q) . latent + q_rope . key, out = W_UV (p . latents),
        so keys and values are never expanded (arXiv:2405.04434, section 2.1.2 and appendix C).
        """
        cfg = self.config
        self.remember(x_TD, rotations_T, cache_BSW, positions_BM)
        q_nope, q_rope = self.queries(x_TD, rotations_T).split([cfg.qk_nope_head_dim, cfg.qk_rope_head_dim], dim=-1)
        # The expansion of keys is moved to the queries, which are few, and that of values to the result. So a step
        # reads C + R numbers of each cached token instead of 2 H d, and that is why the cache can be small.
        up = self.kv_b_proj.weight.unflatten(0, (cfg.num_attention_heads, -1))
        w_uk, w_uv = up.split([cfg.qk_nope_head_dim, cfg.v_head_dim], dim=1)
        q_latent = torch.bmm(q_nope.transpose(0, 1), w_uk).transpose(0, 1)
        # All heads of a sample's tokens meet the same latents: one product of [M H, W] and [W, S] per sample.
        q = torch.cat([q_latent, q_rope], dim=-1).view(len(positions_BM), -1, cache_BSW.shape[2])
        scores = (q @ cache_BSW.transpose(1, 2) * self.scale).unflatten(1, (-1, cfg.num_attention_heads))
        later_BMS = torch.arange(cache_BSW.shape[1], device=x_TD.device) > positions_BM.unsqueeze(2)
        probs_BMHS = scores.float().masked_fill_(later_BMS.unsqueeze(2), float("-inf")).softmax(-1).to(x_TD.dtype)
        mixed_THC = (probs_BMHS.flatten(1, 2) @ cache_BSW[..., : cfg.kv_lora_rank]).view_as(q_latent)
        out = torch.bmm(mixed_THC.transpose(0, 1), w_uv.transpose(1, 2)).transpose(0, 1)
        return self.o_proj(out.flatten(1))
