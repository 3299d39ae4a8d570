"""Multi-token prediction (DeepSeek-V3, arXiv:2412.19437, section 2.2): the module of depth k looks k tokens further.

    x_t = M_k [RMSNorm(Emb(token_{t+k})) ; RMSNorm(h^{k-1}_t)], h^k = norm_k(Block_k(x)), p_k(token_{t+k+1}) = head(h^k)

Embedding and head are the main model's. Where the paper is silent or the published weights differ, this is what vLLM
runs them with: the embedding comes first in the concatenation (the paper's equation 21 has it second), h^0 is the
hidden state after the main model's final norm, and h^k the one after the module's own (`shared_head.norm`). Token t
keeps position t. vLLM also zeroes the embedding at position 0, which the paper does not say; we do not.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor, nn

from rlkit.model.block import Block
from rlkit.model.config import DeepseekV3Config
from rlkit.model.experts import ALL, ExpertShare
from rlkit.model.norm import RMSNorm
from rlkit.model.ragged import Ragged, lay_out


class SharedHead(nn.Module):
    """Holds the norm in front of the shared head; the head itself lives in the main model."""

    def __init__(self, config: DeepseekV3Config) -> None:
        super().__init__()
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)


class MtpModule(Block):
    """Predicts one depth: a block behind the projection of hidden state and embedding, under published names."""

    def __init__(self, config: DeepseekV3Config, depth: int, share: ExpertShare = ALL) -> None:
        super().__init__(config, config.num_hidden_layers + depth - 1, share)
        self.enorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.hnorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.eh_proj = nn.Linear(2 * config.hidden_size, config.hidden_size, bias=False)
        self.shared_head = SharedHead(config)

    def join(self, embedded_TD: Tensor, previous_TD: Tensor) -> Tensor:
        """Computes M_k [RMSNorm(embedding) ; RMSNorm(hidden state of the depth before)]: [T, D]."""
        return self.eh_proj(torch.cat([self.enorm(embedded_TD), self.hnorm(previous_TD)], dim=-1))

    def predict(self, embedded_TD: Tensor, previous_TD: Tensor, rotations_T: Tensor, ragged: Ragged) -> Tensor:
        """Computes the hidden states h^k, ready for the head: [T, D]."""
        return self.shared_head.norm(self(self.join(embedded_TD, previous_TD), rotations_T, ragged))


def mtp_hidden(
    modules: Sequence[MtpModule],
    tokens_T: Tensor,
    lengths: Sequence[int],
    hidden_TD: Tensor,
    embed: Callable[[Tensor], Tensor],
    rotations: Callable[[Tensor], Tensor],
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yields, for each depth, the places in the pack of the tokens that are predicted [M], and their states h^k [M, D].

    In a sample of L tokens depth k predicts the last L - k - 1: a token needs k + 1 before it. Samples do not see each
    other. M is 0 where no sample is long enough.

    Args:
        modules: the modules, depth 1 first.
        tokens_T: the pack.
        lengths: how many tokens each sample of the pack has.
        hidden_TD: what the main model gave for the pack, h^0.
        embed: makes embeddings of token ids.
        rotations: makes rotary factors of positions.
    """
    # `left_M` counts the tokens of its sample from each row on, itself included. A row can predict k + 1 tokens ahead
    # while more than that are left, so every depth keeps the rows of the depth before, less the last of each sample.
    ends_N = torch.tensor(lengths, device=tokens_T.device).cumsum(0)
    left_M = ends_N.repeat_interleave(ends_N.diff(prepend=ends_N.new_zeros(1))) - torch.arange(
        len(tokens_T), device=tokens_T.device
    )
    rows_M, hidden_MD = torch.arange(len(tokens_T), device=tokens_T.device), hidden_TD
    for depth, module in enumerate(modules, start=1):
        kept = left_M > depth + 1
        shorter, count = [length - depth - 1 for length in lengths if length > depth + 1], int(kept.sum())
        if not shorter:
            # One row that predicts nothing: ZeRO reduces gradients in the order of the graph, so every rank must have
            # the same graph, also a rank whose samples are all too short for this depth.
            shorter, kept = [1], torch.arange(len(kept), device=kept.device) == 0
        rows_M, left_M, hidden_MD = rows_M[kept], left_M[kept], hidden_MD[kept]
        next_M = tokens_T[(rows_M + depth).clamp(max=len(tokens_T) - 1)]
        ragged = lay_out(shorter, tokens_T.device)
        hidden_MD = module.predict(embed(next_M), hidden_MD, rotations(ragged.positions_T), ragged)
        yield (rows_M + depth + 1)[:count], hidden_MD[:count]
