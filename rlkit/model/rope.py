"""Rotary position embedding on interleaved pairs, as DeepSeek-V3 lays them out (arXiv:2104.09864, section 3.4).

YaRN (arXiv:2309.00071) stretches it to longer contexts: pairs that turn often keep their frequency, slow ones are
interpolated, and attention is sharpened. V3 applies it to the decoupled keys and queries only (arXiv:2412.19437,
section 4.3). The order of operations is that of the published code: at position 100,000 one rounding of a frequency
is 0.01 radians.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from rlkit.model.config import Yarn


def frequencies(dim: int, theta: float, yarn: Yarn | None = None) -> Tensor:
    """Returns the radians per position of each pair, f_j = theta^(-2j/dim), in fp32: [dim / 2].

    With YaRN they are f_j (1 - r_j) + f_j / factor * r_j, where r_j rises from 0 at the pair that makes `beta_fast`
    turns in the original context to 1 at the pair that makes `beta_slow` (arXiv:2309.00071, section 3.2, over j instead
    of turns).
    """
    periods = theta ** (torch.arange(0, dim, 2, dtype=torch.float32) / dim)
    if yarn is None:
        return 1.0 / periods
    first, last = (_pair_of(turns, dim, theta, yarn) for turns in (yarn.beta_fast, yarn.beta_slow))
    low, high = max(math.floor(first), 0), min(math.ceil(last), dim - 1)
    kept = 1 - ((torch.arange(dim // 2) - low) / (high - low or 0.001)).clamp(0, 1)
    return 1.0 / (yarn.factor * periods) * (1 - kept) + 1.0 / periods * kept


def _pair_of(turns: float, dim: int, theta: float, yarn: Yarn) -> float:
    """Returns the (fractional) pair that makes so many turns within the original context."""
    return dim * math.log(yarn.original_max_position_embeddings / (turns * 2 * math.pi)) / (2 * math.log(theta))


def rotations(positions_T: Tensor, dim: int, theta: float, yarn: Yarn | None = None) -> Tensor:
    """Returns the complex numbers a e^(i p f_j) for j = 0..dim/2-1, in complex64: [T, dim / 2].

    a = 1 without YaRN, else m(mscale) / m(mscale_all_dim) with m of `magnitude`.
    """
    angles = torch.outer(positions_T.float(), frequencies(dim, theta, yarn).to(positions_T.device))
    length = 1.0 if yarn is None else magnitude(yarn.factor, yarn.mscale) / magnitude(yarn.factor, yarn.mscale_all_dim)
    return torch.polar(torch.full_like(angles, length), angles)


def magnitude(factor: float, mscale: float) -> float:
    """Returns YaRN's growth of queries and keys, m = 0.1 mscale ln(factor) + 1 (arXiv:2309.00071, section 3.4)."""
    return 0.1 * mscale * math.log(factor) + 1.0


def softmax_scale(key_width: int, yarn: Yarn | None) -> float:
    """Returns what q k^T is multiplied with: 1 / sqrt(key width), times m(mscale_all_dim)^2 with YaRN."""
    return key_width**-0.5 * (1.0 if yarn is None else magnitude(yarn.factor, yarn.mscale_all_dim) ** 2)


def rotate_tail(x: Tensor, rotations_T: Tensor) -> Tensor:
    """Turns the last R numbers of each row by its token's angles, pair by pair (x[2j], x[2j+1]), in fp32.

    `x` is [T, ..., d] with d >= R; same shape and dtype out. The rest of the row is copied.
    """
    return _RotateTail.apply(x, rotations_T.view(len(rotations_T), *[1] * (x.dim() - 2), -1))


class _RotateTail(torch.autograd.Function):
    """Turns pairs; the transpose of a complex product is the product with the conjugate, so the gradient turns back."""

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
