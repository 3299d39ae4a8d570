"""The trainer of a reward model: that of a policy, but for what a loss reads, scores of samples."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from rlkit.algo.losses import Loss, MtpTerm
from rlkit.train.trainer import ModelTrainer
from rlkit.types import Pack


class ScorerTrainer(ModelTrainer):
    """A `Trainer` of one rank whose model is a `DeepseekScorer`."""

    def objective(
        self, pack: Pack, temperature: float, loss: Loss, mtp: MtpTerm
    ) -> tuple[Tensor, dict[str, Tensor], float]:
        """Runs one pack; returns its part of the loss, what is measured of it, and 0, as no engine has sampled it."""
        terms = loss(self._scores(pack), pack)
        return terms.loss, {"loss": terms.loss, **terms.sums}, 0.0

    @torch.no_grad()
    def scores(self, sequences: Sequence[Sequence[int]]) -> list[float]:
        """Returns the score of each sequence; all are in one pack."""
        return self._scores(self.asked(sequences)).tolist()

    def _scores(self, pack: Pack) -> Tensor:
        output: Any = self.stepper.module(pack, 1.0)  # of a `Scorer`, not of a `Policy`
        return output.scores_N
