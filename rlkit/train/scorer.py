"""The reward model as the trainer sees it: the model, asked for the score of every sample of a pack."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor, nn

from rlkit.algo.losses import NO_MTP, MtpTerm
from rlkit.model.base import CausalLM
from rlkit.model.scorer import DeepseekScorer
from rlkit.train.policy import Policy
from rlkit.types import Pack


class Scores(NamedTuple):
    """What a reward model says of a pack; a tuple for DeepSpeed's sake, as `PolicyOutput` is."""

    scores_N: Tensor


class Scorer(nn.Module):
    """The model, asked for scores alone; a pack that only fills up has a path to the weights as well."""

    def __init__(self, model: DeepseekScorer) -> None:
        super().__init__()
        self.model = model

    def forward(self, pack: Pack, temperature: float, mtp: MtpTerm = NO_MTP) -> Scores:
        """One pass over a pack; scores know neither a temperature nor multi-token prediction."""
        return Scores(self.model.scores(self.model.hidden(pack.tokens_T, pack.lengths), pack.lengths))


def seen_by_trainer(model: CausalLM) -> Policy | Scorer:
    """Returns what the forward passes of a model go through."""
    return Scorer(model) if isinstance(model, DeepseekScorer) else Policy(model)
