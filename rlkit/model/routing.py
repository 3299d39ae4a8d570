"""Which experts a token goes to: sigmoid scores, node-limited groups, a bias that only steers the choice.

DeepSeek-V3, arXiv:2412.19437, section 2.1.2. Shapes: T tokens, E experts, K chosen per token.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class Routing:
    """Where a router sends its tokens."""

    scores_TE: Tensor
    """Affinity of every token to every expert, in fp32, without the bias."""
    experts_TK: Tensor
    """The chosen experts of each token."""
    weights_TK: Tensor
    """What their outputs count, in fp32."""


def router_scores(x_TD: Tensor, weight_ED: Tensor) -> Tensor:
    """Affinities s = sigmoid(x W^T) in fp32 whatever the inputs' dtype, [T, E]: rounding here flips choices."""
    return F.linear(x_TD.float(), weight_ED.float()).sigmoid()


def choose_experts(scores_TE: Tensor, bias_E: Tensor, num_groups: int, num_chosen_groups: int, k: int) -> Tensor:
    """Indices of the k experts of each token, [T, K], by s + bias within the best groups.

    A group's score is the sum of its two highest s + bias; experts outside the chosen groups cannot be picked.
    """
    biased_TE = scores_TE.detach() + bias_E
    if num_chosen_groups < num_groups:
        grouped = biased_TE.unflatten(-1, (num_groups, -1))
        group_scores = grouped.topk(2, dim=-1).values.sum(-1)
        chosen = group_scores.topk(num_chosen_groups, dim=-1, sorted=False).indices
        outside = torch.ones_like(group_scores, dtype=torch.bool).scatter_(1, chosen, False)
        biased_TE = grouped.masked_fill(outside.unsqueeze(-1), float("-inf")).flatten(1)
    return biased_TE.topk(k, dim=-1, sorted=False).indices


def choice_margins(scores_TE: Tensor, bias_E: Tensor, num_groups: int, num_chosen_groups: int, k: int) -> Tensor:
    """How much s + bias would have to move for each token to choose otherwise, [T].

    The smaller of two gaps: last chosen group to first left out, and k-th expert to the next within the chosen groups.
    """
    biased_TE = scores_TE.detach() + bias_E
    margins_T = torch.full_like(biased_TE[:, 0], torch.inf)
    if num_chosen_groups < num_groups:
        grouped = biased_TE.unflatten(-1, (num_groups, -1))
        ranked = grouped.topk(2, dim=-1).values.sum(-1).sort(dim=-1, descending=True)
        margins_T = ranked.values[:, num_chosen_groups - 1] - ranked.values[:, num_chosen_groups]
        biased_TE = grouped.gather(1, ranked.indices[:, :num_chosen_groups, None].expand(-1, -1, grouped.shape[2]))
        biased_TE = biased_TE.flatten(1)
    if k < biased_TE.shape[1]:
        best = biased_TE.topk(k + 1, dim=-1).values
        margins_T = torch.minimum(margins_T, best[:, k - 1] - best[:, k])
    return margins_T


def gate_weights(scores_TE: Tensor, experts_TK: Tensor, normalise: bool, scale: float) -> Tensor:
    """Weights g_i = scale * s_i / sum_chosen s_j of the chosen experts, [T, K]; the bias plays no part."""
    weights_TK = scores_TE.gather(1, experts_TK)
    if normalise:
        weights_TK = weights_TK / (weights_TK.sum(-1, keepdim=True) + 1e-20)
    return weights_TK * scale
