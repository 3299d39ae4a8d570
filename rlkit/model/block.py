"""One layer of DeepSeek-V3: attention, then a dense MLP or experts, each around a residual."""

from __future__ import annotations

from torch import Tensor, nn

from rlkit.model.attention import MLA
from rlkit.model.config import DeepseekV3Config
from rlkit.model.moe import MLP, MoE
from rlkit.model.norm import RMSNorm
from rlkit.model.ragged import Ragged


class Block(nn.Module):
    """Computes x += attention(norm(x)); x += mlp(norm(x))."""

    def __init__(self, config: DeepseekV3Config, layer: int) -> None:
        super().__init__()
        dense = layer < config.first_k_dense_replace
        self.input_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.self_attn = MLA(config)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.mlp = MLP(config.hidden_size, config.intermediate_size) if dense else MoE(config)

    def forward(self, x_TD: Tensor, rotations_T: Tensor, ragged: Ragged) -> Tensor:
        """Runs the layer on packed samples: [T, D] -> [T, D]."""
        x_TD = x_TD + self.self_attn(self.input_layernorm(x_TD), rotations_T, ragged)
        return x_TD + self.mlp(self.post_attention_layernorm(x_TD))

    def decode(self, x_TD: Tensor, rotations_T: Tensor, cache_BSW: Tensor, positions_BM: Tensor) -> Tensor:
        """Runs the layer on M new tokens of each of B samples, T = B M: [T, D] -> [T, D]."""
        x_TD = x_TD + self.self_attn.decode(self.input_layernorm(x_TD), rotations_T, cache_BSW, positions_BM)
        return x_TD + self.mlp(self.post_attention_layernorm(x_TD))
