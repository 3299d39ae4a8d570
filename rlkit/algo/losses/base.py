"""What every loss is: a value to follow downhill, and the numbers that it measured on the way."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from rlkit.types import Pack


@dataclass(frozen=True, slots=True, kw_only=True)
class LossTerms:
    """A loss and what it measured.

    Example: `LossTerms(loss=loss, sums={"kl": (weights_T * kl_T).sum()})`
    """

    loss: Tensor
    sums: Mapping[str, Tensor]
    """Numbers under the names that people read, each a sum over the pack's tokens with the weights of the loss, so that
    packs and ranks add up to the mean over the batch. They carry no gradient."""


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
