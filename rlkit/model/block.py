"""One layer of DeepSeek-V3: attention, then a dense MLP or experts, each around a residual."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from rlkit.model.attention import MLA
from rlkit.model.config import DeepseekV3Config
from rlkit.model.experts import ALL, ExpertShare
from rlkit.model.moe import MLP, MoE
from rlkit.model.norm import RMSNorm
from rlkit.model.ragged import Ragged


class Block(nn.Module):
    """Computes x += attention(norm(x)); x += mlp(norm(x))."""

    def __init__(self, config: DeepseekV3Config, layer: int, share: ExpertShare = ALL) -> None:
        super().__init__()
        dense = layer < config.first_k_dense_replace
        self.recomputed = False
        """Whether backward runs the layer again instead of finding in memory what forward made inside it."""
        self.input_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.self_attn = MLA(config)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.mlp = MLP(config.hidden_size, config.intermediate_size) if dense else MoE(config, share)

    def forward(self, x_TD: Tensor, rotations_T: Tensor, ragged: Ragged) -> Tensor:
        """Runs the layer on packed samples: [T, D] -> [T, D]."""
        if self.recomputed and torch.is_grad_enabled():
            return checkpoint(self._run, x_TD, rotations_T, ragged, use_reentrant=False, preserve_rng_state=False)
        return self._run(x_TD, rotations_T, ragged)

    def _run(self, x_TD: Tensor, rotations_T: Tensor, ragged: Ragged) -> Tensor:
        x_TD = x_TD + self.self_attn(self.input_layernorm(x_TD), rotations_T, ragged)
        return x_TD + self.mlp(self.post_attention_layernorm(x_TD))

    def decode(self, x_TD: Tensor, rotations_T: Tensor, cache_BSW: Tensor, positions_BM: Tensor) -> Tensor:
        """Runs the layer on M new tokens of each of B samples, T = B M: [T, D] -> [T, D]."""
        x_TD = x_TD + self.self_attn.decode(self.input_layernorm(x_TD), rotations_T, cache_BSW, positions_BM)
        return x_TD + self.mlp(self.post_attention_layernorm(x_TD))
