"""One rank of `test_ranks.py`: takes DeepSpeed steps, each from new, on its share of a batch; writes what came of them.

The gradient that was reduced, the numbers of the step, and the router's biases of every rank.

python -m tests.train.one_rank FOLDER RANK WORLD_SIZE OUT
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, distributed, nn

from rlkit.algo import shard
from rlkit.build import build_trainer
from rlkit.train.steppers.base import spread_parameters
from rlkit.train.trainer import ModelTrainer
from tests.train.test_ranks import LAYOUTS, SPOILED, Layout, no_number, spoil


def bias_of(model: nn.Module) -> Tensor:
    return torch.stack([buffer for name, buffer in model.named_buffers() if name.endswith("e_score_correction_bias")])


def moments(trainer: ModelTrainer) -> dict[str, Tensor]:
    """After one step of Adam the first moment is (1 - beta1) times the gradient of the whole batch."""
    spread = {id(parameter) for parameter in spread_parameters(trainer.model)}
    found = {
        name: trainer.stepper.state(parameter)["exp_avg"].clone()
        for name, parameter in trainer.model.named_parameters()
        if parameter.requires_grad
    }
    # Of experts that are shared out each of the two ranks has one half.
    for name, parameter in trainer.model.named_parameters():
        if id(parameter) in spread and parameter.requires_grad:
            found[name] = torch.cat(from_all(found[name], distributed.get_world_size()))
    return found


def from_all(value: Any, world_size: int) -> list[Any]:
    found: list[Any] = [None] * world_size
    distributed.all_gather_object(found, value)
    return found


def step(trainer: ModelTrainer, layout: Layout, rank: int, world_size: int) -> dict[str, Any]:
    before = bias_of(trainer.model).clone()
    loss, mtp = layout.loss()
    numbers = trainer.update(shard(layout.batch(), world_size)[rank], loss, 1e-3, mtp)
    biases = from_all(bias_of(trainer.model), world_size)
    return {"numbers": dict(numbers), "moments": moments(trainer), "biases": biases, "before": before}


def spoiled_step(trainer: ModelTrainer, layout: Layout, rank: int, world_size: int) -> dict[str, Any]:
    """Two steps that the last rank alone spoils, by its gradient and by its loss, then an ordinary one.

    The biases of the routers are among the tensors that must not move.
    """
    before = {name: tensor.clone() for name, tensor in trainer.stepper.tensors().items()}
    spoils, (loss, mtp) = rank == world_size - 1, layout.loss()
    share = shard(layout.batch(), world_size)[rank]
    value = float("nan") if layout.kind == "grpo" else float("inf")
    hooks = [spoil(trainer.model, layout, value)] if spoils else []
    numbers = [trainer.update(share, loss, 1e-3, mtp)]
    for hook in hooks:
        hook.remove()
    numbers.append(trainer.update(share, no_number(loss) if spoils else loss, 1e-3, mtp))
    same = all(torch.equal(tensor, before[name]) for name, tensor in trainer.stepper.tensors().items())
    after = step(trainer, layout, rank, world_size)
    skipped = [each["skipped"] for each in (*numbers, after["numbers"])]
    return {
        "skipped": from_all(skipped, world_size),
        "unmoved": from_all(same, world_size),
        "moments after": after["moments"],
    }


def main(folder: Path, rank: int, world_size: int, out: str) -> None:
    torch.set_num_threads(1)
    store = distributed.FileStore(str(folder / f"store-{world_size}"), world_size)

    def new(layout: Layout) -> ModelTrainer:
        made = build_trainer(
            layout.cfg(world_size),
            folder / layout.architecture(),
            "deepseek",
            keep_reference=True,
            seed=0,
            store=store,
            rank=rank,
        )
        return made

    layouts = [layout for layout in LAYOUTS if layout.runs_on(world_size)]
    seen = {layout: step(new(layout), layout, rank, world_size) for layout in layouts}
    for layout in [layout for layout in SPOILED if layout in seen]:
        seen[layout] |= spoiled_step(new(layout), layout, rank, world_size)
    if rank == 0:
        torch.save(seen, out)
    distributed.barrier()
    distributed.destroy_process_group()


if __name__ == "__main__":
    folder, rank, world_size, out = sys.argv[1:]
    main(Path(folder), int(rank), int(world_size), out)
