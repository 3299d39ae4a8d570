"""One rank of `test_checkpoint.py`: trains in several layouts and saves; or goes on from what others have saved.

python -m tests.train.one_life FOLDER RANK WORLD_SIZE before|after
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from torch import Tensor, distributed

from rlkit.algo import shard
from rlkit.build import build_trainer
from rlkit.train.steppers.base import spread_parameters
from rlkit.train.trainer import ModelTrainer
from tests.train.one_rank import from_all
from tests.train.test_checkpoint import GOES_ON, LAYOUTS, REPLICATED, Ranks
from tests.train.test_ranks import Layout


def step(trainer: ModelTrainer, layout: Layout, rank: int, world_size: int) -> float:
    loss, mtp = layout.loss()
    return trainer.update(shard(layout.batch(), world_size)[rank], loss, 1e-3, mtp)["loss"]


def whole(trainer: ModelTrainer, layout: Layout, world_size: int) -> dict[str, Tensor]:
    """All weights and biases, of experts those of the first ranks that share them out."""
    spread = {id(parameter) for parameter in spread_parameters(trainer.model)}
    names = {name for name, parameter in trainer.model.named_parameters() if id(parameter) in spread}
    found = {}
    for name, tensor in trainer.stepper.tensors().items():
        found[name] = tensor.clone()
        if name in names:
            found[name] = torch.cat(from_all(found[name], world_size)[: layout.expert_parallel])
    return found


def main(folder: Path, rank: int, world_size: int, when: str) -> None:
    torch.set_num_threads(1)
    store = distributed.FileStore(str(folder / f"store-{when}-{world_size}"), world_size)

    def new(ranks: Ranks) -> ModelTrainer:
        cfg = ranks.layout.cfg(world_size)
        model = folder / ranks.layout.architecture()
        return build_trainer(cfg, model, "deepseek", keep_reference=True, seed=0, store=store, rank=rank)

    def finish(name: str, trainer: ModelTrainer, ranks: Ranks) -> None:
        loss = step(trainer, ranks.layout, rank, world_size)
        weights = whole(trainer, ranks.layout, world_size)
        if rank == 0:
            torch.save((loss, weights), folder / f"{name}.pt")

    for name, ranks in (LAYOUTS | REPLICATED).items():
        if ranks.number == world_size and when == "before":
            trainer = new(ranks)
            step(trainer, ranks.layout, rank, world_size)
            trainer.refresh_reference()
            step(trainer, ranks.layout, rank, world_size)
            (folder / name).mkdir(exist_ok=True)
            trainer.save(folder / name)
            finish(name, trainer, ranks)
    for before, after in GOES_ON:
        if LAYOUTS[after].number == world_size and when == "after":
            trainer = new(LAYOUTS[after])
            trainer.load(folder / before)
            finish(f"{before}, then {after}", trainer, LAYOUTS[after])
    if distributed.is_initialized():
        distributed.barrier()
        distributed.destroy_process_group()


if __name__ == "__main__":
    folder, rank, world_size, when = sys.argv[1:]
    main(Path(folder), int(rank), int(world_size), when)
