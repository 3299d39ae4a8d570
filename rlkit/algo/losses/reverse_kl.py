"""The loss of on-policy distillation: how far the student is from its teacher on the tokens that the student drew."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from rlkit.algo.kl import kl_k1, kl_k2
from rlkit.algo.losses.base import LossTerms
from rlkit.types import Pack, TaughtPack


def reverse_kl_loss(logprobs_T: Tensor, teacher_logprobs_T: Tensor, weights_T: Tensor | None = None) -> Tensor:
    """Half the squared log-ratio of the sampled tokens, whose gradient is that of KL(student || teacher) per token.

    L = sum_t w_t (log p_t - log q_t)^2 / 2
    grad L = sum_t w_t (log p_t - log q_t) grad log p_t

    p is the student, q the teacher, which gets no gradient. This is a policy gradient whose advantage is
    log q_t - log p_t, token by token. For y_t drawn from p its expected value is the gradient of
    KL(p(. | y_<t) || q(. | y_<t)); how a token changes the ones that follow is not followed, as in GKD
    (arXiv:2306.13649). `weights_T=None` = the mean.
    """
    losses_T = kl_k2(logprobs_T, teacher_logprobs_T.detach())
    return losses_T.mean() if weights_T is None else (weights_T * losses_T).sum()


@dataclass(frozen=True, kw_only=True)
class ReverseKlLoss:
    """`reverse_kl_loss` of a pack; it measures KL(student || teacher) in nats per token, unbiased (k1)."""

    def __call__(self, logprobs_T: Tensor, pack: Pack) -> LossTerms:
        """Computes `reverse_kl_loss` of one pack."""
        assert isinstance(pack, TaughtPack)
        kl_T = kl_k1(logprobs_T, pack.teacher_logprobs_T).detach()
        loss = reverse_kl_loss(logprobs_T, pack.teacher_logprobs_T, pack.weights_T)
        return LossTerms(loss=loss, sums={"reverse_kl": (pack.weights_T * kl_T).sum()})
