"""The losses, one algorithm a file; each is a pure function of log-probs and a pack."""

from rlkit.algo.losses.base import NO_MTP, Loss, LossTerms, MtpTerm
from rlkit.algo.losses.custom import UserLoss
from rlkit.algo.losses.grpo import GrpoLoss, grpo_loss
from rlkit.algo.losses.preference import BradleyTerryLoss, PointwiseLoss, bradley_terry_loss, pointwise_loss
from rlkit.algo.losses.reverse_kl import ReverseKlLoss, reverse_kl_loss
from rlkit.algo.losses.sft import SftLoss, sft_loss

__all__ = [
    "NO_MTP",
    "BradleyTerryLoss",
    "GrpoLoss",
    "Loss",
    "LossTerms",
    "MtpTerm",
    "PointwiseLoss",
    "ReverseKlLoss",
    "SftLoss",
    "UserLoss",
    "bradley_terry_loss",
    "grpo_loss",
    "pointwise_loss",
    "reverse_kl_loss",
    "sft_loss",
]
