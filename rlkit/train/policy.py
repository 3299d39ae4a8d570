"""The policy as the trainer sees it: the model, asked for the log-probs of what is trained in a pack."""

from __future__ import annotations

import copy
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor, nn

from rlkit.algo.logprobs import chunked_logprobs
from rlkit.algo.losses import NO_MTP, MtpTerm
from rlkit.model.base import CausalLM
from rlkit.types import Pack

Model = TypeVar("Model", bound=CausalLM)


class PolicyOutput(NamedTuple):
    """What the policy says of a pack; every [T] is 0 where the pack's weight is 0.

    This is a tuple and not a dataclass because DeepSpeed looks into tuples, lists and dicts alone for the tensors on
    which it hangs the start of a backward pass. With bf16 and ZeRO-1 that start clears the gradients of the pack
    before, which are in the fp32 sum by then; where it does not happen, early packs are added again and again.
    """

    logprobs_T: Tensor
    """log p of each token under the model at the batch's temperature, in nats."""
    entropy_T: Tensor
    """Of the distribution that the token is drawn from, in nats; carries no gradient."""
    mtp_loss: Tensor | None
    """This pack's part of 1 / D sum_k L^k, in nats (see `MtpTerm`); None where multi-token prediction did not run."""


class Policy(nn.Module):
    """The model, asked for the log-probs of the trained tokens of a pack only."""

    def __init__(self, model: CausalLM) -> None:
        super().__init__()
        self.model = model

    def forward(self, pack: Pack, temperature: float, mtp: MtpTerm = NO_MTP) -> PolicyOutput:
        """One pass over a pack."""
        return self.of_hidden(self.model.hidden(pack.tokens_T, pack.lengths), pack, temperature, mtp)

    def of_hidden(self, hidden_TD: Tensor, pack: Pack, temperature: float, mtp: MtpTerm = NO_MTP) -> PolicyOutput:
        """The part of the pass behind the model's hidden states."""
        trained_M = pack.weights_T.nonzero().squeeze(-1)
        logprobs_M, entropy_M = chunked_logprobs(
            hidden_TD[trained_M - 1], self.model.lm_head.weight, pack.tokens_T[trained_M], temperature
        )
        # An empty pack (see `shard`) still needs a path to the weights, or its rank would skip the reduction.
        zeros_T = torch.zeros_like(pack.weights_T) + 0.0 * hidden_TD[:, 0].float()
        return PolicyOutput(
            logprobs_T=zeros_T.index_put((trained_M,), logprobs_M),
            entropy_T=zeros_T.detach().index_put((trained_M,), entropy_M),
            mtp_loss=self._mtp_loss(pack, hidden_TD, mtp.detached) if mtp.weight and self._learns_ahead() else None,
        )

    def _learns_ahead(self) -> bool:
        """Whether there are MTP modules to train; LoRA leaves them as they are."""
        return any(parameter.requires_grad for module in self.model.mtp_modules() for parameter in module.parameters())

    def _mtp_loss(self, pack: Pack, hidden_TD: Tensor, detached: bool) -> Tensor:
        head_VD = self.model.lm_head.weight.detach() if detached else self.model.lm_head.weight
        total = torch.zeros((), device=hidden_TD.device)
        for places_M, hidden_MD in self.model.mtp_hidden(pack.tokens_T, pack.lengths, hidden_TD, detached=detached):
            trained = pack.weights_T[places_M] != 0
            places_M, hidden_MD = places_M[trained], hidden_MD[trained]
            logprobs_M, _ = chunked_logprobs(hidden_MD, head_VD, pack.tokens_T[places_M])
            total = total - (pack.weights_T[places_M] * logprobs_M).sum()
        return total / len(self.model.mtp_modules())


def frozen_copy(model: Model) -> Model:
    """A copy of the model that takes no gradient; parameters that are not trained (below LoRA) are shared with it."""
    shared = {id(parameter): parameter for parameter in model.parameters() if not parameter.requires_grad}
    return copy.deepcopy(model, shared).requires_grad_(False).eval()


def frozen_names(module: nn.Module) -> set[str]:
    """Parameters that are not trained: everything below LoRA's adapters, and nothing without LoRA."""
    named = module.named_parameters(remove_duplicate=False)
    return {name for name, parameter in named if not parameter.requires_grad}
