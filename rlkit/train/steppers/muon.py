"""Muon on matrices and AdamW on everything else, for parameters that are whole or cut into pieces among ranks.

ZeRO gives an optimiser flat tensors: its rank's piece of many parameters, with the piece of their averaged and clipped
gradients. Momentum is a sum number by number, so pieces suffice for it. Only orthogonalising needs whole matrices. What
the cut runs through is put together for a moment, and each rank keeps its piece of the result (Moonlight's "distributed
Muon", arXiv:2502.16982, algorithm 1). Hence the same step in every layout.

DeepSpeed's own Muon is not used. It orthogonalises the gradients before they are clipped, so that the norm of the
orthogonalised update is what it clips and reports; it takes gate and up matrices of experts for one, and refuses
experts in bf16 with ZeRO-1.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, distributed, nn

from rlkit.algo.muon import MOMENTUM, orthogonalised, step_scale
from rlkit.model.matrices import Shape
from rlkit.train.steppers.base import STEP

BUFFER = "momentum_buffer"
"""The momentum of a matrix, in the state of a parameter."""
SHARED_NUMBERS = 2**26
"""How many numbers of matrices that are cut are put together at a time, or one matrix."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Piece:
    """One rank's piece of numbers that lie one behind the other: of a parameter, or of many.

    Each rank has `size` of them, in order; ours are in the flat tensor from `place` on.
    """

    matrices: tuple[tuple[int, Shape], ...]
    """Where each matrix begins among all numbers, and its shape."""
    size: int
    place: int = 0
    rank: int = 0
    group: Any = None
    """The ranks that have the other pieces; None where there are none."""

    def cuts(self, first: int, shape: Shape) -> bool:
        """Says whether a matrix is on more than one rank."""
        return first // self.size != (first + shape[0] * shape[1] - 1) // self.size

    def ours(self, first: int, shape: Shape) -> tuple[slice, slice]:
        """Returns where this rank's part of a matrix is in the flat tensor, and where in the matrix; may be empty."""
        begin = self.rank * self.size
        low, high = max(first, begin), min(first + shape[0] * shape[1], begin + self.size)
        high = max(low, high)
        place = self.place - begin
        return slice(place + low, place + high), slice(low - first, high - first)


class MuonAdamW(torch.optim.AdamW):
    """Muon for groups that say "muon", AdamW for the others; `pieces` says what is where in a tensor of the former."""

    def __init__(self, groups: Sequence[dict[str, Any]], *, beta2: float, dtype: torch.dtype) -> None:
        """Newton-Schulz runs in `dtype`."""
        super().__init__(list(groups), lr=0.0, betas=(0.9, beta2))
        self.dtype = dtype
        self.pieces: dict[Tensor, list[Piece]] = {}
        self.device = self.param_groups[0]["params"][0].device
        self.matrices = {parameter for group in self.param_groups if group["muon"] for parameter in group["params"]}

    def moments(self, tensor: Tensor) -> tuple[str, ...]:
        """Returns the names of the moments of a tensor that the optimiser works on."""
        return (BUFFER,) if tensor in self.pieces else ("exp_avg", "exp_avg_sq")

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        """Takes one step with the gradients that the parameters have."""
        groups = self.param_groups
        for group in groups:
            for tensor in group["params"] if group["muon"] else ():
                if tensor.grad is not None:
                    self._orthogonal_step(tensor, group["lr"], group["weight_decay"])
        self.param_groups = [group for group in groups if not group["muon"]]
        try:
            super().step(closure)
        finally:
            self.param_groups = groups

    def _orthogonal_step(self, tensor: Tensor, lr: float, weight_decay: float) -> None:
        state = self.state[tensor]
        if not state:
            state |= {BUFFER: torch.zeros_like(tensor), STEP: torch.zeros(())}
        state[STEP] += 1
        grad, momentum = tensor.grad, state[BUFFER]
        assert grad is not None
        momentum.lerp_(grad, 1 - MOMENTUM)
        ahead = grad.lerp(momentum, MOMENTUM).flatten()
        tensor.mul_(1 - lr * weight_decay)
        numbers = tensor.view(-1)
        for piece in self.pieces[tensor]:
            for (_, shape), here, inside, matrix in _whole_matrices(ahead, piece, self.device):
                update = orthogonalised(matrix.view(shape), self.dtype).flatten()[inside]
                numbers[here].add_(update.to(numbers.device), alpha=-lr * step_scale(*shape))


def _whole_matrices(
    numbers: Tensor, piece: Piece, device: torch.device
) -> Iterator[tuple[tuple[int, Shape], slice, slice, Tensor]]:
    """Yields every matrix of which this rank has a part: place, its part here and inside, and the whole matrix, flat.

    All ranks of the group call it; what the cut runs through is put together by adding up the parts and zeros.
    """
    for first, shape in piece.matrices:
        here, inside = piece.ours(first, shape)
        if not piece.cuts(first, shape) and here.start < here.stop:
            yield (first, shape), here, inside, numbers[here].to(device)
    for batch in _batches([each for each in piece.matrices if piece.cuts(*each)]):
        sizes = [rows * columns for _, (rows, columns) in batch]
        wholes = torch.zeros(sum(sizes), device=device, dtype=numbers.dtype).split(sizes)
        together = wholes[0]._base
        assert together is not None
        for each, whole in zip(batch, wholes, strict=True):
            here, inside = piece.ours(*each)
            whole[inside] = numbers[here].to(device)
        distributed.all_reduce(together, group=piece.group)
        for each, whole in zip(batch, wholes, strict=True):
            here, inside = piece.ours(*each)
            if here.start < here.stop:
                yield each, here, inside, whole


def _batches(matrices: Sequence[tuple[int, Shape]]) -> Iterator[list[tuple[int, Shape]]]:
    """Cuts a list of matrices into runs of at most `SHARED_NUMBERS` numbers, or one matrix."""
    batch, held = list[tuple[int, Shape]](), 0
    for first, shape in matrices:
        size = shape[0] * shape[1]
        if batch and held + size > SHARED_NUMBERS:
            yield batch
            batch, held = [], 0
        batch.append((first, shape))
        held += size
    if batch:
        yield batch


def one_behind_the_other(
    parameters: Sequence[nn.Parameter], shapes: Mapping[nn.Parameter, Shape]
) -> tuple[tuple[int, Shape], ...]:
    """Lists where each matrix begins in parameters that lie one behind the other, and its shape."""
    found, first = list[tuple[int, Shape]](), 0
    for parameter in parameters:
        rows, columns = shapes[parameter]
        size = getattr(parameter, "ds_numel", parameter.numel())  # ZeRO-3 has taken the parameter itself to pieces
        found += [(first + begin, (rows, columns)) for begin in range(0, size, rows * columns)]
        first += size
    return tuple(found)
