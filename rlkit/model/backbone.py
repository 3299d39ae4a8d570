"""The body of DeepSeek-V3 between the token ids and the head: embedding, layers, final norm."""

from __future__ import annotations

from torch import Tensor, nn

from rlkit.model.block import Block
from rlkit.model.config import DeepseekV3Config
from rlkit.model.experts import ALL, ExpertShare
from rlkit.model.mtp import MtpModule
from rlkit.model.norm import RMSNorm
from rlkit.model.ragged import Ragged
from rlkit.model.rope import rotations


class Backbone(nn.Module):
    """Holds the embedding, the layers and the final norm; modules for multi-token prediction are its last layers.

    Published checkpoints number these modules as layers, so they live in the same list. `blocks` and `mtp_modules`
    tell the two apart.
    """

    def __init__(self, config: DeepseekV3Config, share: ExpertShare = ALL) -> None:
        super().__init__()
        self.config = config
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(Block(config, layer, share) for layer in range(config.num_hidden_layers))
        self.layers.extend(MtpModule(config, depth, share) for depth in range(1, config.num_nextn_predict_layers + 1))
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)

    def blocks(self) -> list[Block]:
        """Returns the layers of the main model, in order."""
        return [layer for layer in self.layers[: self.config.num_hidden_layers] if isinstance(layer, Block)]

    def mtp_modules(self) -> list[MtpModule]:
        """Returns the modules for multi-token prediction, depth 1 first."""
        return [layer for layer in self.layers if isinstance(layer, MtpModule)]

    def rotations(self, positions_T: Tensor) -> Tensor:
        """Returns the rotary factors of the given positions, [T, R / 2] complex."""
        cfg = self.config
        return rotations(positions_T, cfg.qk_rope_head_dim, cfg.rope_theta, cfg.rope_scaling)

    def forward(self, tokens_T: Tensor, ragged: Ragged) -> Tensor:
        """Returns the hidden states after the final norm, [T] -> [T, D]."""
        rotations_T = self.rotations(ragged.positions_T)
        x_TD = self.embed_tokens(tokens_T)
        for layer in self.blocks():
            x_TD = layer(x_TD, rotations_T, ragged)
        return self.norm(x_TD)
