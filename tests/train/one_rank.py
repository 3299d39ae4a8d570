"""A rank of `test_ranks.py` and `test_float8_ranks.py`: takes DeepSpeed steps, each from new, on its share of a batch.

What it saw is the gradient that was reduced, the numbers of the step, and the router's biases of every rank; in FP8
also what went through the all-to-alls.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, distributed, nn

from rlkit.algo import shard
from rlkit.model import dispatch
from rlkit.train.steppers.base import spread_parameters
from rlkit.train.steppers.deepspeed import join_ranks
from rlkit.train.trainer import ModelTrainer
from tests.train import test_float8_ranks as float8
from tests.train.ranks import Rank
from tests.train.test_ranks import LAYOUTS, Layout, Seen, is_spoiled, no_number, spoil

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


def bias_of(model: nn.Module) -> Tensor:
    return torch.stack([buffer for name, buffer in model.named_buffers() if name.endswith("e_score_correction_bias")])


def moments(rank: Rank, trainer: ModelTrainer) -> dict[str, Tensor]:
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
            found[name] = torch.cat(rank.from_all(found[name]))
    return found


def step(rank: Rank, trainer: ModelTrainer, layout: Layout) -> dict[str, Any]:
    before = bias_of(trainer.model).clone()
    loss, mtp = layout.loss()
    numbers = trainer.update(shard(layout.batch(), rank.number)[rank.index], loss, 1e-3, mtp)
    biases = rank.from_all(bias_of(trainer.model))
    return {"numbers": dict(numbers), "moments": moments(rank, trainer), "biases": biases, "before": before}


def spoiled_step(rank: Rank, trainer: ModelTrainer, layout: Layout) -> dict[str, Any]:
    """Two steps that the last rank alone spoils, by its gradient and by its loss, then an ordinary one.

    The biases of the routers are among the tensors that must not move.
    """
    before = {name: tensor.clone() for name, tensor in trainer.stepper.tensors().items()}
    spoils, (loss, mtp) = rank.index == rank.number - 1, layout.loss()
    share = shard(layout.batch(), rank.number)[rank.index]
    value = float("nan") if layout.kind == "grpo" else float("inf")
    hooks = [spoil(trainer.model, layout, value)] if spoils else []
    numbers = [trainer.update(share, loss, 1e-3, mtp)]
    for hook in hooks:
        hook.remove()
    numbers.append(trainer.update(share, no_number(loss) if spoils else loss, 1e-3, mtp))
    same = all(torch.equal(tensor, before[name]) for name, tensor in trainer.stepper.tensors().items())
    after = step(rank, trainer, layout)
    skipped = [each["skipped"] for each in (*numbers, after["numbers"])]
    return {
        "skipped": rank.from_all(skipped),
        "unmoved": rank.from_all(same),
        "moments after": after["moments"],
    }


def steps(rank: Rank, layouts: Sequence[Layout] = LAYOUTS) -> Seen:
    def new(layout: Layout) -> ModelTrainer:
        return rank.new(layout.cfg(rank.number), layout.architecture())

    layouts = [layout for layout in layouts if layout.runs_on(rank.number)]
    seen = {layout: step(rank, new(layout), layout) for layout in layouts}
    for layout in filter(is_spoiled, layouts):
        seen[layout] |= spoiled_step(rank, new(layout), layout)
    return seen


def float8_steps(rank: Rank) -> dict[Any, Any]:
    """The same in FP8, with the bytes that all ranks sent; and rows that travel in it."""
    join_ranks(rank.store, rank.index, rank.number)
    distributed.all_to_all_single = counted = Counted()  # type: ignore[assignment]
    seen: dict[Any, Any] = {}
    for layout in float8.LAYOUTS:
        counted.sent.clear()
        seen |= steps(rank, [layout])
        if layout in seen and not is_spoiled(layout):
            seen[layout]["bytes"] = sum(rank.from_all(sum(size for _, size in counted.sent)))
    if rank.number == 2:
        seen |= {in_float8: passed(rank, counted, in_float8=in_float8) for in_float8 in (False, True)}
    return seen


def passed(rank: Rank, counted: Counted, *, in_float8: bool) -> dict[str, Any]:
    """Rows to experts and back through the dispatcher alone; the experts of rank r multiply by r + 1."""
    counted.sent.clear()
    distributor = dispatch.AllToAll(distributed.group.WORLD, in_float8=in_float8)  # type: ignore[arg-type]
    rows, gates, counts, grad = float8.rows_of(rank.index)
    rows.requires_grad_()
    arrived = distributor.out(rows, gates, counts)
    outputs = arrived.rows_MD * (rank.index + 1)
    outputs.retain_grad()
    back = distributor.back(outputs, arrived)
    back.backward(grad)
    assert outputs.grad is not None and rows.grad is not None
    return {
        "rows": rank.from_all((arrived.rows_MD.detach(), arrived.ends_L)),
        "back": rank.from_all(back.detach()),
        "gradient of outputs": rank.from_all(outputs.grad),
        "gradient of rows": rank.from_all(rows.grad),
        "bytes": list(counted.sent),
    }
