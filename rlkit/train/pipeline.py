"""The trainer of one rank of a pipeline: it holds two runs of layers (`rlkit.model.stages`), and all ranks its packs.

DeepSpeed drives the packs of a step through all ranks and calls back here: for this rank's layers, on the first rank
for the loss too. Every rank knows the packs, so that only activations travel. A balance loss belongs to a layer, not to
the end of the model: it joins the gradient where the layer is.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from rlkit.algo.losses import NO_MTP, Loss, MtpTerm
from rlkit.algo.packing import filled_up
from rlkit.model.deepseek import DeepseekV3
from rlkit.model.ragged import lay_out_pack
from rlkit.train import ranks
from rlkit.train.policy import Policy, PolicyOutput
from rlkit.train.relay import Pipeline, RelayedPolicy
from rlkit.train.rounding import Rounding, rounded_anew
from rlkit.train.steppers.base import PipelineStepper
from rlkit.train.trainer import ModelTrainer, add_to, largest_gap, objective_of, one_if_finite, to_device
from rlkit.types import Batch, Numbers, Pack, PolicyPack


class PipelineTrainer(ModelTrainer):
    """A `Trainer` over one stage; the ranks of a pipeline get the same share of a batch."""

    stepper: PipelineStepper
    reference: RelayedPolicy | None

    def __init__(
        self,
        model: DeepseekV3,
        stepper: PipelineStepper,
        pipeline: Pipeline,
        *,
        reference: DeepseekV3 | None,
        bias_update_speed: float = 0.0,
        balance_coef: float = 0.0,
    ) -> None:
        """As `ModelTrainer`; `pipeline` names the ranks that hold the other stages."""
        super().__init__(model, stepper, reference=None, bias_update_speed=bias_update_speed, balance_coef=balance_coef)
        self.model = model
        if reference is not None:
            self.reference = RelayedPolicy(reference.to(self.device), pipeline)

    def update(self, batch: Batch, loss: Loss, lr: float, mtp: MtpTerm = NO_MTP) -> Numbers:
        """Takes one optimiser step as `ModelTrainer.update` does, with the same numbers on every rank."""
        self.balance.begin()
        packs = self._with_references([to_device(pack, self.device) for pack in batch.packs], batch.temperature)
        packs = filled_up(packs, self.stepper.least_packs)
        step = _Step(self, replace(batch, packs=tuple(packs)), loss, mtp)
        self.stepper.accumulate(step, [len(pack.tokens_T) for pack in packs])
        names = ranks.from_first(list(step.sums))
        return self._step({name: step.sums.get(name, 0.0) for name in names}, step.gap, batch, lr)

    def _with_references(self, packs: Sequence[Pack], temperature: float) -> Sequence[Pack]:
        """Fills `ref_logprobs_T` of all packs in one go, so that no rank waits for the way of each."""
        if self.reference is None or not isinstance(packs[0], PolicyPack):
            return packs
        found = self.reference.outputs(packs, temperature)
        return [replace(pack, ref_logprobs_T=logprobs_T) for pack, (logprobs_T, _) in zip(packs, found, strict=True)]

    def trace(self, tokens: Sequence[int], rounding: Rounding | None = None) -> Mapping[str, Tensor]:
        """Runs one sequence through all stages; every rank returns the output of every block."""
        with rounded_anew(self.model, rounding):
            return self.stepper.module.trace(tokens)

    def routes(self, sequences: Sequence[Sequence[int]]) -> Mapping[str, Tensor]:
        """The experts that the routers of all stages choose, on every rank."""
        return self.stepper.module.joined(super().routes(sequences))


class _Step:
    """One optimiser step, as DeepSpeed asks for its pieces; a `PipelineStep`."""

    def __init__(self, trainer: PipelineTrainer, batch: Batch, loss: Loss, mtp: MtpTerm) -> None:
        self.trainer, self.batch, self.loss, self.mtp = trainer, batch, loss, mtp
        self.chunks = trainer.model.stage.chunks(trainer.model.config.num_hidden_layers)
        self.policy = Policy(trainer.model)
        self.sums: dict[str, float] = {}
        self.gap = 0.0

    def forward(self, way: int, number: int, x_TD: Tensor | None) -> Tensor | PolicyOutput:
        """Runs this rank's layers on the way out (0) or back (1) of a pack; the last layers end with the log-probs."""
        pack, balance = self.batch.packs[number], self.trainer.balance
        with balance.recording() as routings:
            ragged = lay_out_pack(pack.tokens_T, pack.lengths)
            out_TD = self.trainer.model.model.run(self.chunks[way], x_TD, pack.tokens_T, ragged)
        uneven = balance.count(routings, pack, self.batch.num_samples)
        if isinstance(uneven, Tensor):
            out_TD = _Joined.apply(out_TD, uneven, self.trainer.stepper.averaged_over)
        if way == 0 or not self.trainer.model.stage.first:
            return out_TD
        with balance.recording() as routings:
            output = self.policy.of_hidden(out_TD, pack, self.batch.temperature, self.mtp)
        balance.count(routings, pack, self.batch.num_samples)
        return output

    def objective(self, number: int, output: PolicyOutput) -> Tensor:
        """Computes a pack's part of the loss and keeps what is measured; on the first rank alone."""
        pack = self.batch.packs[number]
        objective, measured = objective_of(self.loss(output.logprobs_T, pack), output, pack, self.mtp)
        add_to(self.sums, measured)
        self.gap = max(self.gap, largest_gap(output.logprobs_T, pack))
        return objective * one_if_finite(objective)


class _Joined(torch.autograd.Function):
    """Hands activations on; backward adds to their gradient that of a loss, `scale` times."""

    @staticmethod
    def forward(ctx: Any, x_TD: Tensor, loss: Tensor, scale: float) -> Tensor:
        ctx.scale, ctx.like = scale, loss
        return x_TD.view_as(x_TD)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, None]:
        return grads[0], torch.full_like(ctx.like, ctx.scale), None
