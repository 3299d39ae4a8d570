"""Our RMS norm against torch's own, value and gradients."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from rlkit.model.norm import RMSNorm
from tests.model.tiny import relative


def test_value_and_gradients_equal_torch_in_float64() -> None:
    torch.manual_seed(0)
    norm = RMSNorm(24, eps=1e-3)
    norm.weight.data.uniform_(0.5, 2.0)
    x = (torch.randn(7, 24) * torch.logspace(-3, 3, 7)[:, None]).requires_grad_()
    upstream = torch.randn(7, 24)
    found = torch.autograd.grad(norm(x), [x, norm.weight], upstream)
    x64, weight64 = x.detach().double().requires_grad_(), norm.weight.detach().double().requires_grad_()
    out64 = F.rms_norm(x64, (24,), weight64, 1e-3)
    assert relative(norm(x), out64) <= 1e-6
    for a, b in zip(found, torch.autograd.grad(out64, [x64, weight64], upstream.double()), strict=True):
        for row_a, row_b in zip(a, b, strict=True):
            assert relative(row_a, row_b) <= 1e-5


def test_bf16_takes_its_mean_in_fp32() -> None:
    torch.manual_seed(0)
    norm = RMSNorm(512).to(torch.bfloat16)
    x = torch.randn(9, 512).bfloat16().requires_grad_()
    out = norm(x)
    assert out.dtype == torch.bfloat16
    assert torch.equal(out, F.rms_norm(x.float(), (512,), None, 1e-6).bfloat16())
    out.sum().backward()
    assert x.grad is not None and x.grad.dtype == torch.bfloat16
