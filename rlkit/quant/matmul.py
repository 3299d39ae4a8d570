"""Products of FP8 matrices with scales along the inner dimension (arXiv:2412.19437, section 3.3.2).

An activation has a scale for each tile of 1 x 128, so that one outlier spoils 127 neighbours and not a whole tensor; a
weight has one for each block of 128 x 128. T rows of the left matrix, N rows of the right one, K columns of both; tiles
at the end are partial.

Three backends compute the same: `emulate`, plain torch on any device, is the specification that the others are tested
against, and slower than bf16; `triton` has kernels of its own (`rlkit.quant.triton_kernels`); `scaled_mm` is torch's
product on Hopper (`rlkit.quant.scaled_mm`). Where none is named, the fastest that runs on the tensors' device is taken.
"""

from __future__ import annotations

import os
from functools import cache
from importlib.util import find_spec

import torch
from torch import Tensor

from rlkit.quant import scaled_mm
from rlkit.quant.fp8 import (
    BLOCK,
    E4M3,
    E4M3_MAX,
    SMALLEST_SCALE,
    block_grid,
    block_scales,
    power_of_two,
    quantise_blocks,
    to_codes,
)

BACKENDS = ("scaled_mm", "triton", "emulate")
"""All there are, the fastest first."""


def quantise_tiles(x_TK: Tensor, *, powers_of_two: bool = False, backend: str | None = None) -> tuple[Tensor, Tensor]:
    """Computes codes = round(x / s) in E4M3, ties to even, and s = max |x| / 448 of each tile: [T, ceil(K / 128)].

    A tile of zeros has the smallest scale and codes of 0; `powers_of_two` rounds every scale up to one. The numbers
    must be finite. Raises ValueError for a backend that cannot be used here.
    """
    if _chosen(backend, x_TK, quantising=True) == "triton":
        from rlkit.quant import triton_kernels

        return triton_kernels.tiles(x_TK, powers_of_two)
    padded_TCB = torch.nn.functional.pad(x_TK.float(), (0, -x_TK.shape[1] % BLOCK)).unflatten(1, (-1, BLOCK))
    scales_TC = (padded_TCB.abs().amax(2) / E4M3_MAX).clamp_(min=SMALLEST_SCALE)
    scales_TC = power_of_two(scales_TC) if powers_of_two else scales_TC
    codes_TCB = to_codes(padded_TCB / scales_TC.unsqueeze(2))
    # torch cannot cut every view of FP8 numbers, but it can cut bytes.
    codes_TK = codes_TCB.view(torch.uint8).flatten(1)[:, : x_TK.shape[1]].contiguous().view(E4M3)
    return codes_TK, scales_TC


def dequantise_tiles(codes_TK: Tensor, scales_TC: Tensor, dtype: torch.dtype) -> Tensor:
    """Computes x = code * s, rounded to `dtype`: [T, K]; bf16 holds it exactly where s is a power of two."""
    return (codes_TK.float() * scales_TC.repeat_interleave(BLOCK, 1)[:, : codes_TK.shape[1]]).to(dtype)


def quantise_weight(
    weight_NK: Tensor, *, powers_of_two: bool = False, backend: str | None = None
) -> tuple[Tensor, Tensor]:
    """Computes what `quantise_blocks` does, byte for byte, on the fastest backend or the one that is named."""
    if _chosen(backend, weight_NK, quantising=True) == "triton":
        from rlkit.quant import triton_kernels

        return triton_kernels.blocks(weight_NK, powers_of_two)
    return quantise_blocks(weight_NK, block_scales(weight_NK, powers_of_two=powers_of_two))


