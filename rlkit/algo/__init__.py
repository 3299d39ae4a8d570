"""The mathematics: pure functions of tensors and floats, no model, no I/O, no configuration."""

from rlkit.algo.advantages import group_advantages
from rlkit.algo.kl import kl_k1, kl_k2, kl_k3
from rlkit.algo.logprobs import chunked_logprobs, token_logprobs
from rlkit.algo.losses import (
    NO_MTP,
    BradleyTerryLoss,
    GrpoLoss,
    Loss,
    LossTerms,
    MtpTerm,
    PointwiseLoss,
    ReverseKlLoss,
    SftLoss,
    bradley_terry_loss,
    grpo_loss,
    pointwise_loss,
    reverse_kl_loss,
    sft_loss,
)
from rlkit.algo.packing import pack_demonstrations, pack_labelled, pack_pairs, pack_rollouts, pack_taught, shard
from rlkit.algo.schedule import Schedule

__all__ = [
    "NO_MTP",
    "BradleyTerryLoss",
    "GrpoLoss",
    "Loss",
    "LossTerms",
    "MtpTerm",
    "PointwiseLoss",
    "ReverseKlLoss",
    "Schedule",
    "SftLoss",
    "bradley_terry_loss",
    "chunked_logprobs",
    "group_advantages",
    "grpo_loss",
    "kl_k1",
    "kl_k2",
    "kl_k3",
    "pack_demonstrations",
    "pack_labelled",
    "pack_pairs",
    "pack_rollouts",
    "pack_taught",
    "pointwise_loss",
    "reverse_kl_loss",
    "sft_loss",
    "shard",
    "token_logprobs",
]
