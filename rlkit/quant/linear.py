"""A linear layer that computes in FP8 and learns in high precision (arXiv:2412.19437, section 3.3.1).

    y = x W^T       tiles of x along K,   blocks of W
    dx = dy W       tiles of dy along N,  the same blocks of W, transposed
    dW = dy^T x     tiles of both along the tokens

All three products run on E4M3 codes and add up in fp32; the weight itself stays an ordinary parameter, which an
optimiser, ZeRO or a checkpoint sees as any other. T tokens, N outputs, K inputs.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from rlkit.quant.matmul import matmul, quantise_tiles, quantise_weight


class Float8Linear(nn.Module):
    """Computes y = x W^T without a bias, forward and backward on FP8 codes.

    Example: `Float8Linear(7168, 2048)(x_TK)`
    """

    def __init__(self, in_features: int, out_features: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(out_features, in_features))
        nn.init.kaiming_uniform_(self.weight, a=5**0.5)  # as nn.Linear

    def forward(self, x: Tensor) -> Tensor:
        """Computes [..., K] -> [..., N] in the dtype of `x`."""
        return float8_linear(x.flatten(0, -2), self.weight).unflatten(0, x.shape[:-1])


def float8_linear(x_TK: Tensor, weight_NK: Tensor, backend: str | None = None) -> Tensor:
    """Computes x W^T by the recipe: [T, N] in the dtype of x; gradients have the dtypes of x and W.

    Without a `backend` of `rlkit.quant.matmul` all three products run on the fastest of the device.
    """
    out: Tensor = _Float8Linear.apply(x_TK, weight_NK, backend)  # type: ignore[assignment]  # torch declares no types here
    return out


class _Float8Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x_TK: Tensor, weight_NK: Tensor, backend: str | None) -> Tensor:
        codes_NK, scales = quantise_weight(weight_NK)
        # What backward needs of x lies along other tiles than these, so x is kept as it came.
        ctx.save_for_backward(x_TK, codes_NK, scales)
        ctx.weight_dtype, ctx.backend = weight_NK.dtype, backend
        return matmul(*quantise_tiles(x_TK), codes_NK, scales, backend, x_TK.dtype)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        (dy_TN,), (x_TK, codes_NK, scales) = grads, ctx.saved_tensors
        dx_TK = dw_NK = None
        if ctx.needs_input_grad[0]:
            # A block of 128 x 128 is a block of the transposed matrix too: the codes and scales of forward serve again.
            dx_TK = matmul(*quantise_tiles(dy_TN), transposed(codes_NK), scales.T, ctx.backend, x_TK.dtype)
        if ctx.needs_input_grad[1]:
            dw_NK = matmul(*quantise_tiles(dy_TN.T), *quantise_tiles(x_TK.T), ctx.backend, ctx.weight_dtype)
        return dx_TK, dw_NK, None


def transposed(codes: Tensor) -> Tensor:
    """Returns the transposed codes in memory of their own; torch cannot transpose FP8 numbers, but bytes."""
    return codes.view(torch.uint8).T.contiguous().view(codes.dtype)
