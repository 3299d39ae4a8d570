"""The products of routed experts in FP8 (arXiv:2412.19437, section 3.3): each expert multiplies a block of rows.

    y_m = x_m W_l^T,   dx_m = dy_m W_l,   dW_l = sum_m dy_m x_m^T     over the rows m of expert l

Tiles of x and dy along their columns do not care whose row it is. Those along the tokens, for dW, must not mix experts:
each expert's rows are filled up with zeros to a multiple of 128. M rows, L experts, N outputs, K inputs.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from rlkit.quant.linear import transposed
from rlkit.quant.matmul import matmul, quantise_tiles, quantise_weight


def float8_grouped(x_MK: Tensor, weight_LNK: Tensor, ends_L: Tensor, *, powers_of_two: bool = False) -> Tensor:
    """Computes x_m W_l^T by the recipe for every row m of the block of expert l: [M, N] in the dtype of x.

    `ends_L` says where each block ends. An expert without rows has a gradient of zeros. With `powers_of_two` the tiles
    of x and dy have such scales: rows that came in FP8 with such scales are multiplied with the numbers they came with.
    """
    out: Tensor = _Float8Grouped.apply(x_MK, weight_LNK, ends_L, powers_of_two)  # type: ignore[assignment]
    return out


class _Float8Grouped(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x_MK: Tensor, weight_LNK: Tensor, ends_L: Tensor, powers_of_two: bool) -> Tensor:
        held = [quantise_weight(weight_NK) for weight_NK in weight_LNK]
        ctx.save_for_backward(x_MK, ends_L, *(tensor for pair in held for tensor in pair))
        ctx.weight_dtype, ctx.powers_of_two = weight_LNK.dtype, powers_of_two
        codes_MK, scales = quantise_tiles(x_MK, powers_of_two=powers_of_two)
        y_MN = x_MK.new_empty(len(x_MK), weight_LNK.shape[1])
        for expert, rows in _blocks(ends_L):
            y_MN[rows] = matmul(codes_MK[rows], scales[rows], *held[expert], out_dtype=x_MK.dtype)
        return y_MN

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, Tensor | None, None, None]:
        (dy_MN,), (x_MK, ends_L, *held) = grads, ctx.saved_tensors
        dx_MK = dw_LNK = None
        if ctx.needs_input_grad[0]:
            codes_MN, scales = quantise_tiles(dy_MN, powers_of_two=ctx.powers_of_two)
            dx_MK = torch.empty_like(x_MK)
            for expert, rows in _blocks(ends_L):
                right = transposed(held[2 * expert]), held[2 * expert + 1].T
                dx_MK[rows] = matmul(codes_MN[rows], scales[rows], *right, out_dtype=x_MK.dtype)
        if ctx.needs_input_grad[1]:
            dw_LNK = x_MK.new_zeros(len(ends_L), dy_MN.shape[1], x_MK.shape[1], dtype=ctx.weight_dtype)
            for expert, rows in _blocks(ends_L):
                left, right = quantise_tiles(dy_MN[rows].T), quantise_tiles(x_MK[rows].T)
                dw_LNK[expert] = matmul(*left, *right, out_dtype=ctx.weight_dtype)
        return dx_MK, dw_LNK, None, None


def _blocks(ends_L: Tensor) -> Iterator[tuple[int, slice]]:
    """Yields each expert that has rows, and which they are."""
    start = 0
    for expert, end in enumerate(ends_L.tolist()):
        if end > start:
            yield expert, slice(start, end)
        start = end
