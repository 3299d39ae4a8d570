"""A rank of `test_pipeline.py`: learns in every layout of so many ranks, and returns what all of them saw."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, distributed

from rlkit.algo import shard
from rlkit.config import TrainerConfig
from rlkit.train.checkpoint import Layout
from rlkit.train.trainer import ModelTrainer
from rlkit.types import Batch
from tests.train.ranks import Rank
from tests.train.test_pipeline import CASES, LAYOUTS, LOW, LR, SAVED_AFTER, SEQUENCES, TRIED, Case, Ranks, updated


def new(rank: Rank, case: Case, cfg: TrainerConfig) -> ModelTrainer:
    return rank.new(cfg, case.architecture)


def share(rank: Rank, batch: Batch, ranks: Ranks) -> Batch:
    pipelines = ranks.number // ranks.pipeline
    return shard(batch, pipelines)[rank.index % pipelines]


def weights(trainer: ModelTrainer) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in trainer.weights()}


def moments(trainer: ModelTrainer) -> dict[str, tuple[int, Tensor]]:
    firsts = Layout(trainer.model).firsts
    return {
        name: (firsts.get(name, 0), trainer.stepper.state(parameter)["exp_avg"].clone())
        for name, parameter in trainer.model.named_parameters()
    }


def lived(rank: Rank, layout: str, name: str) -> dict[str, Any]:
    """The steps of a case with a checkpoint on the way, and what follows it, and that of one process, anew."""
    ranks, case = LAYOUTS[layout], CASES[name]
    batches = [share(rank, batch, ranks) for batch in case.batches()]
    trainer = new(rank, case, ranks.cfg())
    numbers = updated(trainer, case, batches[:1])
    seen: dict[str, Any] = {"moments": moments(trainer)}
    numbers += updated(trainer, case, batches[1:SAVED_AFTER])
    saved = rank.folder / f"{layout}, {name}"
    saved.mkdir(exist_ok=True)
    trainer.save(saved)
    seen["numbers"] = numbers + updated(trainer, case, batches[SAVED_AFTER:])
    seen |= {"weights": weights(trainer), "logprobs": trainer.logprobs(SEQUENCES), "routes": trainer.routes(SEQUENCES)}
    seen["trace"] = trainer.trace(SEQUENCES[0])
    distributed.barrier()
    for what, begun in (("resumed", saved), ("taken over", rank.folder / f"alone, {name}")):
        trainer = new(rank, case, ranks.cfg())
        trainer.load(begun)
        seen[f"{what} numbers"] = updated(trainer, case, batches[SAVED_AFTER:])
        seen[what] = weights(trainer)
    return seen


def first_step(rank: Rank, dtype: str) -> dict[str, Any]:
    case = LOW[dtype]
    trainer = new(rank, case, replace(Ranks(2, 2, 1).cfg(dtype, grad_clip=1e9), bias_update_speed=0.0))
    updated(trainer, case, case.batches()[:1])
    return {"moments": moments(trainer)}


def spoiled(rank: Rank) -> dict[str, Any]:
    """A step whose gradient is no number on the last stage alone, then an ordinary one."""
    case, ranks = CASES["grpo"], Ranks(2, 2, 1)
    batch = case.batches()[0]
    trainer = new(rank, case, ranks.cfg())
    before = weights(trainer)
    hooks = []
    if rank.index == 1:
        parameter = next(parameter for parameter in trainer.model.parameters() if parameter.ndim > 1)
        hooks = [parameter.register_hook(lambda grad: grad * float("nan"))]
    numbers = dict(trainer.update(batch, case.loss, LR))
    for hook in hooks:
        hook.remove()
    unmoved = all(torch.equal(tensor, before[name]) for name, tensor in trainer.weights())
    return {
        "numbers": numbers,
        "unmoved": unmoved,
        "numbers after": dict(trainer.update(batch, case.loss, LR)),
        "numbers without": dict(new(rank, case, ranks.cfg()).update(batch, case.loss, LR)),
    }


def stages(rank: Rank) -> dict[Any, Any]:
    seen: dict[Any, Any] = {
        (layout, case): lived(rank, layout, case) for layout, case in TRIED if LAYOUTS[layout].number == rank.number
    }
    if rank.number == 2:
        seen |= {dtype: first_step(rank, dtype) for dtype in LOW} | {"spoiled": spoiled(rank)}
    parts = rank.from_all(seen)
    return {key: [part[key] for part in parts] for key in seen}
