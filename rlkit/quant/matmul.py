"""Products of FP8 matrices with scales along the inner dimension (arXiv:2412.19437, section 3.3.2).

An activation has a scale for each tile of 1 x 128, so that one outlier spoils 127 neighbours and not a whole tensor; a
weight has one for each block of 128 x 128. T rows of the left matrix, N rows of the right one, K columns of both; tiles
at the end are partial.

What is not covered: kernels. `emulate` is the specification that any kernel is tested against; it runs on every device
and is slower than bf16.
"""

from __future__ import annotations

import torch
from torch import Tensor

from rlkit.quant.fp8 import BLOCK, E4M3, E4M3_MAX, SMALLEST_SCALE, block_grid, to_codes


def quantise_tiles(x_TK: Tensor) -> tuple[Tensor, Tensor]:
    """Computes codes = round(x / s) in E4M3, ties to even, and s = max |x| / 448 of each tile: [T, ceil(K / 128)].

    A tile of zeros has the smallest scale and codes of 0. The numbers must be finite.
    """
    padded_TCB = torch.nn.functional.pad(x_TK.float(), (0, -x_TK.shape[1] % BLOCK)).unflatten(1, (-1, BLOCK))
    scales_TC = (padded_TCB.abs().amax(2) / E4M3_MAX).clamp_(min=SMALLEST_SCALE)
    codes_TCB = to_codes(padded_TCB / scales_TC.unsqueeze(2))
    # torch cannot cut every view of FP8 numbers, but it can cut bytes.
    codes_TK = codes_TCB.view(torch.uint8).flatten(1)[:, : x_TK.shape[1]].contiguous().view(E4M3)
    return codes_TK, scales_TC


def matmul(a_TK: Tensor, a_scales: Tensor, b_NK: Tensor, b_scales: Tensor, backend: str = "emulate") -> Tensor:
    """Computes a b^T in fp32 from codes and scales: [T, N].

    y_tn = sum_c s_tc s'_nc sum_{k in tile c} a_tk b_nk

    Scales are [rows, ceil(K / 128)] for tiles or [ceil(rows / 128), ceil(K / 128)] for blocks, on either side.

    Raises:
        ValueError: for an unknown backend, and for scales that fit neither tiles nor blocks.
    """
    if backend not in backends():
        raise ValueError(f"backend={backend!r} cannot be used here; use one of {', '.join(backends())}")
    a_scales_TC, b_scales_NC = _by_row("a_scales", a_scales, a_TK), _by_row("b_scales", b_scales, b_NK)
    out_TN = torch.zeros(len(a_TK), len(b_NK), device=a_TK.device)
    # A tile's products are summed in full before its scales are applied, once for 128 of them: that is what tensor
    # cores can do, and why the scales have to be constant along the inner dimension of a tile.
    for c, (a, b) in enumerate(zip(a_TK.float().split(BLOCK, 1), b_NK.float().split(BLOCK, 1), strict=True)):
        out_TN += (a @ b.T) * a_scales_TC[:, c : c + 1] * b_scales_NC[:, c]
    return out_TN


def backends() -> tuple[str, ...]:
    """Names the backends of `matmul` that can be used on this machine."""
    return ("emulate",)


def _by_row(name: str, scales: Tensor, codes: Tensor) -> Tensor:
    """Gives every row of a matrix its own scales: those of tiles as they are, those of blocks repeated."""
    rows, (blocks, tiles) = len(codes), block_grid(codes.shape)
    if scales.shape == (rows, tiles):
        return scales
    if scales.shape == (blocks, tiles):
        return scales.repeat_interleave(BLOCK, 0)[:rows]
    raise ValueError(
        f"{name} has the shape {tuple(scales.shape)}; a matrix of {rows} x {codes.shape[1]} has ({rows}, {tiles}) "
        f"scales for tiles or ({blocks}, {tiles}) for blocks"
    )
