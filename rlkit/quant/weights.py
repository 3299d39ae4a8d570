"""Weights that are held in FP8 and multiplied in bf16: 128 x 128 blocks with power-of-two scales.

    y = x W^T with W = code * scale,   dx = dy W,   dW = dy^T x

Activations keep their precision. A product of a code of 4 significant bits and a power of two is a bf16 number, so that
whoever multiplies with these weights, in whatever order and with whatever kernel, means exactly the same numbers; with
fp32 scales it depends on where the kernel rounds. The gradient passes the rounding as if it were not there.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from rlkit.quant.fp8 import block_scales, dequantise_blocks, quantise_blocks


def as_stored(weight_NK: Tensor) -> Tensor:
    """Returns the numbers that codes and power-of-two scales of a bf16 matrix stand for, in its dtype: [N, K]."""
    codes_NK, scales = quantise_blocks(weight_NK, block_scales(weight_NK, powers_of_two=True))
    return dequantise_blocks(codes_NK, scales, weight_NK.dtype)


def straight_through(weight: Tensor) -> Tensor:
    """Rounds a matrix [N, K], or each of a stack [L, N, K], to what FP8 holds; its gradient is that of the result.

    The result lives as long as the graph does: a second copy of the weights, which recomputing each block in backward
    bounds to one block.
    """
    out: Tensor = _StraightThrough.apply(weight)  # type: ignore[assignment]  # torch declares no types here
    return out


class _StraightThrough(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, weight: Tensor) -> Tensor:
        return as_stored(weight) if weight.ndim == 2 else torch.stack([as_stored(matrix) for matrix in weight])

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        return grads[0]
