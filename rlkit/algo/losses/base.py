"""What every loss is: a value to follow downhill, and the numbers that it measured on the way."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from rlkit.types import Pack

TAKEN = frozenset((
    *("stage", "step", "name", "elapsed_s", "weight_version", "tokens", "tok_s", "parity", "parity_mean", "problems"),
    *("parity_p99", "parity_trained", "parity_bf16", "parity_flips"),
    *("loss", "entropy", "mtp_loss", "grad_norm", "logprob_gap", "lr", "skipped"),
    *("held_out_loss", "left_out"),
    *("balance_loss", "max_violation", "mean_violation", "load_entropy"),
    *("reward", "accuracy", "length", "truncated", "masked", "groups", "flat_groups", "drafts_accepted"),
    *("part", "log", "reason", "reward_p50_s", "reward_p99_s", "reverse_kl"),
    *("sample_s", "score_s", "train_s", "sync_s", "sample_tok_s", "train_tok_s"),
))  # fmt: skip
"""Names that the trainer, the loop and the record give to numbers of their own; a loss of yours needs others."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LossTerms:
    """A loss and what it measured.

    Example: `LossTerms(loss=loss, sums={"kl": (weights_T * kl_T).sum()})`
    """

    loss: Tensor
    sums: Mapping[str, Tensor]
    """Numbers under the names that people read, each a sum over the pack's tokens with the weights of the loss, so that
    packs and ranks add up to the mean over the batch. They carry no gradient. The names are the same for every pack,
    and none of those that a step has anyway (`TAKEN`)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MtpTerm:
    """What multi-token prediction adds to a loss: L + weight / D sum_k L^k (arXiv:2412.19437, equations 24 and 25).

    L^k = - sum_t w_t log p_k(token_t) with the batch's own weights and at temperature 1. Depth k does not predict the
    first k + 1 tokens of a sample; the weights of the others stay as they are.
    """

    weight: float
    """lambda; 0 = the modules do not run and are not changed."""
    detached: bool
    """The term trains the modules alone: hidden states, embedding and head get no gradient from it."""


NO_MTP = MtpTerm(weight=0.0, detached=True)


class Loss(Protocol):
    """A loss of one pack, given the log-probs of its tokens."""

    def __call__(self, logprobs_T: Tensor, pack: Pack) -> LossTerms:
        """Weighted sum over the pack's tokens."""
        ...
