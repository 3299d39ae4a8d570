"""The bytes of a trainer's rank: weights, gradients, optimiser, reference, and what a step needs beside them.

DeepSpeed 0.19 as our stepper sets it: fp32 gradients, fp32 master weights and the moments, of which AdamW has two and
Muon one; ZeRO deals them.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from rlkit.plan.layout import Layout

WIDTH = {"fp32": 4, "bf16": 2, "fp8": 2, "fp8_weights": 2}
"""Bytes of a parameter by `trainer.dtype`: FP8 is computed from parameters in bf16."""
BUCKET = 500_000_000
"""Numbers of DeepSpeed's `reduce_bucket_size`; on a GPU all of them are set aside, on a CPU what is written to."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Held:
    """How many parameters a rank holds before ZeRO deals them."""

    dense: int
    """Outside the routed experts."""
    experts: int = 0
    adapters: int = 0
    """LoRA's, which are trained alone; 0 trains all."""
    largest: int = 0
    """The largest single parameter."""
    block: int = 0
    """All parameters of the largest block."""
    matrices: int = 0
    """Of the dense ones those that Muon trains; it trains all experts."""
    matrix: int = 0
    """The largest matrix that it makes orthogonal."""

    @property
    def total(self) -> int:
        """All of them."""
        return self.dense + self.experts


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainerBytes:
    """What a rank needs, in bytes."""

    weights: int
    gradients: int
    optimiser: int
    reference: int
    activations: int = 0
    logits: int = 0
    bucket: int = 0
    """Where gradients wait to be reduced."""
    gathered: int = 0
    """ZeRO-3: the whole weights of the block at work and of the next one."""
    step: int = 0
    """What the optimiser's step needs beyond the gradients: their flat copy, AdamW's temporaries on a CPU, Muon's."""
    host: int = 0
    """In main memory, where the optimiser is offloaded."""

    @property
    def states(self) -> int:
        """What stays from step to step, and gradients."""
        return self.weights + self.gradients + self.optimiser + self.reference

    @property
    def resting(self) -> int:
        """The same, wherever it lies: on the device or in main memory."""
        return self.states + self.host

    @property
    def peak(self) -> int:
        """The larger of two moments: the backward pass of the second pack, and the optimiser's step."""
        return self.states + max(self.activations + self.logits + self.bucket + self.gathered, self.step)


def trainer_bytes(
    held: Held,
    layout: Layout,
    *,
    kind: str,
    dtype: str,
    reference: bool,
    on_cpu: bool,
    optimizer: str = "adamw",
    activations: int = 0,
    logits: int = 0,
) -> TrainerBytes:
    """Returns the bytes of a rank; `kind` is "torch" (one process) or "deepspeed", `optimizer` "adamw" or "muon".

    A parameter takes w bytes of weight (4 in fp32, else 2), 4 of gradient, 12 of optimiser (8 with torch, whose weights
    are the master weights; 4 less for what Muon trains), w of reference. ZeRO-1 divides the optimiser by the ranks that
    hold it, ZeRO-2 gradients as well, ZeRO-3 weights as well, but never the reference. Adapters are trained alone.
    """
    width, stage, extra = WIDTH[dtype], layout.zero_stage, WIDTH[dtype] * held.adapters
    trained = held.adapters or held.total

    def all_of(each: float, dealt: bool, adapted: bool = False) -> int:
        if adapted and held.adapters:
            return round(each * held.adapters / (layout.replicas if dealt else 1))
        dense = held.dense / (layout.replicas if dealt else 1)
        experts = held.experts / (layout.expert_replicas if dealt else 1)
        return round(each * (dense + experts))

    kept = all_of(width, dealt=False, adapted=True) if reference else 0
    if kind == "torch":
        weights, (moments, step) = all_of(width, dealt=False) + extra, _in_one_process(held, trained, optimizer, on_cpu)
        needs = TrainerBytes(weights=weights, gradients=4 * trained, optimiser=moments, reference=kept, step=step)
        return replace(needs, activations=activations, logits=logits)
    gradients, flat = all_of(4, dealt=stage > 1, adapted=True), all_of(4, dealt=True, adapted=True)
    optimiser = 3 * flat
    # ZeRO-1 in bf16 is another class of DeepSpeed's, which adds gradients up where they are reduced and stepped.
    in_place = stage == 1 and dtype != "fp32"
    temporaries = 2 * flat if on_cpu else 0  # of AdamW
    if optimizer == "muon":
        orthogonal = round(4 * (held.matrices / layout.replicas + held.experts / layout.expert_replicas))
        ahead = orthogonal + _newton_schulz(held, width)
        optimiser, temporaries = optimiser - orthogonal, max(ahead, temporaries - 2 * orthogonal)
    # Elsewhere gradients are copied flat; then they go, and the step begins.
    step = temporaries if in_place else max(flat, flat + temporaries - gradients)
    numbers = min(BUCKET, trained) if on_cpu else BUCKET
    bucket = 0 if in_place else numbers * (2 if stage > 1 and dtype != "fp32" else 4)
    weights, gathered = all_of(width, dealt=stage > 2) + extra, 2 * width * held.block if stage > 2 else 0
    away, all_away = layout.offload != "none", layout.offload == "all"
    return TrainerBytes(
        weights=0 if all_away else weights,
        gradients=0 if away else gradients,
        optimiser=0 if away else optimiser,
        reference=kept,
        activations=activations,
        logits=logits,
        bucket=bucket,
        gathered=gathered,
        step=0 if away else step,
        host=(optimiser + flat if away else 0) + (weights if all_away else 0),
    )


def _in_one_process(held: Held, trained: int, optimizer: str, on_cpu: bool) -> tuple[int, int]:
    """Returns the bytes of the moments, and what the step of one parameter after the other needs for a moment."""
    moments, step = 8 * trained, 8 * held.largest if on_cpu else 0
    if optimizer != "muon":
        return moments, step
    return moments - 4 * (held.matrices + held.experts), max(step, 4 * held.largest + _newton_schulz(held, 4))


def _newton_schulz(held: Held, width: int) -> int:
    """Returns the bytes of a matrix, its next value, and two squares of its shorter side."""
    return 4 * width * held.matrix
