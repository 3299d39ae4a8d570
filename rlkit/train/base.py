"""What the loop asks of anything that learns."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol

from torch import Tensor

from rlkit.algo.losses import NO_MTP, Loss, MtpTerm
from rlkit.train.rounding import Rounding
from rlkit.types import Batch, Numbers, Weights


class Trainer(Protocol):
    """Holds the policy, its optimiser and the frozen reference."""

    def update(self, batch: Batch, loss: Loss, lr: float, mtp: MtpTerm = NO_MTP) -> Numbers:
        """Takes one optimiser step on the whole batch and returns what it measured.

        Where the loss or its gradient is no number, the step is skipped: nothing of the trainer has changed then, and
        `skipped` among the numbers is 1; otherwise it is 0. A trainer that keeps a reference fills `ref_logprobs_T` of
        the packs first. `mtp` is for models that have modules for multi-token prediction.
        """
        ...

    def logprobs(self, sequences: Sequence[Sequence[int]], rounding: Rounding | None = None) -> list[list[float]]:
        """log p(token_t | tokens before t) at temperature 1, for t = 1..len-1 of each sequence, in nats.

        With `rounding` every number inside the model is rounded once more, so that it shows how much that matters.
        """
        ...

    def scores(self, sequences: Sequence[Sequence[int]]) -> list[float]:
        """Returns the score of each sequence, where the model is a reward model; otherwise raises TypeError."""
        ...

    def trace(self, tokens: Sequence[int], rounding: Rounding | None = None) -> Mapping[str, Tensor]:
        """Runs one sequence; the output of every block, `{"model.layers.0.self_attn": [T, D], ...}`, in order."""
        ...

    def weights(self, version: int = 0, form: str = "plain") -> Weights:
        """All weights of the policy under their checkpoint names, in one of `rlkit.model.files.sent.FORMS`.

        `ADAPTER` in its place gives LoRA's matrices alone. Where they travel, `version` travels with them.
        """
        ...

    def fingerprints(self, form: str) -> Mapping[str, str]:
        """Fingerprints what `weights` gives, tensor by tensor, as an engine in FP8 holds it."""
        ...

    def routes(self, sequences: Sequence[Sequence[int]]) -> Mapping[str, Tensor]:
        """The experts that each router chooses for the tokens of all sequences, [T, k] by the router's name."""
        ...

    def adapter(self) -> Mapping[str, Tensor]:
        """LoRA's matrices under the keys of peft's files; empty when all weights are trained."""
        ...

    def begin_stage(self) -> None:
        """Starts a new stage of training: forgets the optimiser's moments; the policy becomes the reference."""
        ...

    def refresh_reference(self) -> None:
        """Makes the current policy the reference, keeping the optimiser's moments."""
        ...

    def save(self, folder: Path) -> None:
        """Writes everything that the next step depends on: weights, optimiser, reference, random state."""
        ...

    def load(self, folder: Path) -> None:
        """Restores what `save` wrote, bit for bit."""
        ...
