"""Rotary position embedding on interleaved pairs, as DeepSeek-V3 lays them out (arXiv:2104.09864, section 3.4)."""

from __future__ import annotations

import torch
from torch import Tensor


def rotations(positions_T: Tensor, dim: int, theta: float) -> Tensor:
    """Unit complex numbers e^(i p theta^(-2j/dim)) for j = 0..dim/2-1, in complex64: [T, dim / 2]."""
    exponents = torch.arange(0, dim, 2, dtype=torch.float32, device=positions_T.device) / dim
    angles = torch.outer(positions_T.float(), 1.0 / theta**exponents)
    return torch.polar(torch.ones_like(angles), angles)


def rotate(x: Tensor, rotations_T: Tensor) -> Tensor:
    """Turn each pair (x[2j], x[2j+1]) of `x` [T, ..., R] by its token's angle, in fp32; same shape and dtype out."""
    pairs = torch.view_as_complex(x.float().unflatten(-1, (-1, 2)).contiguous())
    middle = [1] * (x.dim() - 2)
    turned = pairs * rotations_T.view(rotations_T.shape[0], *middle, -1)
    return torch.view_as_real(turned).flatten(-2).to(x.dtype)
