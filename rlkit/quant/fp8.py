"""Block FP8: E4M3 codes and one fp32 scale per block of 128 x 128 weights (arXiv:2412.19437, section 3.3.2).

weight = code * scale, as in the published files, which call the scale `weight_scale_inv`. This is plain tensor
arithmetic, the reference for any kernel. N rows, K columns; blocks at the edges are partial (576 rows make 5 blocks).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

FLOAT8 = ("fp8", "fp8_weights")
"""What `trainer.dtype` and the dtype of a checkpoint call block FP8: with scales max / 448, as published, and with
those rounded up to powers of two. A checkpoint holds the bytes that a trainer of the same word computes with."""
BLOCK = 128
E4M3 = torch.float8_e4m3fn
E4M3_MAX = 448.0
SMALLEST_SCALE = 2.0**-117
"""Times the smallest code, 2^-9, it is the smallest normal number of bf16; below that, bf16 drops bits of a weight."""


def block_grid(shape: Sequence[int]) -> tuple[int, int]:
    """Blocks down and across a matrix of shape (N, K)."""
    rows, columns = shape
    return -(-rows // BLOCK), -(-columns // BLOCK)


def block_scales(weight_NK: Tensor, *, powers_of_two: bool = False) -> Tensor:
    """s = max |w| / 448 of each block in fp32, at least SMALLEST_SCALE: [ceil(N / 128), ceil(K / 128)].

    With `powers_of_two` each is rounded up to one, which costs little (3.8e-2 instead of 3.7e-2 in a product) and makes
    code * scale exact in bf16.
    """
    scales = (_block_max(weight_NK) / E4M3_MAX).clamp_(min=SMALLEST_SCALE)
    return power_of_two(scales) if powers_of_two else scales


def power_of_two(scales: Tensor) -> Tensor:
    """Rounds scales up to powers of two, so that code * scale has few bits: it is exact in bf16, whatever the order."""
    mantissa, exponent = torch.frexp(scales)  # mantissa in [1/2, 1)
    return torch.ldexp(torch.ones_like(scales), exponent - (mantissa == 0.5).int())


def quantise_blocks(weight_NK: Tensor, scales: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Codes = round(w / s) to the nearest E4M3 number, ties to even, and the scales s (those given, or `block_scales`).

    What does not fit under a given scale becomes +-448. The weights must be finite.
    """
    scales = block_scales(weight_NK) if scales is None else scales
    codes_NK = torch.empty(weight_NK.shape, dtype=E4M3, device=weight_NK.device)
    for codes, weight, scale_K in _bands(codes_NK, weight_NK, scales):
        codes.copy_(to_codes(weight.float() / scale_K))
    return codes_NK, scales


def to_codes(scaled: Tensor) -> Tensor:
    """Rounds fp32 numbers to the nearest E4M3 number, ties to even; what is beyond +-448 becomes that. Changes them."""
    # Not every version of torch saturates in the cast; some give NaN.
    return scaled.clamp_(-E4M3_MAX, E4M3_MAX).to(E4M3)


def dequantise_blocks(codes_NK: Tensor, scales: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """w = code * s, multiplied in fp32 and then rounded to `dtype`: [N, K]."""
    weight_NK = torch.empty(codes_NK.shape, dtype=dtype, device=codes_NK.device)
    for weight, codes, scale_K in _bands(weight_NK, codes_NK, scales):
        weight.copy_(codes.float().mul_(scale_K))
    return weight_NK


def requantise_blocks(weight_NK: Tensor, known_scales: Tensor) -> tuple[Tensor, Tensor]:
    """Codes and scales of a bf16 matrix that may have come from FP8 with `known_scales`.

    A block that these scales give back exactly keeps its scale, and with it every bit it had in FP8; any other block,
    one that was trained meanwhile, gets a new scale. Bits survive for every scale from SMALLEST_SCALE to 7.5e35, where
    448 scale overflows bf16: rounding to bf16 moves a number by 2^-9 of itself at most, and no midpoint between two
    codes is nearer than 2^-5.
    """
    # Why not compute max / 448 again and compare? Rounding to bf16 may have moved the largest weight of a block, and a
    # scale that is off by one bit moves every code. Trying the old scale asks what matters: do the bits come back?
    back_NK = dequantise_blocks(*quantise_blocks(weight_NK, known_scales), weight_NK.dtype)
    changed = _block_max((back_NK != weight_NK).to(weight_NK.dtype)) > 0
    return quantise_blocks(weight_NK, torch.where(changed, block_scales(weight_NK), known_scales))


def _bands(out_NK: Tensor, in_NK: Tensor, scales: Tensor) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Each row of blocks, and the scale of each of its columns: small enough that a CPU keeps them in its cache."""
    scales_K = scales.repeat_interleave(BLOCK, 1)[:, : in_NK.shape[1]]
    return zip(out_NK.split(BLOCK), in_NK.split(BLOCK), scales_K, strict=True)


def _block_max(x_NK: Tensor) -> Tensor:
    """max |x| of each block, in fp32."""
    down, across = block_grid(x_NK.shape)
    # Band by band, because the absolute values of the whole matrix at once would need its memory a second time. The
    # columns of a partial last block are filled up with 0, which is never above a maximum.
    out = torch.empty(down, across * BLOCK, device=x_NK.device)
    out[:, x_NK.shape[1] :] = 0
    for row, band in zip(out, x_NK.split(BLOCK), strict=True):
        row[: x_NK.shape[1]] = band.abs().amax(0)
    return out.unflatten(1, (across, BLOCK)).amax(2)
