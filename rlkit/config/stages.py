"""The stages of a run: SFT, GRPO, evaluation, and how each draws completions."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from rlkit.algo.advantages import SCALES
from rlkit.algo.losses import GrpoLoss, Loss, UserLoss
from rlkit.algo.packing import AGGREGATES
from rlkit.algo.schedule import Schedule
from rlkit.checks import number, one_of, whole
from rlkit.errors import UserError
from rlkit.types import Sampling

LEAST_TEMPERATURE = 0.01
"""vLLM samples at this temperature when it is asked for a lower one, and the ratios of the loss would be wrong."""
MAX_TEMPERATURE = 100
"""At this temperature all tokens are nearly as likely as each other."""


@dataclass(frozen=True, kw_only=True)
class SftConfig:
    """Supervised fine-tuning on demonstrations."""

    steps: int
    epochs: float
    """How often every demonstration is shown, in the place of `steps`, which is 0 then; 0 counts steps."""
    batch_size: int
    """How many demonstrations an optimiser step learns from."""
    think_share: float
    """The share of demonstrations that show the worked solution; the others think nothing and answer at once."""
    held_out_every: int
    """How many steps lie between losses on held-out demonstrations, of which the model with the lowest is kept; 0
    measures none."""
    mtp_weight: float
    """The weight lambda of multi-token prediction in a model that has modules for it; V3 has 0.3, then 0.1."""
    schedule: Schedule

    def __post_init__(self) -> None:
        """Refuses empty stages and impossible shares."""
        whole("sft.steps", self.steps)
        number("sft.epochs", self.epochs, least=0, fix="2 or 3 are usual, 0 counts steps")
        if self.epochs and self.steps:
            raise UserError(
                f"sft.epochs={self.epochs:g} and sft.steps={self.steps} both say how long SFT takes; set sft.steps=0, "
                "or sft.epochs=0"
            )
        whole("sft.held_out_every", self.held_out_every, fix="0 measures no loss on held-out rows")
        whole("sft.batch_size", self.batch_size, least=1)
        number("sft.mtp_weight", self.mtp_weight, least=0, fix="V3 has 0.3, then 0.1")
        fix = "1 shows the worked solution in all demonstrations, 0 in none"
        number("sft.think_share", self.think_share, least=0, most=1, fix=fix)

    def counted(self, num_demonstrations: int | None) -> SftConfig:
        """Returns the same with epochs turned into steps, the last of which may begin another epoch.

        UserError where nobody knows how many demonstrations there are.
        """
        if not self.epochs:
            return self
        if num_demonstrations is None:
            raise UserError(
                f"sft.epochs={self.epochs:g}: data.mixture has a part with stream=true, whose rows nobody has counted; "
                "set sft.steps, and sft.epochs=0"
            )
        return replace(self, steps=math.ceil(self.epochs * num_demonstrations / self.batch_size), epochs=0.0)


@dataclass(frozen=True, kw_only=True)
class SamplingConfig:
    """How completions are drawn."""

    temperature: float
    top_p: float
    max_new_tokens: int

    def __post_init__(self) -> None:
        """Refuses what no sampler can do."""
        number("temperature", self.temperature, least=0, most=MAX_TEMPERATURE, fix="1 is usual, 0 is greedy")
        if 0 < self.temperature < LEAST_TEMPERATURE:
            raise UserError(
                f"temperature={self.temperature} is so low that logits overflow, and vLLM would sample at "
                f"{LEAST_TEMPERATURE} instead; use 0, which is greedy, or {LEAST_TEMPERATURE} and more"
            )
        number("top_p", self.top_p, above=0, most=1, fix="1 cuts nothing")
        whole("max_new_tokens", self.max_new_tokens, least=1)

    def seeded(self, seed: int) -> Sampling:
        """Returns the same with a seed, from which each rollout's own is derived."""
        return Sampling(temperature=self.temperature, top_p=self.top_p, max_new_tokens=self.max_new_tokens, seed=seed)


@dataclass(frozen=True, kw_only=True)
class AlgoConfig:
    """Group relative policy optimisation: how much is sampled, and how it is learned from."""

    steps: int
    prompts_per_step: int
    group_size: int
    """How many rollouts each prompt gets."""
    minibatches: int
    """To how many optimiser steps the rollouts of one step are dealt; 1 keeps every update on-policy."""
    scale: str
    aggregate: str
    refresh_reference_every: int
    """After how many steps the policy becomes the reference (R1: 400); 0 keeps the first one."""
    mtp_weight: float
    """The weight lambda of multi-token prediction on the sampled tokens, in a model that has modules for it. It trains
    those modules alone; 0 leaves them as they are."""
    sampling: SamplingConfig
    loss: GrpoLoss
    schedule: Schedule
    loss_fn: str = ""
    """The user's own loss, as "file.py:function" or "package.module:function"; "" takes GRPO's. With
    `algo.loss.kl_coef` above 0 a reference is kept for it too."""
    loss_settings: dict[str, Any] = field(default_factory=dict)
    """Further arguments of that function."""

    @property
    def objective(self) -> Loss:
        """Returns the loss that the trainer follows."""
        if not self.loss_fn:
            return self.loss
        place, _, function = self.loss_fn.rpartition(":")
        # A rank may run in another folder, where the same relative path would name another file.
        name = f"{Path(place).absolute()}:{function}" if place.endswith(".py") else self.loss_fn
        return UserLoss(name=name, settings=self.loss_settings)

    def __post_init__(self) -> None:
        """Refuses groups that cannot be compared and batches that do not divide."""
        if self.loss_settings and not self.loss_fn:
            raise UserError(
                f"algo.loss_settings={self.loss_settings} are arguments of algo.loss_fn, which is empty; set that too"
            )
        whole("algo.steps", self.steps)
        whole("algo.prompts_per_step", self.prompts_per_step, least=1)
        whole("algo.group_size", self.group_size, least=2, fix="an advantage compares the rollouts of one group")
        whole("algo.minibatches", self.minibatches, least=1)
        whole("algo.refresh_reference_every", self.refresh_reference_every, fix="0 never refreshes, R1 has 400")
        number("algo.mtp_weight", self.mtp_weight, least=0, fix="0 leaves the MTP modules as they are")
        one_of("algo.scale", self.scale, SCALES)
        one_of("algo.aggregate", self.aggregate, AGGREGATES)
        num_rollouts = self.prompts_per_step * self.group_size
        if num_rollouts % self.minibatches:
            raise UserError(
                f"algo.minibatches={self.minibatches} does not divide algo.prompts_per_step x algo.group_size = "
                f"{self.prompts_per_step} x {self.group_size} = {num_rollouts}; change one of the three"
            )
        if self.sampling.temperature == 0:
            raise UserError("algo.sampling.temperature=0 makes all rollouts of a group equal; use 1.0")
        if self.sampling.top_p < 1:
            raise UserError(
                f"algo.sampling.top_p={self.sampling.top_p} cuts tokens whose probability the ratio needs; use 1.0"
            )


@dataclass(frozen=True, kw_only=True)
class EvaluationConfig:
    """When and how held-out accuracy is measured."""

    every: int
    """How many GRPO steps lie between evaluations; 0 evaluates only before and after each stage."""
    sampling: SamplingConfig

    def __post_init__(self) -> None:
        """Refuses a rhythm that there is not."""
        whole("evaluation.every", self.every, fix="0 evaluates before and after each stage only")
