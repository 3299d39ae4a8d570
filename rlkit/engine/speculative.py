"""Speculative sampling (arXiv:2211.17192, section 2.3): drafts are kept so that the target's distribution stays exact.

Shapes: N drafts of each of B samples, M = N + 1 tokens that one pass of the target can yield.
"""

from __future__ import annotations

import torch
from torch import Tensor

from rlkit.engine.draws import invert


def accept(
    drafts_BN: Tensor, draft_probs_BNV: Tensor, target_probs_BMV: Tensor, uniforms_BM2: Tensor
) -> tuple[Tensor, Tensor]:
    """Decides how many drafts of each sample stand, [B], and which token follows them, [B].

    Draft x_i, drawn from q_i, stands with probability min(1, p_i(x_i) / q_i(x_i)). At the first that does not, the
    token is drawn from norm(max(p_i - q_i, 0)) instead; where all stand, one more is drawn from p_N. Either way every
    token is distributed as p. Greedy decoding is the case where all p and q are 0 or 1.

    Args:
        drafts_BN: the drafted tokens.
        draft_probs_BNV: q_i, the distributions they were drawn from.
        target_probs_BMV: p_i, the target's after the tokens before place i.
        uniforms_BM2: random numbers of each place that its draft has not been drawn with: to accept, and to draw anew.
    """
    num_drafts = drafts_BN.shape[1]
    index_BN1 = drafts_BN.unsqueeze(2)
    q_BN = draft_probs_BNV.gather(2, index_BN1).squeeze(2)
    p_BN = target_probs_BMV[:, :num_drafts].gather(2, index_BN1).squeeze(2)
    # u < p / q, written without the division: q may be 0 where the draft came from elsewhere. A draft counts only if
    # all before it stand, because the distribution it was proposed from had them as its past: hence the running
    # product.
    stands_BN = uniforms_BM2[:, :num_drafts, 0] * q_BN < p_BN
    accepted_B = stands_BN.long().cumprod(1).sum(1)
    rows_B = torch.arange(len(drafts_BN), device=drafts_BN.device)
    # Why the remainder? Token x has already been given out with probability min(p, q), as a draft that stood. What p
    # still owes to x is p - min(p, q) = max(p - q, 0), and those debts add up to the probability of coming to this
    # line.
    target_BV = target_probs_BMV[rows_B, accepted_B]
    # Behind the last draft nothing was proposed: q = 0 there, and the remainder is p itself.
    proposed_BV = draft_probs_BNV[rows_B, accepted_B.clamp(max=num_drafts - 1)]
    proposed_BV = proposed_BV.masked_fill((accepted_B == num_drafts).unsqueeze(1), 0.0)
    remainder_BV = (target_BV - proposed_BV).clamp_(min=0.0)
    # Nothing remains only where p = q, and then a draft is refused by rounding alone.
    remainder_BV = torch.where(remainder_BV.sum(1, keepdim=True) > 0, remainder_BV, target_BV)
    return accepted_B, invert(remainder_BV, uniforms_BM2[rows_B, accepted_B, 1])
