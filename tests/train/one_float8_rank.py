"""One rank of `test_float8_ranks.py`: steps in FP8 with experts shared out, and rows that travel in FP8.

python -m tests.train.one_float8_rank FOLDER RANK WORLD_SIZE OUT
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, distributed

from rlkit.algo import SftLoss, shard
from rlkit.algo.muon import MOMENTUM
from rlkit.build import build_trainer
from rlkit.model import dispatch
from rlkit.train.rounding import Rounding
from rlkit.train.steppers.base import WEIGHT, spread_parameters
from rlkit.train.steppers.deepspeed import join_ranks
from rlkit.train.trainer import ModelTrainer
from tests.train.one_rank import from_all
from tests.train.test_float8_ranks import LAYOUTS, Layout, batch, rows_of

LR = 1e-3
SEQUENCES = [tuple(range(4, 24)), tuple(range(40, 10, -2))]
OTHERWISE = Rounding(unit=0.0, seed=0, other_activations=True)
Sent = list[tuple[torch.dtype, int]]
"""Dtype and bytes of every tensor that went through an all-to-all."""


class Counted:
    """torch's all-to-all, which also notes what goes through it."""

    def __init__(self) -> None:
        self.sent: Sent = []
        self.plain = distributed.all_to_all_single

    def __call__(self, out: Tensor, x: Tensor, *sizes: Any, group: Any) -> None:
        self.sent.append((x.dtype, x.nbytes))
        self.plain(out, x, *sizes, group=group)


def passed(rank: int, counted: Counted, *, in_float8: bool) -> dict[str, Any]:
    """Rows to experts and back through the dispatcher alone; the experts of rank r multiply by r + 1."""
    counted.sent.clear()
    distributor = dispatch.AllToAll(distributed.group.WORLD, in_float8=in_float8)  # type: ignore[arg-type]
    rows, gates, counts, grad = rows_of(rank)
    rows.requires_grad_()
    arrived = distributor.out(rows, gates, counts)
    outputs = arrived.rows_MD * (rank + 1)
    outputs.retain_grad()
    back = distributor.back(outputs, arrived)
    back.backward(grad)
    assert outputs.grad is not None and rows.grad is not None
    return {
        "rows": from_all((arrived.rows_MD.detach(), arrived.ends_L), 2),
        "back": from_all(back.detach(), 2),
        "gradient of outputs": from_all(outputs.grad, 2),
        "gradient of rows": from_all(rows.grad, 2),
        "bytes": list(counted.sent),
    }


def gradient(trainer: ModelTrainer, world_size: int) -> dict[str, Tensor]:
    """What one step has left in the moments, of all stages and all experts."""
    spread = {id(parameter) for parameter in spread_parameters(trainer.model)}
    own: dict[str, tuple[bool, Tensor]] = {}
    for name, parameter in trainer.model.named_parameters():
        state = trainer.stepper.state(parameter)
        whole = state["exp_avg"] / 0.1 if "exp_avg" in state else state["momentum_buffer"] / (1 - MOMENTUM)
        own[name] = id(parameter) in spread, whole
    pieces: dict[str, list[Tensor]] = {}
    for part in from_all(own, world_size):
        for name, (cut, tensor) in part.items():
            if cut or name not in pieces:
                pieces.setdefault(name, []).append(tensor)
    return {name: torch.cat(found) if len(found) > 1 else found[0] for name, found in pieces.items()}


def weights(trainer: ModelTrainer) -> dict[str, Tensor]:
    return {name: trainer.stepper.state(p)[WEIGHT].clone() for name, p in trainer.model.named_parameters()}


def step(folder: Path, layout: Layout, rank: int, world_size: int, counted: Counted) -> dict[str, Any]:
    made = build_trainer(
        layout.cfg(world_size),
        folder / str(layout.layers),
        "deepseek",
        keep_reference=False,
        seed=0,
        store=distributed.HashStore(),
        rank=rank,
    )
    seen = {"logprobs": made.logprobs(SEQUENCES), "otherwise": made.logprobs(SEQUENCES, OTHERWISE)}
    before = weights(made)
    counted.sent.clear()
    shares = world_size // layout.pipeline
    numbers = made.update(shard(batch(), shares)[rank % shares], SftLoss(), LR)
    sent = sum(from_all(sum(size for _, size in counted.sent), world_size))
    moved = {name: float((after - before[name]).square().mean().sqrt()) / LR for name, after in weights(made).items()}
    return seen | {"numbers": dict(numbers), "bytes": sent, "gradient": gradient(made, world_size), "moved": moved}


def main(folder: Path, rank: int, world_size: int, out: str) -> None:
    torch.set_num_threads(1)
    join_ranks(distributed.FileStore(str(folder / f"store-{world_size}"), world_size), rank, world_size)
    counted = Counted()
    distributed.all_to_all_single = counted  # type: ignore[assignment]
    layouts = [layout for layout in LAYOUTS if layout.runs_on(world_size)]
    seen: dict[Any, Any] = {layout: step(folder, layout, rank, world_size, counted) for layout in layouts}
    if world_size == 2:
        seen |= {in_float8: passed(rank, counted, in_float8=in_float8) for in_float8 in (False, True)}
    if rank == 0:
        torch.save(seen, out)
    distributed.barrier()
    distributed.destroy_process_group()


if __name__ == "__main__":
    folder, rank, world_size, out = sys.argv[1:]
    main(Path(folder), int(rank), int(world_size), out)
