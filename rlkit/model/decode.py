"""Decoding with a cache of latents, which holds kv_lora_rank + qk_rope_head_dim numbers per token and layer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from rlkit.model.backbone import Backbone
from rlkit.model.ragged import lay_out


@dataclass(frozen=True, slots=True, kw_only=True)
class LatentCache:
    """Holds the latents of B samples with room for S tokens each; sample b has `lengths_B[b]` of them.

    `extend` and `decode_step` write into `layers`, so a cache belongs to one run of decoding.
    """

    layers: tuple[Tensor, ...]
    """One [B, S, W] per layer, W = kv_lora_rank + qk_rope_head_dim."""
    lengths_B: Tensor

    def rows(self, index_B: Tensor, room: int) -> LatentCache:
        """Keeps (or repeats) the given samples, in a new cache with room for `room` tokens each."""
        layers = tuple(_take(layer, index_B, room) for layer in self.layers)
        return LatentCache(layers=layers, lengths_B=self.lengths_B.index_select(0, index_B))


def _take(layer_BSW: Tensor, index_B: Tensor, room: int) -> Tensor:
    width = min(room, layer_BSW.shape[1])
    out = layer_BSW.new_zeros(len(index_B), room, layer_BSW.shape[2])
    out[:, :width] = layer_BSW[:, :width].index_select(0, index_B)
    return out


def prefill(backbone: Backbone, head: nn.Linear, prompts: Sequence[Sequence[int]]) -> tuple[Tensor, LatentCache]:
    """Runs the prompts once; returns the logits of each one's next token [B, V], and a cache that is exactly full.

    Raises ValueError for an empty prompt.
    """
    hidden_TD, cache = read_prompts(backbone, prompts)
    return head(hidden_TD[cache.lengths_B.cumsum(0) - 1]), cache


def read_prompts(backbone: Backbone, prompts: Sequence[Sequence[int]]) -> tuple[Tensor, LatentCache]:
    """Runs the prompts once; returns the hidden states after the final norm, prompts end to end [T, D], and a cache."""
    device = backbone.embed_tokens.weight.device
    lengths = tuple(len(prompt) for prompt in prompts)
    ragged = lay_out(lengths, device)
    rotations_T = backbone.rotations(ragged.positions_T)
    lengths_B = torch.tensor(lengths, device=device)
    sample_T = torch.arange(len(lengths), device=device).repeat_interleave(lengths_B)
    x_TD = backbone.embed_tokens(torch.tensor([token for prompt in prompts for token in prompt], device=device))
    layers = []
    for layer in backbone.blocks():
        # The latents are projected a second time here: cheaper than threading a cache through the training path.
        rows_TW = torch.cat(layer.self_attn.latents(layer.input_layernorm(x_TD), rotations_T), dim=-1)
        cache_BSW = rows_TW.new_zeros(len(lengths), max(lengths), rows_TW.shape[1])
        cache_BSW[sample_T, ragged.positions_T] = rows_TW
        layers.append(cache_BSW)
        x_TD = layer(x_TD, rotations_T, ragged)
    return backbone.norm(x_TD), LatentCache(layers=tuple(layers), lengths_B=lengths_B)


def decode_step(
    backbone: Backbone, head: nn.Linear, tokens_B: Tensor, cache: LatentCache
) -> tuple[Tensor, LatentCache]:
    """Feeds one token per sample; returns the logits of the token after it [B, V], and the cache one token longer.

    The cache must have room for it; see `LatentCache.rows`.
    """
    hidden_BMD, cache = extend(backbone, tokens_B.unsqueeze(1), cache)
    return head(hidden_BMD[:, 0]), cache


def extend(backbone: Backbone, tokens_BM: Tensor, cache: LatentCache) -> tuple[Tensor, LatentCache]:
    """Feeds M tokens per sample at once; returns the hidden states after the final norm [B, M, D] and the longer cache.

    To take tokens back, lower `lengths_B`: what lies behind is not seen, and the next call writes over it.
    """
    room = cache.layers[0].shape[1]
    positions_BM = cache.lengths_B.unsqueeze(1) + torch.arange(tokens_BM.shape[1], device=tokens_BM.device)
    longest = int(positions_BM.max()) + 1
    assert longest <= room, f"the cache has room for {room} tokens"
    rotations_T = backbone.rotations(positions_BM.flatten())
    x_TD = backbone.embed_tokens(tokens_BM.flatten())
    for layer, cache_BSW in zip(backbone.blocks(), cache.layers, strict=True):
        x_TD = layer.decode(x_TD, rotations_T, cache_BSW[:, :longest], positions_BM)
    hidden_BMD = backbone.norm(x_TD).unflatten(0, tokens_BM.shape)
    return hidden_BMD, replace(cache, lengths_B=cache.lengths_B + tokens_BM.shape[1])
