"""From logits to tokens: the distribution that a `Sampling` asks for, and its inverse at a random number."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from rlkit.types import Sampling


def draw(logits_BV: Tensor, uniforms_B: Tensor, sampling: Sampling) -> tuple[Tensor, Tensor]:
    """Draws one token per row, and returns its log-prob in nats under the distribution that it was drawn from.

    token = first v with F(v) > u, F the cumulative softmax(logits / temperature). Temperature 0 takes the most likely
    token and reports its log-prob at temperature 1. With top_p < 1 both are of the distribution cut to the nucleus.
    """
    probs_BV, logprobs_BV = distribution(logits_BV, sampling)
    tokens_B = invert(probs_BV, uniforms_B)
    return tokens_B, logprobs_BV.gather(1, tokens_B.unsqueeze(1)).squeeze(1)


def distribution(logits_BV: Tensor, sampling: Sampling) -> tuple[Tensor, Tensor]:
    """Returns the probabilities to draw from, in float64, and the log-probs to report, as in `draw`: [..., V] each."""
    if sampling.temperature == 0:
        best_BV = F.one_hot(logits_BV.argmax(-1), logits_BV.shape[-1])
        return best_BV.double(), logits_BV.float().log_softmax(-1)
    logprobs_BV = (logits_BV.float() / sampling.temperature).log_softmax(-1)
    if sampling.top_p < 1:
        logprobs_BV = logprobs_BV.masked_fill(_outside_nucleus(logprobs_BV, sampling.top_p), float("-inf"))
        logprobs_BV = logprobs_BV.log_softmax(-1)
    return logprobs_BV.double().exp(), logprobs_BV


def invert(weights_BV: Tensor, uniforms_B: Tensor) -> Tensor:
    """Returns the first v of each row with F(v) > u, F the cumulative sum of the weights over their total: [B]."""
    cumulative_BV = weights_BV.cumsum(-1)
    target_B1 = uniforms_B.unsqueeze(1) * cumulative_BV[:, -1:]
    # u close to 1 may round up to the total; the last token is then the inverse.
    return torch.searchsorted(cumulative_BV, target_B1, right=True).squeeze(1).clamp_(max=weights_BV.shape[1] - 1)


def uniforms(seed: int, *shape: int) -> Tensor:
    """Draws the random numbers of one rollout, in [0, 1), in float64; more rows do not change the first ones."""
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def _outside_nucleus(logprobs_BV: Tensor, top_p: float) -> Tensor:
    """Marks tokens outside the smallest set of likely tokens whose mass reaches `top_p` (arXiv:1904.09751, 3.1)."""
    sorted_BV, order_BV = logprobs_BV.exp().sort(dim=-1, descending=True)
    before_BV = sorted_BV.cumsum(-1) - sorted_BV
    return torch.empty_like(before_BV, dtype=torch.bool).scatter_(-1, order_BV, before_BV >= top_p)
