"""How a token finds its experts: scores, node-limited groups, and a bias that only steers the choice.

Two rules are built in, by the `scoring_func` of config.json: "sigmoid" is DeepSeek-V3's (arXiv:2412.19437, section
2.1.2), "softmax" V2's (arXiv:2405.04434, section 2.2). Shapes: T tokens, E experts, K chosen per token, G groups.
"""

from __future__ import annotations

from typing import NamedTuple, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor


class Routing(NamedTuple):
    """Says where a router sends its tokens.

    A tuple and not a dataclass: ZeRO-3 looks for tensors in what a module returns, and does not know dataclasses.
    """

    scores_TE: Tensor
    """The affinity of every token to every expert, in fp32, without the bias."""
    experts_TK: Tensor
    """The chosen experts of each token."""
    weights_TK: Tensor
    """The weights of their outputs, in fp32."""


class RoutingRule(Protocol):
    """Decides one way of routing; `RULES` holds them by name, and another one is an entry there.

    A rule whose models have published checkpoints also needs their names, in `rlkit.model.config.PUBLISHED`.
    """

    @property
    def has_bias(self) -> bool:
        """Says whether an `e_score_correction_bias` steers the choice."""
        ...

    def scores(self, logits_TE: Tensor) -> Tensor:
        """Makes affinities, 0 or more, of fp32 logits: [T, E]."""
        ...

    def group_scores(self, scores_TGE: Tensor) -> Tensor:
        """Says what a group counts when groups are chosen, [T, G, E / G] -> [T, G]; it must grow with each score."""
        ...

    def comparable(self, scores_TE: Tensor) -> Tensor:
        """Maps scores, in order, to numbers that fp32 rounding of the logits moves about alike for every token."""
        ...


class SigmoidRule:
    """Routes as DeepSeek-V3 does, `noaux_tc`: s = sigmoid(x W^T); a group counts as its two highest s + bias."""

    has_bias = True

    def scores(self, logits_TE: Tensor) -> Tensor:
        """Scores each expert on its own, in 0..1."""
        return logits_TE.sigmoid()

    def group_scores(self, scores_TGE: Tensor) -> Tensor:
        """Adds the two highest scores."""
        return scores_TGE.topk(2, dim=-1).values.sum(-1)

    def comparable(self, scores_TE: Tensor) -> Tensor:
        """Returns the scores themselves: the slope of the sigmoid is at most 1/4."""
        return scores_TE


class SoftmaxRule:
    """Routes as DeepSeek-V2 does, `greedy` or `group_limited_greedy`: s = softmax(x W^T), a group its highest."""

    has_bias = False

    def scores(self, logits_TE: Tensor) -> Tensor:
        """Gives each expert a share of 1."""
        return logits_TE.softmax(-1)

    def group_scores(self, scores_TGE: Tensor) -> Tensor:
        """Takes the highest score."""
        return scores_TGE.max(dim=-1).values

    def comparable(self, scores_TE: Tensor) -> Tensor:
        """Takes log s, the logits up to a constant: with many experts all scores are small, and so are gaps."""
        return scores_TE.clamp_min(torch.finfo(scores_TE.dtype).tiny).log()


RULES: dict[str, RoutingRule] = {"sigmoid": SigmoidRule(), "softmax": SoftmaxRule()}
"""The rules, by the name that config.json gives as `scoring_func`."""


def router_scores(x_TD: Tensor, weight_ED: Tensor, rule: RoutingRule = RULES["sigmoid"]) -> Tensor:
    """Computes affinities s of x W^T in fp32 whatever the inputs' dtype, [T, E]: rounding here flips choices."""
    return rule.scores(F.linear(x_TD.float(), weight_ED.float()))


def choose_experts(
    scores_TE: Tensor,
    bias_E: Tensor | None,
    num_groups: int,
    num_chosen_groups: int,
    k: int,
    rule: RoutingRule = RULES["sigmoid"],
) -> Tensor:
    """Returns the indices of the k experts of each token, [T, K], by s + bias within the best groups.

    Groups are ranked by the rule's `group_scores` of s + bias; experts outside the chosen groups cannot be picked.
    """
    biased_TE = scores_TE.detach() if bias_E is None else scores_TE.detach() + bias_E
    if num_chosen_groups < num_groups:
        # Groups stand for the nodes of a cluster: a token that may reach a few groups only is sent to few nodes.
        grouped = biased_TE.unflatten(-1, (num_groups, -1))
        group_scores = rule.group_scores(grouped)
        chosen = group_scores.topk(num_chosen_groups, dim=-1, sorted=False).indices
        outside = torch.ones_like(group_scores, dtype=torch.bool).scatter_(1, chosen, False)
        biased_TE = grouped.masked_fill(outside.unsqueeze(-1), float("-inf")).flatten(1)
    return biased_TE.topk(k, dim=-1, sorted=False).indices


def choice_margins(
    scores_TE: Tensor,
    bias_E: Tensor | None,
    num_groups: int,
    num_chosen_groups: int,
    k: int,
    rule: RoutingRule = RULES["sigmoid"],
) -> Tensor:
    """Says how far s + bias would have to move for a token to choose otherwise, [T], in the rule's `comparable` units.

    It is the smaller of two gaps: from the last chosen group to the first left out, and from the k-th expert to the
    next within the chosen groups. Two correct programs differ by rounding; where the gap is smaller than that, they may
    send a token to different experts, and everything after it differs. The parity gate asks for the gaps to excuse it.
    """
    compared_TE = rule.comparable(scores_TE.detach())
    biased_TE = compared_TE if bias_E is None else compared_TE + bias_E
    margins_T = torch.full_like(biased_TE[:, 0], torch.inf)
    if num_chosen_groups < num_groups:
        grouped = biased_TE.unflatten(-1, (num_groups, -1))
        ranked = rule.group_scores(grouped).sort(dim=-1, descending=True)
        margins_T = ranked.values[:, num_chosen_groups - 1] - ranked.values[:, num_chosen_groups]
        biased_TE = grouped.gather(1, ranked.indices[:, :num_chosen_groups, None].expand(-1, -1, grouped.shape[2]))
        biased_TE = biased_TE.flatten(1)
    if k < biased_TE.shape[1]:
        best = biased_TE.topk(k + 1, dim=-1).values
        margins_T = torch.minimum(margins_T, best[:, k - 1] - best[:, k])
    return margins_T


def gate_weights(scores_TE: Tensor, experts_TK: Tensor, normalise: bool, scale: float) -> Tensor:
    """Returns the weights g_i = scale * s_i / sum_chosen s_j of the chosen experts, [T, K]; the bias plays no part."""
    weights_TK = scores_TE.gather(1, experts_TK)
    if normalise:
        weights_TK = weights_TK / (weights_TK.sum(-1, keepdim=True) + 1e-20)
    return weights_TK * scale
