"""Drafting with the first module for multi-token prediction, and checking the drafts in one pass of the main model.

As in vLLM, further drafts come from the same module, fed with its own hidden states (h^1 in place of h^0). Its cache of
latents is filled from the main model's hidden states as soon as there are any.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from rlkit.model.decode import LatentCache, extend, read_prompts
from rlkit.model.deepseek import DeepseekV3


@dataclass(frozen=True, slots=True, kw_only=True)
class Speculation:
    """Says where B samples stand: the main model has been fed all tokens but the newest of each."""

    cache: LatentCache
    memory: LatentCache
    """The cache of the module; it is one token shorter, because its row t holds token t + 1 too."""
    hidden_BD: Tensor
    """Hidden states of the main model at the last token that it was fed."""

    def rows(self, index_B: Tensor, room: int) -> Speculation:
        """Keeps (or repeats) the given samples, with room for `room` tokens each."""
        cache, memory = (part.rows(index_B, room) for part in (self.cache, self.memory))
        return Speculation(cache=cache, memory=memory, hidden_BD=self.hidden_BD.index_select(0, index_B))


def begin(model: DeepseekV3, prompts: Sequence[Sequence[int]]) -> tuple[Tensor, Speculation]:
    """Runs the prompts once; returns the logits of each one's next token [B, V], and where decoding stands."""
    hidden_TD, cache = read_prompts(model.model, prompts)
    lengths_B, device = cache.lengths_B, hidden_TD.device
    ends_B = lengths_B.cumsum(0)
    hidden_BD = hidden_TD[ends_B - 1]
    # Padded to the longest: what lies behind a prompt's last row is written over before it is seen.
    steps_M = torch.arange(int(lengths_B.max()) - 1, device=device)
    places_BM = ((ends_B - lengths_B).unsqueeze(1) + steps_M).clamp(max=len(hidden_TD) - 2)
    tokens_T = torch.tensor([token for prompt in prompts for token in prompt], device=device)
    memory = LatentCache(layers=(torch.zeros_like(cache.layers[0]),), lengths_B=torch.zeros_like(lengths_B))
    if len(steps_M):
        _remember(model, hidden_TD[places_BM], tokens_T[places_BM + 1], memory)
    memory = replace(memory, lengths_B=lengths_B - 1)
    return model.lm_head(hidden_BD), Speculation(cache=cache, memory=memory, hidden_BD=hidden_BD)


def propose(
    model: DeepseekV3, newest_B: Tensor, state: Speculation, count: int, pick: Callable[[int, Tensor], Tensor]
) -> Tensor:
    """Drafts `count` tokens behind the newest of each sample; `pick` takes one from the logits of draft i: [B, N]."""
    (module, *_), backbone = model.model.mtp_modules(), model.model
    hidden_BD, token_B, (cache_BSW,) = state.hidden_BD, newest_B, state.memory.layers
    drafts = []
    for i in range(count):
        positions_B = state.memory.lengths_B + i
        rotations_B = backbone.rotations(positions_B)
        x_BD = module.join(backbone.embed_tokens(token_B), hidden_BD)
        longest = int(positions_B.max()) + 1
        x_BD = module.decode(x_BD, rotations_B, cache_BSW[:, :longest], positions_B.unsqueeze(1))
        hidden_BD = module.shared_head.norm(x_BD)
        token_B = pick(i, model.lm_head(hidden_BD))
        drafts.append(token_B)
    return torch.stack(drafts, dim=1)


def check(
    model: DeepseekV3, newest_B: Tensor, drafts_BN: Tensor, state: Speculation
) -> tuple[Tensor, Callable[[Tensor], Speculation]]:
    """Feeds the newest token and all drafts at once; returns the logits of what follows each of them, [B, N + 1, V].

    The second value is a function: given how many tokens of each sample stay, newest included, it returns where that
    leads. Nothing is copied to take drafts back, the caches are only declared shorter.
    """
    hidden_BMD, longer = extend(model.model, torch.cat([newest_B.unsqueeze(1), drafts_BN], dim=1), state.cache)
    _remember(model, hidden_BMD[:, :-1], drafts_BN, replace(state.memory, lengths_B=state.cache.lengths_B))

    def keep(kept_B: Tensor) -> Speculation:
        rows_B, lengths_B = torch.arange(len(kept_B), device=kept_B.device), state.cache.lengths_B + kept_B
        return Speculation(
            cache=replace(longer, lengths_B=lengths_B),
            memory=replace(state.memory, lengths_B=lengths_B - 1),
            hidden_BD=hidden_BMD[rows_B, (kept_B - 1).clamp(min=0)],
        )

    return model.lm_head(hidden_BMD), keep


def _remember(model: DeepseekV3, hidden_BMD: Tensor, following_BM: Tensor, memory: LatentCache) -> None:
    """Writes the module's latents of M tokens per sample, from their hidden states and the tokens behind them.

    The module has one block, and a block's latents depend on its input alone, so its output is not computed.
    """
    (module, *_), backbone = model.model.mtp_modules(), model.model
    steps_M = torch.arange(following_BM.shape[1], device=following_BM.device)
    positions_BM = memory.lengths_B.unsqueeze(1) + steps_M
    x_TD = module.join(backbone.embed_tokens(following_BM.flatten()), hidden_BMD.flatten(0, 1))
    rotations_T = backbone.rotations(positions_BM.flatten())
    module.self_attn.remember(module.input_layernorm(x_TD), rotations_T, memory.layers[0], positions_BM)
