"""The backend `triton`: quantising and multiplying in one kernel each, compiled for NVIDIA GPUs.

With TRITON_INTERPRET=1, set before this file is imported, the same kernels run on the CPU, which is how they are tested
without a GPU. T rows of the left matrix, N rows of the right one, K columns of both, C tiles of 128 along K.

Conversions to E4M3 and bf16 are written out in integers. So they are the same bits everywhere: the interpreter's own
cast to E4M3 rounds without carrying, and its cast to bf16 cuts off.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from rlkit.quant.fp8 import BLOCK, E4M3, SMALLEST_SCALE, block_grid

TILE_ROWS = 32
"""Rows that one program quantises: enough that a transposed matrix is read in whole sectors of memory."""


def tiles(x_TK: Tensor, powers_of_two: bool) -> tuple[Tensor, Tensor]:
    """Computes codes [T, K] and scales [T, C] of tiles of 1 x 128; `x_TK` may be transposed or cut."""
    rows, columns = x_TK.shape
    num_tiles = block_grid(x_TK.shape)[1]
    codes_TK = torch.empty(rows, columns, dtype=torch.uint8, device=x_TK.device)
    scales_TC = torch.empty(rows, num_tiles, device=x_TK.device)
    with torch.cuda.device_of(x_TK):
        _launched(_tiles, triton.cdiv(rows, TILE_ROWS), num_tiles)(
            x_TK, codes_TK, scales_TC, rows, columns, *x_TK.stride(), num_tiles, SMALLEST_SCALE,
            POWERS_OF_TWO=powers_of_two, ROWS=TILE_ROWS, BLOCK=BLOCK,
        )  # fmt: skip
    return codes_TK.view(E4M3), scales_TC


def blocks(weight_NK: Tensor, powers_of_two: bool) -> tuple[Tensor, Tensor]:
    """Computes codes [N, K] and scales [ceil(N / 128), C] of blocks of 128 x 128."""
    rows, columns = weight_NK.shape
    grid = block_grid(weight_NK.shape)
    codes_NK = torch.empty(rows, columns, dtype=torch.uint8, device=weight_NK.device)
    scales = torch.empty(grid, device=weight_NK.device)
    with torch.cuda.device_of(weight_NK):
        _launched(_blocks, *grid)(
            weight_NK, codes_NK, scales, rows, columns, *weight_NK.stride(), grid[1], SMALLEST_SCALE,
            POWERS_OF_TWO=powers_of_two, BLOCK=BLOCK, num_warps=8,
        )  # fmt: skip
    return codes_NK.view(E4M3), scales


def product(
    a_TK: Tensor, a_scales: Tensor, b_NK: Tensor, b_scales: Tensor, a_group: int, b_group: int, out_dtype: torch.dtype
) -> Tensor:
    """Computes a b^T as `rlkit.quant.matmul` does; a scale holds for `a_group` rows of a and `b_group` rows of b."""
    rows, columns, inner = len(a_TK), len(b_NK), a_TK.shape[1]
    out_TN = torch.empty(rows, columns, dtype=out_dtype, device=a_TK.device)
    as_bf16 = out_dtype == torch.bfloat16
    with torch.cuda.device_of(a_TK):
        _launched(_product, triton.cdiv(rows, BLOCK), triton.cdiv(columns, BLOCK))(
            a_TK.contiguous(), a_scales.contiguous(), b_NK.contiguous(), b_scales.contiguous(),
            out_TN.view(torch.int16) if as_bf16 else out_TN, rows, columns, inner, a_scales.shape[1],
            A_GROUP=a_group, B_GROUP=b_group, AS_BF16=as_bf16, WHOLE=inner % BLOCK == 0, BLOCK=BLOCK,
            num_warps=8, num_stages=3,
        )  # fmt: skip
    return out_TN


def _launched(kernel: Any, *grid: int) -> Any:
    """Returns the kernel as a function that runs it for every place of the grid, which may have none."""
    return kernel[grid] if all(grid) else lambda *_args, **_options: None


@triton.jit
def _scale(largest, smallest_scale, POWERS_OF_TWO: tl.constexpr):  # type: ignore[no-untyped-def]
    """max |x| / 448, divided as IEEE says: the compiler's own division may be off by a bit."""
    scale = tl.maximum(tl.div_rn(largest, 448.0), smallest_scale)
    if POWERS_OF_TWO:
        # Adding all ones below the exponent carries into it unless the number is a power of two already.
        scale = ((scale.to(tl.int32, bitcast=True) + 0x7FFFFF) & 0x7F800000).to(tl.float32, bitcast=True)
    return scale


