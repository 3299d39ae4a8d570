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
from rlkit.model.stages import WHOLE, Stage, elsewhere


class Backbone(nn.Module):
    """Holds the embedding, the layers and the final norm; modules for multi-token prediction are its last layers.

    Published checkpoints number these modules as layers, so they live in the same list. `blocks` and `mtp_modules`
    tell the two apart. On a rank of a pipeline something stands in the place of every layer that others hold.
    """

    def __init__(self, config: DeepseekV3Config, share: ExpertShare = ALL, stage: Stage = WHOLE) -> None:
        super().__init__()
        self.config = config
        num_layers, depths = config.num_hidden_layers, range(1, config.num_nextn_predict_layers + 1)
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size) if stage.first else elsewhere()
        self.layers = nn.ModuleList(
            Block(config, layer, share) if stage.holds(layer, num_layers) else elsewhere()
            for layer in range(num_layers)
        )
        self.layers.extend(MtpModule(config, depth, share) if stage.first else elsewhere() for depth in depths)
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps) if stage.first else elsewhere()

    def blocks(self) -> list[Block]:
        """Returns the layers of the main model that are here, in order."""
        return list(self.numbered_blocks().values())

    def numbered_blocks(self) -> dict[int, Block]:
        """Returns the same by their numbers."""
        layers = enumerate(self.layers[: self.config.num_hidden_layers])
        return {number: layer for number, layer in layers if isinstance(layer, Block)}

    def mtp_modules(self) -> list[MtpModule]:
        """Returns the modules for multi-token prediction, depth 1 first."""
        return [layer for layer in self.layers if isinstance(layer, MtpModule)]

    def rotations(self, positions_T: Tensor) -> Tensor:
        """Returns the rotary factors of the given positions, [T, R / 2] complex."""
        cfg = self.config
        return rotations(positions_T, cfg.qk_rope_head_dim, cfg.rope_theta, cfg.rope_scaling)

    def forward(self, tokens_T: Tensor, ragged: Ragged) -> Tensor:
        """Returns the hidden states after the final norm, [T] -> [T, D]."""
        return self.run(range(self.config.num_hidden_layers), None, tokens_T, ragged)

    def run(self, layers: range, x_TD: Tensor | None, tokens_T: Tensor, ragged: Ragged) -> Tensor:
        """Runs consecutive layers: the embedding comes before the first, which gets no input, the norm after the last.

        Returns what the next layer gets, or the hidden states after the norm: [T, D].
        """
        rotations_T = self.rotations(ragged.positions_T)
        out_TD: Tensor = self.embed_tokens(tokens_T) if x_TD is None else x_TD
        for number in layers:
            out_TD = self.layers[number](out_TD, rotations_T, ragged)
        return self.norm(out_TD) if layers.stop == self.config.num_hidden_layers else out_TD
