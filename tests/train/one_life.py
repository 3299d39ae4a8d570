"""A rank of `test_checkpoint.py`: trains in several layouts and saves; or goes on from what others have saved."""

from __future__ import annotations

import torch
from torch import Tensor

from rlkit.algo import shard
from rlkit.train.steppers.base import spread_parameters
from rlkit.train.trainer import ModelTrainer
from tests.train.ranks import Rank
from tests.train.test_checkpoint import GOES_ON, LAYOUTS, REPLICATED, Ranks
from tests.train.test_ranks import Layout


def new(rank: Rank, ranks: Ranks) -> ModelTrainer:
    return rank.new(ranks.layout.cfg(rank.number), ranks.layout.architecture())


def step(rank: Rank, trainer: ModelTrainer, layout: Layout) -> float:
    loss, mtp = layout.loss()
    return trainer.update(shard(layout.batch(), rank.number)[rank.index], loss, 1e-3, mtp)["loss"]


def whole(rank: Rank, trainer: ModelTrainer, layout: Layout) -> dict[str, Tensor]:
    """All weights and biases, of experts those of the first ranks that share them out."""
    spread = {id(parameter) for parameter in spread_parameters(trainer.model)}
    names = {name for name, parameter in trainer.model.named_parameters() if id(parameter) in spread}
    found = {}
    for name, tensor in trainer.stepper.tensors().items():
        found[name] = tensor.clone()
        if name in names:
            found[name] = torch.cat(rank.from_all(found[name])[: layout.expert_parallel])
    return found


def finish(rank: Rank, trainer: ModelTrainer, layout: Layout) -> tuple[float, dict[str, Tensor]]:
    loss = step(rank, trainer, layout)
    return loss, whole(rank, trainer, layout)


def before(rank: Rank) -> dict[str, tuple[float, dict[str, Tensor]]]:
    """The loss of the third step and the weights after it, by the layout's name."""
    seen = {}
    for name, ranks in (LAYOUTS | REPLICATED).items():
        if ranks.number == rank.number:
            trainer = new(rank, ranks)
            step(rank, trainer, ranks.layout)
            trainer.refresh_reference()
            step(rank, trainer, ranks.layout)
            (rank.folder / name).mkdir(exist_ok=True)
            trainer.save(rank.folder / name)
            seen[name] = finish(rank, trainer, ranks.layout)
    return seen


def after(rank: Rank) -> dict[tuple[str, str], tuple[float, dict[str, Tensor]]]:
    """The same by the names of two layouts, the second of which goes on from the first one's second step."""
    seen = {}
    for saved, name in GOES_ON:
        if LAYOUTS[name].number == rank.number:
            trainer = new(rank, LAYOUTS[name])
            trainer.load(rank.folder / saved)
            seen[saved, name] = finish(rank, trainer, LAYOUTS[name].layout)
    return seen
