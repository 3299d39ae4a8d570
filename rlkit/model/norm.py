"""Root-mean-square normalisation (arXiv:1910.07467)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


class _RMSNorm(torch.autograd.Function):
    """Computes y = w x r, r = 1 / sqrt(mean(x^2) + eps), in fp32, with half of autograd's passes over memory.

    dx = r (w g) - x r^3 mean(w g x), dw = sum over rows of r g x.
    """

    @staticmethod
    def forward(ctx: Any, x_TD: Tensor, weight_D: Tensor, eps: float) -> Tensor:
        x32 = x_TD.float()
        scale = torch.linalg.vector_norm(x32, dim=-1, keepdim=True).square_().div_(x_TD.shape[-1]).add_(eps).rsqrt_()
        ctx.save_for_backward(x_TD, scale, weight_D)
        # Rounded before the weight is applied, as in the published model code.
        return (x32 * scale).to(x_TD.dtype).mul_(weight_D)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, None]:
        x_TD, scale, weight_D = ctx.saved_tensors
        x32, w32, grad = x_TD.float(), weight_D.float(), grads[0].float()
        gx = grad * x32
        along = (gx @ w32).unsqueeze(1).mul_(scale**3).div_(-x_TD.shape[-1])
        grad_x = torch.mul(grad, w32).mul_(scale).addcmul_(x32, along)
        return grad_x.to(x_TD.dtype), (scale.t() @ gx).squeeze(0).to(weight_D.dtype), None


class RMSNorm(nn.Module):
    """Computes y = w x / sqrt(mean(x^2) + eps), with the mean taken in fp32."""

    def __init__(self, width: int, eps: float = 1e-6) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.eps = eps

    def forward(self, x_TD: Tensor) -> Tensor:
        """Maps [T, D] to [T, D]."""
        return _RMSNorm.apply(x_TD, self.weight, self.eps)