@triton.jit
def _codes(x, scale):  # type: ignore[no-untyped-def]
    """E4M3 of x / scale, to nearest, ties to even, as uint8."""
    scaled = tl.minimum(tl.maximum(tl.div_rn(x, scale), -448.0), 448.0)
    bits = scaled.to(tl.int32, bitcast=True)
    size_bits = bits & 0x7FFFFFFF
    size = size_bits.to(tl.float32, bitcast=True)
    # Keep 3 of the 23 bits behind the point: add half of the last one kept, less 1 where that one is even, and cut. A
    # carry runs into the exponent, as it should. Its bias goes from 127 to 7: 120 << 3.
    normal = ((size_bits + 0x7FFFF + ((size_bits >> 20) & 1)) >> 20) - 960
    # Below 2^-6 codes are multiples of 2^-9. In fp32, 2^23 + n is the next number after 2^23 + n - 1, so that the sum
    # rounds to whole numbers by itself.
    small = (size * 512.0 + 8388608.0).to(tl.int32, bitcast=True) - 0x4B000000
    code = tl.where(size < 0.015625, small, normal) | ((bits >> 24) & 0x80)
    return code.to(tl.uint8)


@triton.jit
def _tiles(  # type: ignore[no-untyped-def]
    x_ptr, codes_ptr, scales_ptr, rows, columns, row_stride, column_stride, num_tiles, smallest_scale,
    POWERS_OF_TWO: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    t = (tl.program_id(0) * ROWS + tl.arange(0, ROWS)).to(tl.int64)
    c = tl.program_id(1)
    k = c * BLOCK + tl.arange(0, BLOCK)
    inside = (t[:, None] < rows) & (k[None, :] < columns)
    x = tl.load(x_ptr + t[:, None] * row_stride + k[None, :] * column_stride, mask=inside, other=0.0).to(tl.float32)
    scale = _scale(tl.max(tl.abs(x), axis=1), smallest_scale, POWERS_OF_TWO)
    tl.store(codes_ptr + t[:, None] * columns + k[None, :], _codes(x, scale[:, None]), mask=inside)
    tl.store(scales_ptr + t * num_tiles + c, scale, mask=t < rows)


@triton.jit
def _blocks(  # type: ignore[no-untyped-def]
    x_ptr, codes_ptr, scales_ptr, rows, columns, row_stride, column_stride, num_tiles, smallest_scale,
    POWERS_OF_TWO: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    n = (tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)).to(tl.int64)
    c = tl.program_id(1)
    k = c * BLOCK + tl.arange(0, BLOCK)
    inside = (n[:, None] < rows) & (k[None, :] < columns)
    x = tl.load(x_ptr + n[:, None] * row_stride + k[None, :] * column_stride, mask=inside, other=0.0).to(tl.float32)
    scale = _scale(tl.max(tl.max(tl.abs(x), axis=1), axis=0), smallest_scale, POWERS_OF_TWO)
    tl.store(codes_ptr + n[:, None] * columns + k[None, :], _codes(x, scale), mask=inside)
    tl.store(scales_ptr + tl.program_id(0) * num_tiles + c, scale)


@triton.jit
def _product(  # type: ignore[no-untyped-def]
    a_ptr, a_scales_ptr, b_ptr, b_scales_ptr, out_ptr, rows, columns, inner, num_tiles,
    A_GROUP: tl.constexpr, B_GROUP: tl.constexpr, AS_BF16: tl.constexpr, WHOLE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    t = (tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)).to(tl.int64)
    n = (tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)).to(tl.int64)
    k = tl.arange(0, BLOCK)
    total = tl.zeros((BLOCK, BLOCK), dtype=tl.float32)
    for c in range(0, num_tiles):
        here = c * BLOCK + k
        a_mask, b_mask = (t < rows)[:, None], (n < columns)[None, :]
        if not WHOLE:
            a_mask, b_mask = a_mask & (here < inner)[None, :], b_mask & (here < inner)[:, None]
        a = tl.load(a_ptr + t[:, None] * inner + here[None, :], mask=a_mask, other=0.0)
        b = tl.load(b_ptr + n[None, :] * inner + here[:, None], mask=b_mask, other=0.0)
        a_scale = tl.load(a_scales_ptr + (t // A_GROUP) * num_tiles + c, mask=t < rows, other=0.0)
        b_scale = tl.load(b_scales_ptr + (n // B_GROUP) * num_tiles + c, mask=n < columns, other=0.0)
        # Tensor cores of Hopper add up FP8 products in fewer bits than fp32 has. 128 of them at most meet there before
        # the scaled sum goes into real fp32 (section 3.3.2).
        total += tl.dot(a, b) * a_scale[:, None] * b_scale[None, :]
    place = out_ptr + t[:, None] * columns + n[None, :]
    inside = (t < rows)[:, None] & (n < columns)[None, :]
    if AS_BF16:
        bits = total.to(tl.int32, bitcast=True)
        tl.store(place, ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).to(tl.int16), mask=inside)
    else:
        tl.store(place, total, mask=inside)
