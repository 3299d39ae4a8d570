"""A rank of `test_float8_layouts.py`: one step in FP8 with Muon, over stages, or with rows that travel in FP8."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from rlkit.algo import SftLoss, shard
from rlkit.algo.muon import MOMENTUM
from rlkit.train.rounding import Rounding
from rlkit.train.steppers.base import WEIGHT, spread_parameters
from rlkit.train.trainer import ModelTrainer
from tests.train.ranks import Rank
from tests.train.test_float8 import sentences
from tests.train.test_float8_layouts import LAYOUTS, Layout

LR = 1e-3
SEQUENCES = [tuple(range(4, 24)), tuple(range(40, 10, -2))]
OTHERWISE = Rounding(unit=0.0, seed=0, other_activations=True)


def gradient(rank: Rank, trainer: ModelTrainer) -> dict[str, Tensor]:
    """What one step has left in the moments, of all stages and all experts."""
    spread = {id(parameter) for parameter in spread_parameters(trainer.model)}
    own: dict[str, tuple[bool, Tensor]] = {}
    for name, parameter in trainer.model.named_parameters():
        state = trainer.stepper.state(parameter)
        whole = state["exp_avg"] / 0.1 if "exp_avg" in state else state["momentum_buffer"] / (1 - MOMENTUM)
        own[name] = id(parameter) in spread, whole
    pieces: dict[str, list[Tensor]] = {}
    for part in rank.from_all(own):
        for name, (cut, tensor) in part.items():
            if cut or name not in pieces:
                pieces.setdefault(name, []).append(tensor)
    return {name: torch.cat(found) if len(found) > 1 else found[0] for name, found in pieces.items()}


def weights(trainer: ModelTrainer) -> dict[str, Tensor]:
    return {name: trainer.stepper.state(p)[WEIGHT].clone() for name, p in trainer.model.named_parameters()}


def step(rank: Rank, layout: Layout) -> dict[str, Any]:
    made = rank.new(layout.cfg(rank.number), str(layout.layers), keep_reference=False)
    seen = {"logprobs": made.logprobs(SEQUENCES), "otherwise": made.logprobs(SEQUENCES, OTHERWISE)}
    before = weights(made)
    shares = rank.number // layout.pipeline
    numbers = made.update(shard(sentences(0), shares)[rank.index % shares], SftLoss(), LR)
    moved = {name: float((after - before[name]).square().mean().sqrt()) / LR for name, after in weights(made).items()}
    return seen | {"numbers": dict(numbers), "gradient": gradient(rank, made), "moved": moved}


def steps(rank: Rank) -> dict[Layout, dict[str, Any]]:
    return {layout: step(rank, layout) for layout in LAYOUTS if layout.runs_on(rank.number)}
