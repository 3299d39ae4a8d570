"""The loss of GRPO: a weighted sum over tokens, where the weights of a whole batch sum to 1 (see `Pack.weights_T`)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from rlkit.algo.kl import MAX_LOG_RATIO, kl_k1, kl_k2, kl_k3
from rlkit.algo.losses.base import LossTerms
from rlkit.checks import number
from rlkit.errors import UserError
from rlkit.types import Pack, PolicyPack

KL_ESTIMATORS = {"k1": kl_k1, "k2": kl_k2, "k3": kl_k3}
NO_PENALTY = (
    "has an expected gradient of 0, so as a penalty it adds nothing but noise; use k3, or k2, whose gradient is that "
    "of KL(policy || reference), or kl_coef=0"
)
"""Why k1 can be reported and not minimised: E[grad log p] = 0 over the policy's own tokens."""


def grpo_loss(
    logprobs_T: Tensor,
    old_logprobs_T: Tensor,
    advantages_T: Tensor,
    ref_logprobs_T: Tensor | None = None,
    weights_T: Tensor | None = None,
    *,
    clip_low: float = 0.2,
    clip_high: float = 0.2,
    kl_coef: float = 0.0,
    kl: str = "k3",
) -> LossTerms:
    """Clipped policy gradient with a KL penalty in the loss (GRPO: DeepSeekMath, arXiv:2402.03300, equation 3).

    L = - sum_t w_t [ min(ratio_t A_t, clip(ratio_t, 1 - clip_low, 1 + clip_high) A_t) - kl_coef KL_t ]
    ratio_t = exp(log p_t - log p_old,t), the exponent kept within -20 and 20 (`rlkit.algo.kl.MAX_LOG_RATIO`)

    A token whose exponent is cut off has no gradient. Without that bound a token with a log-ratio above 88 would have
    an infinite ratio, and 0 x infinity in its gradient even where the loss itself is clipped to something finite.

    Args:
        logprobs_T: log-probs of the tokens under the policy, in nats; the only argument that gets a gradient.
        old_logprobs_T: under the policy that sampled them.
        advantages_T: advantage of the rollout each token belongs to.
        ref_logprobs_T: under the reference; needed when `kl_coef` > 0.
        weights_T: share of each token in the loss; None = the mean over the given tokens.
        clip_low: epsilon below 1.
        clip_high: epsilon above 1.
        kl_coef: beta.
        kl: estimator of KL(policy || reference) that is measured and, with `kl_coef`, minimised: "k1", "k2" or "k3".

    Raises:
        ValueError: for an unknown estimator, a penalty without a reference, or k1 as the penalty.
    """
    if kl not in KL_ESTIMATORS:
        raise ValueError(f"kl={kl!r} is unknown; use one of {', '.join(KL_ESTIMATORS)}")
    if kl == "k1" and kl_coef:
        raise ValueError(f"kl='k1' with kl_coef={kl_coef} {NO_PENALTY}")
    if weights_T is None:
        weights_T = torch.full_like(logprobs_T, 1 / max(1, logprobs_T.numel()))
    ratio_T = (logprobs_T - old_logprobs_T).clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO).exp()
    clipped_T = ratio_T.clamp(1 - clip_low, 1 + clip_high)
    # The smaller of the two is a pessimist: it takes the reward of a move away once the ratio has left the band, but
    # never the cost. With A > 0 a ratio above 1 + clip_high earns nothing more; with A < 0 it goes on being pulled
    # back.
    gain_T = torch.minimum(ratio_T * advantages_T, clipped_T * advantages_T)
    loss = -(weights_T * gain_T).sum()
    sums = {"clip_fraction": (weights_T * (clipped_T * advantages_T < ratio_T * advantages_T)).sum().detach()}
    if ref_logprobs_T is not None:
        kl_T = KL_ESTIMATORS[kl](logprobs_T, ref_logprobs_T)
        kl_value = (weights_T * kl_T).sum()
        loss = loss + kl_coef * kl_value if kl_coef else loss
        sums["kl"] = kl_value.detach()
    elif kl_coef:
        raise ValueError(f"kl_coef={kl_coef} needs ref_logprobs_T; pass the reference's log-probs or kl_coef=0")
    return LossTerms(loss=loss, sums=sums)


@dataclass(frozen=True, kw_only=True)
class GrpoLoss:
    """`grpo_loss` with its constants; doubles as the configuration node `algo.loss`."""

    clip_low: float = 0.2
    clip_high: float = 0.2
    """Clip-higher (DAPO, arXiv:2503.14476): above clip_low it lets rare tokens grow. R1 uses 10 for both."""
    kl_coef: float = 0.001
    """Weight of the KL penalty; 0 needs no reference model. R1: 0.001."""
    kl: str = "k3"

    def __post_init__(self) -> None:
        """Refuses constants that mean nothing."""
        for name in ("clip_low", "clip_high"):
            number(f"algo.loss.{name}", getattr(self, name), above=0, fix="0.2 is usual, 10 is R1's")
        number("algo.loss.kl_coef", self.kl_coef, least=0, fix="R1 has 0.001, 0 needs no reference model")
        if self.kl not in KL_ESTIMATORS:
            raise UserError(f"algo.loss.kl={self.kl!r} is unknown; use one of {', '.join(KL_ESTIMATORS)}")
        if self.kl == "k1" and self.kl_coef:
            raise UserError(f"algo.loss.kl='k1' with algo.loss.kl_coef={self.kl_coef} {NO_PENALTY}")

    def __call__(self, logprobs_T: Tensor, pack: Pack) -> LossTerms:
        """`grpo_loss` of one pack."""
        assert isinstance(pack, PolicyPack)
        return grpo_loss(
            logprobs_T,
            pack.old_logprobs_T,
            pack.advantages_T,
            pack.ref_logprobs_T,
            pack.weights_T,
            clip_low=self.clip_low,
            clip_high=self.clip_high,
            kl_coef=self.kl_coef,
            kl=self.kl,
        )
