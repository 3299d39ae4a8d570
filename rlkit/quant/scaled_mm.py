"""The backend `scaled_mm`: torch's blockwise FP8 product, which cuBLAS computes on Hopper (compute capability 9.0).

It wants its scales in layouts of its own: those of tiles by column, as [T, C] with stride (1, T); those of blocks by
row of blocks with C padded to a multiple of 4, handed over transposed. Rows are padded to a multiple of 16, or of 128
where blocks hold for them, and K to one of 128; padding is codes of zero, which add nothing.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from rlkit.quant.fp8 import BLOCK, E4M3


def problem() -> str | None:
    """Says why this backend cannot be used here; None where it can."""
    if not torch.cuda.is_available():
        return "torch finds no GPU"
    if torch.cuda.get_device_capability() != (9, 0):
        return "its blocks of 128 need a GPU of compute capability 9.0 (Hopper)"
    if not hasattr(F, "scaled_mm"):
        return f"torch {torch.__version__} has no torch.nn.functional.scaled_mm"
    version = tuple(int(part) for part in (torch.version.cuda or "0.0").split(".")[:2])
    return None if version >= (12, 9) else f"its blocks of 128 need CUDA 12.9, and torch has {torch.version.cuda}"


def product(
    a_TK: Tensor, a_scales: Tensor, b_NK: Tensor, b_scales: Tensor, a_group: int, b_group: int, out_dtype: torch.dtype
) -> Tensor:
    """Computes a b^T as `rlkit.quant.matmul` does; raises ValueError for blocks on both sides, which cuBLAS has not."""
    if a_group == b_group == BLOCK:
        raise ValueError("scaled_mm multiplies tiles with tiles or with blocks, not blocks with blocks")
    a, a_laid, a_recipe = _operand(a_TK, a_scales, a_group)
    b, b_laid, b_recipe = _operand(b_NK, b_scales, b_group)
    out = F.scaled_mm(a, b.t(), a_laid, a_recipe, b_laid, b_recipe, output_dtype=out_dtype)
    return out[: len(a_TK), : len(b_NK)]


def _operand(codes: Tensor, scales: Tensor, group: int) -> tuple[Tensor, Tensor, Any]:
    """Returns padded codes, scales in their layout, and the word that tells cuBLAS of it."""
    rows, inner = codes.shape
    more_rows, more_inner = -rows % (16 if group == 1 else BLOCK), -inner % BLOCK
    if more_rows or more_inner:
        codes = F.pad(codes.view(torch.uint8), (0, more_inner, 0, more_rows)).view(E4M3)
    if group == 1:
        # Padded rows hold nothing but zeros; their scales must only be finite.
        laid = F.pad(scales, (0, 0, 0, more_rows)).t().contiguous().t()
        return codes.contiguous(), laid, F.ScalingType.BlockWise1x128
    laid = F.pad(scales, (0, -scales.shape[1] % 4)).contiguous().t()
    return codes.contiguous(), laid, F.ScalingType.BlockWise128x128
