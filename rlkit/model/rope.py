"""Rotary position embedding on interleaved pairs, as DeepSeek-V3 lays them out (arXiv:2104.09864, section 3.4)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def rotations(positions_T: Tensor, dim: int, theta: float) -> Tensor:
    """Unit complex numbers e^(i p theta^(-2j/dim)) for j = 0..dim/2-1, in complex64: [T, dim / 2]."""
    exponents = torch.arange(0, dim, 2, dtype=torch.float32, device=positions_T.device) / dim
    angles = torch.outer(positions_T.float(), 1.0 / theta**exponents)
    return torch.polar(torch.ones_like(angles), angles)


def rotate_tail(x: Tensor, rotations_T: Tensor) -> Tensor:
    """Turn the last R numbers of each row by its token's angles, pair by pair (x[2j], x[2j+1]), in fp32.

    `x` is [T, ..., d] with d >= R; same shape and dtype out. The rest of the row is copied.
    """
    return _RotateTail.apply(x, rotations_T.view(len(rotations_T), *[1] * (x.dim() - 2), -1))


class _RotateTail(torch.autograd.Function):
    """A rotation's transpose is its inverse: the gradient turns back by the same angles."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, angles: Tensor) -> Tensor:
        ctx.save_for_backward(angles)
        return _turned(x, angles)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        (angles,) = ctx.saved_tensors
        return _turned(grads[0], angles.conj()), None


def _turned(x: Tensor, angles: Tensor) -> Tensor:
    out = x.clone(memory_format=torch.contiguous_format)
    tail = out[..., -2 * angles.shape[-1] :]
    tail32 = tail.to(torch.float32, copy=True, memory_format=torch.contiguous_format)
    pairs = torch.view_as_complex(tail32.unflatten(-1, (-1, 2)))
    tail.copy_(torch.view_as_real(pairs.mul_(angles)).flatten(-2))
    return out
