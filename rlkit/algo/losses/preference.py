"""The losses of reward models: how well scores agree with preferences, or with labels."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from rlkit.algo.losses.base import LossTerms
from rlkit.types import LabelledPack, Pack, PairPack


def bradley_terry_loss(chosen_P: Tensor, rejected_P: Tensor, weights_P: Tensor | None = None) -> Tensor:
    """Negative log-likelihood of preferences: L = - sum_p w_p log sigmoid(s_chosen - s_rejected), in nats.

    Bradley and Terry (1952); as the loss of a reward model arXiv:2203.02155, equation 1. `weights_P=None` = the mean.
    """
    losses_P = -F.logsigmoid(chosen_P - rejected_P)
    return losses_P.mean() if weights_P is None else (weights_P * losses_P).sum()


def pointwise_loss(scores_N: Tensor, labels_N: Tensor, weights_N: Tensor | None = None) -> Tensor:
    """Cross entropy of labels in 0..1: L = - sum_n w_n [y log sigmoid(s) + (1 - y) log sigmoid(-s)], in nats.

    `weights_N=None` = the mean.
    """
    losses_N = F.binary_cross_entropy_with_logits(scores_N, labels_N, reduction="none")
    return losses_N.mean() if weights_N is None else (weights_N * losses_N).sum()


@dataclass(frozen=True, kw_only=True)
class BradleyTerryLoss:
    """`bradley_terry_loss` of a pack of pairs; it measures the share of pairs in the right order, and the margin."""

    def __call__(self, scores_N: Tensor, pack: Pack) -> LossTerms:
        """Takes the scores of the pack's samples, chosen and rejected in turn."""
        assert isinstance(pack, PairPack)
        weights_P = at_ends(pack.weights_T, pack).view(-1, 2).sum(1)
        chosen_P, rejected_P = scores_N.view(-1, 2).unbind(1)
        margin_P = (chosen_P - rejected_P).detach()
        sums = {"accuracy": (weights_P * (margin_P > 0)).sum(), "margin": (weights_P * margin_P).sum()}
        return LossTerms(loss=bradley_terry_loss(chosen_P, rejected_P, weights_P), sums=sums)


@dataclass(frozen=True, kw_only=True)
class PointwiseLoss:
    """`pointwise_loss` of a pack with labels; it measures the share of samples on the right side of 0."""

    def __call__(self, scores_N: Tensor, pack: Pack) -> LossTerms:
        """Takes the scores of the pack's samples."""
        assert isinstance(pack, LabelledPack)
        weights_N, labels_N = at_ends(pack.weights_T, pack), at_ends(pack.labels_T, pack)
        right_N = (scores_N.detach() > 0) == (labels_N > 0.5)
        return LossTerms(
            loss=pointwise_loss(scores_N, labels_N, weights_N), sums={"accuracy": (weights_N * right_N).sum()}
        )


def at_ends(values_T: Tensor, pack: Pack) -> Tensor:
    """Returns the values of the last token of each sample, [T] or [T, D] -> [N] or [N, D]."""
    return values_T[torch.tensor(pack.lengths, device=values_T.device).cumsum(0) - 1]
