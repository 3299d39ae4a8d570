"""How evenly experts are used: their load, the two ways in which DeepSeek-V3 evens it out, and numbers for it.

arXiv:2412.19437, section 2.1.2; the bias: arXiv:2408.15664. Shapes: T tokens, E experts, K chosen per token.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor


def expert_load(experts_TK: Tensor, num_experts: int) -> Tensor:
    """How many of the tokens chose each expert, counts [E]."""
    return torch.bincount(experts_TK.flatten(), minlength=num_experts)


def updated_bias(bias_E: Tensor, load_E: Tensor, speed: float) -> Tensor:
    """b_e + speed x sign(mean load - load_e), [E] (arXiv:2408.15664, algorithm 1).

    Without any load, and for an expert whose load is the mean, the bias stays.
    """
    # Only the sign counts, so a step is as long for an expert that is a little too busy as for one that is far too
    # busy; that is what keeps the bias from swinging. In whole numbers: a mean that is rounded would tell a load that
    # equals it from it.
    below_E = (load_E.sum() - len(load_E) * load_E).sign()
    return bias_E + speed * below_E.to(bias_E.dtype)


def sequence_balance_loss(scores_TE: Tensor, k: int, lengths: Sequence[int]) -> Tensor:
    """The sum over sequences of sum_e f_e P_e (arXiv:2412.19437, equations 17 to 20, without alpha), a scalar.

    f_e = E / (k T) x the number of the sequence's T tokens that have e among their k highest scores
    P_e = mean over the sequence's tokens of s_te / sum_j s_tj

    A sequence whose tokens spread evenly adds 1, one whose tokens agree adds up to E / k. As in the paper, neither the
    bias nor groups count in f_e, which has no gradient.

    Args:
        scores_TE: affinities of all tokens to all experts, 0 or more; the only argument that gets a gradient.
        k: experts chosen per token.
        lengths: tokens of each sequence; ValueError if they do not sum to T.
    """
    num_tokens, num_experts = scores_TE.shape
    if sum(lengths) != num_tokens:
        raise ValueError(f"lengths={tuple(lengths)} sum to {sum(lengths)}; they must sum to {num_tokens} tokens")
    lengths_N = torch.tensor(lengths, device=scores_TE.device)
    sequence_T = torch.arange(len(lengths), device=scores_TE.device).repeat_interleave(lengths_N)
    highest_TK = scores_TE.detach().topk(k, dim=-1).indices
    # Counted as whole numbers, so that no order of summation can show.
    counts_NE = torch.bincount(
        (sequence_T.unsqueeze(1) * num_experts + highest_TK).flatten(), minlength=len(lengths) * num_experts
    ).view(-1, num_experts)
    f_NE = counts_NE.to(scores_TE.dtype) * num_experts / (k * lengths_N.unsqueeze(1))
    share_TE = scores_TE / scores_TE.sum(-1, keepdim=True)
    return ((f_NE / lengths_N.unsqueeze(1))[sequence_T] * share_TE).sum()


def max_violation(load_E: Tensor) -> float:
    """max_e load_e / mean load: 1 = even, E / K = all tokens agree (MaxVio of arXiv:2408.15664, equation 4, plus 1)."""
    return float(_relative(load_E).max())


def mean_violation(load_E: Tensor) -> float:
    """mean_e |load_e / mean load - 1|: 0 = even."""
    return float((_relative(load_E) - 1).abs().mean())


def load_entropy(load_E: Tensor) -> float:
    """- sum_e p_e log p_e / log E with p the experts' shares of the load: 1 = even, 0 = one expert does everything."""
    shares_E = _relative(load_E) / len(load_E)
    return float(torch.special.entr(shares_E).sum()) / math.log(len(load_E))


def load_numbers(loads: Mapping[str, Tensor]) -> dict[str, float]:
    """The three numbers of each layer, `max_violation/3` and so on, and of the model; {} if no expert had a token.

    `max_violation` is that of the worst layer, `mean_violation` and `load_entropy` are means over the layers.
    """
    kinds = {"max_violation": max_violation, "mean_violation": mean_violation, "load_entropy": load_entropy}
    used = {layer: load_E for layer, load_E in loads.items() if load_E.any()}
    if not used:
        return {}
    by_kind = {kind: {layer: of(load_E) for layer, load_E in used.items()} for kind, of in kinds.items()}
    numbers = {kind: math.fsum(values.values()) / len(values) for kind, values in by_kind.items()}
    numbers["max_violation"] = max(by_kind["max_violation"].values())
    return numbers | {f"{kind}/{layer}": by_kind[kind][layer] for kind in kinds for layer in used}


def _relative(load_E: Tensor) -> Tensor:
    """Loads over their mean, in float64."""
    assert load_E.any(), "the load of no tokens has no distribution"
    return load_E.double() / load_E.double().mean()