def matmul(
    a_TK: Tensor,
    a_scales: Tensor,
    b_NK: Tensor,
    b_scales: Tensor,
    backend: str | None = None,
    out_dtype: torch.dtype = torch.float32,
) -> Tensor:
    """Computes a b^T from codes and scales, added up in fp32 and rounded once to `out_dtype`, fp32 or bf16: [T, N].

    y_tn = sum_c s_tc s'_nc sum_{k in tile c} a_tk b_nk

    Scales are [rows, ceil(K / 128)] for tiles or [ceil(rows / 128), ceil(K / 128)] for blocks, on either side.

    Raises:
        ValueError: for a backend that cannot be used here, and for scales that fit neither tiles nor blocks.
    """
    chosen = _chosen(backend, a_TK)
    a_group, b_group = _rows_per_scale("a_scales", a_scales, a_TK), _rows_per_scale("b_scales", b_scales, b_NK)
    if chosen == "scaled_mm":
        return scaled_mm.product(a_TK, a_scales, b_NK, b_scales, a_group, b_group, out_dtype)
    if chosen == "triton":
        from rlkit.quant import triton_kernels

        return triton_kernels.product(a_TK, a_scales, b_NK, b_scales, a_group, b_group, out_dtype)
    a_scales_TC = a_scales.repeat_interleave(a_group, 0)[: len(a_TK)]
    b_scales_NC = b_scales.repeat_interleave(b_group, 0)[: len(b_NK)]
    out_TN = torch.zeros(len(a_TK), len(b_NK), device=a_TK.device)
    # A tile's products are summed in full before its scales are applied, once for 128 of them: that is what tensor
    # cores can do, and why the scales have to be constant along the inner dimension of a tile.
    for c, (a, b) in enumerate(zip(a_TK.float().split(BLOCK, 1), b_NK.float().split(BLOCK, 1), strict=True)):
        out_TN += (a @ b.T) * a_scales_TC[:, c : c + 1] * b_scales_NC[:, c]
    return out_TN.to(out_dtype)


def backends() -> tuple[str, ...]:
    """Names the backends of `matmul` that can be used on this machine, the fastest first."""
    return tuple(name for name in BACKENDS if unusable(name) is None)


def unusable(backend: str) -> str | None:
    """Says why a backend cannot be used on this machine; None where it can."""
    if backend == "emulate":
        return None
    if backend == "scaled_mm":
        return scaled_mm.problem()
    if backend != "triton":
        return f"there are {', '.join(BACKENDS)}"
    if find_spec("triton") is None:
        return "the package triton is not installed"
    if not torch.cuda.is_available() and not _interpreted():
        return "torch finds no GPU; with TRITON_INTERPRET=1 set before Python starts, its kernels run on the CPU"
    return None


@cache
def _interpreted() -> bool:
    """Whether Triton's kernels run on the CPU in this process; it decides that once, when they are read."""
    return os.environ.get("TRITON_INTERPRET") == "1"


def _chosen(backend: str | None, tensor: Tensor, *, quantising: bool = False) -> str:
    """Returns the backend that was named, or the fastest on the tensor's device; the CPU has the emulation alone.

    `scaled_mm` does not quantise: there Triton does.
    """
    if backend is not None:
        if (why := unusable(backend)) is not None:
            raise ValueError(f"backend={backend!r} cannot be used here ({why}); use one of {', '.join(backends())}")
        return backend
    usable = _backends_of(tensor.device.type)
    return next(name for name in usable if not (quantising and name == "scaled_mm"))


@cache
def _backends_of(device_type: str) -> tuple[str, ...]:
    return backends() if device_type == "cuda" else ("emulate",)


def _rows_per_scale(name: str, scales: Tensor, codes: Tensor) -> int:
    """Returns 1 for the scales of tiles, 128 for those of blocks."""
    rows, (blocks, tiles) = len(codes), block_grid(codes.shape)
    if scales.shape == (rows, tiles):
        return 1
    if scales.shape == (blocks, tiles):
        return BLOCK
    raise ValueError(
        f"{name} has the shape {tuple(scales.shape)}; a matrix of {rows} x {codes.shape[1]} has ({rows}, {tiles}) "
        f"scales for tiles or ({blocks}, {tiles}) for blocks"
    )
