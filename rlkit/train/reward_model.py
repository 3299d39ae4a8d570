"""The trainer of a reward model: that of a policy, but for what a loss reads, scores of samples."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from rlkit.algo.losses import LossTerms, MtpTerm
from rlkit.train.trainer import ModelTrainer
from rlkit.types import Pack


class ScorerTrainer(ModelTrainer):
    """A `Trainer` of one rank whose model is a `DeepseekScorer`."""

    def judged(self, output: Any) -> Tensor:
        """Returns the score of every sample, [N]."""
        return output.scores_N

    def objective(self, terms: LossTerms, output: Any, pack: Pack, mtp: MtpTerm) -> tuple[Tensor, dict[str, Tensor]]:
        """Returns the loss of a pack, and what is measured of it: a scorer has no entropy and no MTP modules."""
        return terms.loss, {"loss": terms.loss, **terms.sums}

    @torch.no_grad()
    def scores(self, sequences: Sequence[Sequence[int]]) -> list[float]:
        """Returns the score of each sequence; all are in one pack."""
        return self.judged(self.stepper.module(self.asked(sequences), 1.0)).tolist()
