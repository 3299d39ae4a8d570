"""Root-mean-square normalisation (arXiv:1910.07467)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


class _Normalise(torch.autograd.Function):
    """n = x / sqrt(mean(x^2) + eps) in fp32; one pass fewer than autograd's version in each direction."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, eps: float) -> Tensor:
        x32 = x.float()
        scale = torch.linalg.vector_norm(x32, dim=-1, keepdim=True).square_().div_(x.shape[-1]).add_(eps).rsqrt_()
        n = x32 * scale
        ctx.save_for_backward(n, scale)
        return n.to(x.dtype)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        n, scale = ctx.saved_tensors
        grad = grads[0].float()
        along = (grad * n).mean(-1, keepdim=True)
        return torch.addcmul(grad, n, along, value=-1).mul_(scale).to(grads[0].dtype), None


class RMSNorm(nn.Module):
    """y = w * x / sqrt(mean(x^2) + eps), the mean taken in fp32."""

    def __init__(self, width: int, eps: float = 1e-6) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        """[..., D] -> [..., D]."""
        return self.weight * _Normalise.apply(x, self.eps)
