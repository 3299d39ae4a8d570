"""The trainer of one rank: the policy, its frozen reference and a stepper that turns losses into new weights."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rlkit.algo.losses import NO_MTP, Loss, LossTerms, MtpTerm
from rlkit.algo.packing import tensor_names
from rlkit.errors import UserError
from rlkit.model.base import CausalLM
from rlkit.model.files.sent import ADAPTER, fingerprints, in_form
from rlkit.model.lora import adapter_weights
from rlkit.model.trace import recorded_routing
from rlkit.train import ranks
from rlkit.train.checkpoint import load_state, save_state
from rlkit.train.experts import ExpertBalance
from rlkit.train.policy import Policy, PolicyOutput
from rlkit.train.publishing import share_of
from rlkit.train.rounding import Rounding, rounded_anew
from rlkit.train.steppers.base import Stepper
from rlkit.types import Batch, Numbers, Pack, PolicyPack, SampledPack


class ModelTrainer:
    """A `Trainer` over one model and one stepper; with several ranks each holds one and gets its share of a batch."""

    def __init__(
        self,
        model: CausalLM,
        stepper: Stepper,
        *,
        reference: CausalLM | None,
        bias_update_speed: float = 0.0,
        balance_coef: float = 0.0,
    ) -> None:
        """The stepper has put the model on its device; the reference, a `frozen_copy` from before, goes there too.

        `bias_update_speed` and `balance_coef` as in `ExpertBalance`; 0 = off.
        """
        self.model, self.stepper = model, stepper
        self.device = next(model.parameters()).device
        self.balance = ExpertBalance(model, bias_update_speed=bias_update_speed, balance_coef=balance_coef)
        self.reference = None if reference is None else Policy(reference.to(self.device))

    def update(self, batch: Batch, loss: Loss, lr: float, mtp: MtpTerm = NO_MTP) -> Numbers:
        """Takes one optimiser step: sums the gradients of all packs, clips, steps; then the routers' biases.

        Every rank returns the same numbers, those of the whole batch: sums over its tokens with the batch's weights,
        the largest log-prob gap, the gradient norm, how evenly the experts were used, and whether the step was skipped
        because loss or gradient are no numbers. Then the biases stay too: the choices of a model whose scores are no
        numbers say nothing of its load, and a step that was not taken must leave nothing behind.
        """
        self.balance.begin()
        sums: dict[str, float] = {}
        gap = 0.0
        for pack in batch.packs:
            pack = self._with_reference(to_device(pack, self.device), batch.temperature)
            with self.balance.recording() as routings:
                output = self.stepper.module(pack, batch.temperature, mtp)
            judged = self.judged(output)
            objective, measured = self.objective(loss(judged, pack), output, pack, mtp)
            objective = objective + self.balance.count(routings, pack, batch.num_samples)
            self.stepper.backward(objective * one_if_finite(objective))
            add_to(sums, measured)
            gap = max(gap, largest_gap(judged, pack))
        return self._step(sums, gap, batch, lr)

    def judged(self, output: Any) -> Tensor:
        """Returns what a loss is a function of: here log p of every token, [T]."""
        return output.logprobs_T

    def objective(self, terms: LossTerms, output: Any, pack: Pack, mtp: MtpTerm) -> tuple[Tensor, dict[str, Tensor]]:
        """Returns what is minimised of a pack, without the balance loss, and what is measured of it."""
        return objective_of(terms, output, pack, mtp)

    def _step(self, sums: Mapping[str, float], gap: float, batch: Batch, lr: float) -> Numbers:
        """Ends the step of `update`: what this rank measured becomes the numbers of the batch, and the weights move."""
        numbers = ranks.totals(sums, self.device)
        numbers["grad_norm"] = self.stepper.step(lr, lr if "mtp_loss" in numbers else 0.0)
        taken = math.isfinite(numbers["grad_norm"])
        numbers["skipped"] = float(not taken)
        if isinstance(batch.packs[0], SampledPack):
            numbers["logprob_gap"] = ranks.largest(gap, self.device)
        return numbers | self.balance.end(step=taken)

    @torch.no_grad()
    def _with_reference(self, pack: Pack, temperature: float) -> Pack:
        """Fills `ref_logprobs_T` here, where this rank's share already lies, so that the batch travels once."""
        if self.reference is None or not isinstance(pack, PolicyPack):
            return pack
        return replace(pack, ref_logprobs_T=self.reference(pack, temperature).logprobs_T)

    @torch.no_grad()
    def logprobs(self, sequences: Sequence[Sequence[int]], rounding: Rounding | None = None) -> list[list[float]]:
        """log p(token_t | tokens before t) at temperature 1, for t = 1..len-1 of each sequence, in nats."""
        pack = self.asked(sequences)
        with rounded_anew(self.model, rounding):
            logprobs_T = self.stepper.module(pack, 1.0).logprobs_T
        return [part[1:].tolist() for part in logprobs_T.split(list(pack.lengths))]

    def asked(self, sequences: Sequence[Sequence[int]]) -> Pack:
        """Lays sequences end to end and asks for every token but the first of each, before which nothing comes."""
        tokens_T = torch.tensor([token for sequence in sequences for token in sequence])
        lengths = tuple(len(sequence) for sequence in sequences)
        ends_N = torch.tensor(lengths).cumsum(0)
        asked_T = torch.ones(len(tokens_T))
        asked_T[ends_N - torch.tensor(lengths)] = 0
        return to_device(Pack(tokens_T=tokens_T, lengths=lengths, weights_T=asked_T), self.device)

    def trace(self, tokens: Sequence[int], rounding: Rounding | None = None) -> Mapping[str, Tensor]:
        """Runs one sequence and returns the output of every block under its checkpoint name."""
        with rounded_anew(self.model, rounding):
            return self.model.trace(tokens)

    def weights(self, version: int = 0, form: str = "plain") -> Iterator[tuple[str, Tensor]]:
        """What this rank holds of the policy's weights, under checkpoint names; LoRA merged in. All ranks call it.

        `form` is one of `rlkit.model.files.sent.FORMS`, or `ADAPTER` for LoRA's matrices alone. They stay here, so
        `version` is nobody's concern.
        """
        if form == ADAPTER:
            return iter(self.adapter().items())
        return in_form(self.model.checkpoint_weights(self.stepper.tensors()), self.model.fp8_names(), form)

    def fingerprints(self, form: str) -> Mapping[str, str]:
        """Fingerprints what `weights` yields, as an engine in FP8 holds it."""
        return fingerprints(self.weights(form=form))

    @torch.no_grad()
    def routes(self, sequences: Sequence[Sequence[int]]) -> Mapping[str, Tensor]:
        """The experts that each router chooses for the tokens of all sequences, [T, k] by the router's name."""
        with recorded_routing(self.balance.routers) as routings:
            self.stepper.module(self.asked(sequences), 1.0)
        return {name: routing.experts_TK.cpu() for name, routing in routings.items()}

    def share(self, rank: int, num_ranks: int) -> tuple[str, ...]:
        """Returns the names that one rank of several publishes: of what it holds, its part (`share_of`)."""
        sizes = {name: math.prod(shape) for name, shape in self.model.all_published().items()}
        return share_of(sizes, lambda name: self.model.holders(name, num_ranks), rank)

    def adapter(self) -> Mapping[str, Tensor]:
        """LoRA's matrices under the keys of peft's files; empty when all weights are trained."""
        return adapter_weights(self.model)

    def begin_stage(self) -> None:
        """Forgets the optimiser's moments; the policy becomes the reference."""
        self.stepper.forget()
        self.refresh_reference()

    def refresh_reference(self) -> None:
        """Makes the current policy the reference."""
        if self.reference is None:
            return
        tensors = self.stepper.tensors()
        for name, kept in self.reference.model.state_dict().items():
            kept.copy_(tensors[name])

    def save(self, folder: Path) -> None:
        """Writes weights, optimiser, reference and random state."""
        save_state(folder, self.model, self.stepper, self._reference_model())

    def load(self, folder: Path) -> None:
        """Restores what `save` wrote, bit for bit."""
        load_state(folder, self.model, self.stepper, self._reference_model())

    def scores(self, sequences: Sequence[Sequence[int]]) -> list[float]:
        """Returns what a reward model says of each sequence; a language model raises TypeError."""
        raise TypeError(f"a {type(self.model).__name__} gives no scores; only the trainer of a reward model does")

    def _reference_model(self) -> CausalLM | None:
        return None if self.reference is None else self.reference.model


