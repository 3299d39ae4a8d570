"""The loss of supervised fine-tuning: the cross entropy of the tokens to imitate."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from rlkit.algo.losses.base import LossTerms
from rlkit.types import Pack


def sft_loss(logprobs_T: Tensor, weights_T: Tensor | None = None) -> Tensor:
    """Cross entropy of the demonstrated tokens: L = - sum_t w_t log p_t; `weights_T=None` = the mean."""
    return -(logprobs_T.mean() if weights_T is None else (weights_T * logprobs_T).sum())


@dataclass(frozen=True, kw_only=True)
class SftLoss:
    """`sft_loss` of a pack."""

    def __call__(self, logprobs_T: Tensor, pack: Pack) -> LossTerms:
        """Computes `sft_loss` of one pack."""
        return LossTerms(loss=sft_loss(logprobs_T, pack.weights_T), sums={})