def objective_of(terms: LossTerms, output: PolicyOutput, pack: Pack, mtp: MtpTerm) -> tuple[Tensor, dict[str, Tensor]]:
    """Returns what is minimised of a pack, without the balance loss, and what is measured of it."""
    measured = {"loss": terms.loss, "entropy": (pack.weights_T * output.entropy_T).sum(), **terms.sums}
    if output.mtp_loss is None:
        return terms.loss, measured
    return terms.loss + mtp.weight * output.mtp_loss, measured | {"mtp_loss": output.mtp_loss}


def one_if_finite(objective: Tensor) -> Tensor:
    """Returns 1, or NaN for an objective that is no number.

    As a factor it makes the gradient of such an objective no number either, which it need not be: the derivative of
    log(0 x) + y with respect to y is 1. The norm of the gradient is the one thing that all ranks look at together.
    """
    return torch.where(objective.detach().isfinite(), 1.0, torch.nan)


def add_to(sums: dict[str, float], measured: Mapping[str, Tensor]) -> None:
    """Adds what one pack measured, in float64; one copy from the device for all numbers.

    UserError if the loss measures of this pack what it did not of another: sums over packs and ranks would be wrong.
    """
    if sums and (odd := sorted(sums.keys() ^ measured.keys())):
        raise UserError(
            f"algo.loss_fn: {', '.join(odd)} is measured of some packs only; put the same names into sums every time, "
            "also for a pack whose weights are all 0"
        )
    values = torch.stack([value.detach().double() for value in measured.values()]).tolist()
    for name, value in zip(measured, values, strict=True):
        sums[name] = sums.get(name, 0.0) + value


def largest_gap(logprobs_T: Tensor, pack: Pack) -> float:
    """max |log p_trainer - log p_engine| over the trained tokens of a pack, in nats; 0 where nothing was sampled."""
    if not isinstance(pack, SampledPack):
        return 0.0
    gaps_T = (logprobs_T.detach() - pack.old_logprobs_T).abs()[pack.weights_T != 0]
    return float(gaps_T.max()) if gaps_T.numel() else 0.0


def to_device(pack: Pack, device: torch.device) -> Pack:
    """Moves the pack's tensors to a device."""
    return replace(pack, **{name: getattr(pack, name).to(device) for name in tensor_names(pack)})
