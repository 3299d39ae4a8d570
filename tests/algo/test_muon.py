"""Newton-Schulz against the polynomial on singular values in float64, and against DeepSpeed's and torch's."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from rlkit.algo.muon import orthogonalised, step_scale

SHAPES = [(8, 8), (5, 12), (12, 5), (48, 16), (2, 40)]


def matrix(rows: int, columns: int) -> Tensor:
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(rows))


def by_singular_values(x: Tensor) -> Tensor:
    """U p(p(p(p(p(S / |X|))))) V^T with the post's p(s) = 3.4445 s - 4.7750 s^3 + 2.0315 s^5."""
    u, s, v = torch.linalg.svd(x.double(), full_matrices=False)
    s = s / x.double().norm()
    for _ in range(5):
        s = 3.4445 * s - 4.7750 * s**3 + 2.0315 * s**5
    return u @ s.diag() @ v


@pytest.mark.parametrize("shape", SHAPES)
def test_it_acts_on_the_singular_values_alone(shape: tuple[int, int]) -> None:
    x = matrix(*shape)
    found = orthogonalised(x)
    assert found.dtype == torch.float32 and found.shape == x.shape
    torch.testing.assert_close(found.double(), by_singular_values(x), rtol=0, atol=2e-5)
    values = torch.linalg.svdvals(found)
    assert float(values.min()) > 0.6 and float(values.max()) < 1.25


@pytest.mark.parametrize("shape", SHAPES)
def test_deepspeed_and_torch_compute_the_same(shape: tuple[int, int]) -> None:
    """DeepSpeed's in fp32 up to rounding; torch's works in bf16, which ours in bf16 misses fp32 by no more than."""
    from deepspeed.runtime.zero.muon.original_muon import zeropower_via_gram_newtonschulz

    x = matrix(*shape)
    ours = orthogonalised(x)
    with torch.compiler.set_stance("force_eager"):  # or a compiler would work for a minute
        theirs = zeropower_via_gram_newtonschulz(x, steps=5)
    assert theirs.dtype == torch.float32
    torch.testing.assert_close(ours, theirs, rtol=0, atol=2e-5)
    weight = torch.nn.Parameter(torch.zeros(shape))
    weight.grad = x.clone()
    torch.optim.Muon([weight], lr=1.0, weight_decay=0.0, adjust_lr_fn="match_rms_adamw").step()
    torchs = -weight.detach() / step_scale(*shape)
    miss = float((torchs - ours).norm() / ours.norm())
    assert 0 < miss < 5 * 2**-8 * 5, "five rounds, each with a few roundings of 2^-8"
    assert float((orthogonalised(x, torch.bfloat16) - ours).norm() / ours.norm()) < 2 * miss


def test_the_size_of_the_matrix_does_not_matter_and_zeros_stay() -> None:
    x = matrix(5, 12)
    for size in (1e-3, 1e6):
        torch.testing.assert_close(orthogonalised(size * x), orthogonalised(x), rtol=1e-4, atol=1e-5)
    assert not orthogonalised(torch.zeros(3, 4)).any()


@pytest.mark.parametrize("shape", SHAPES)
def test_a_step_is_as_large_as_one_of_adamw(shape: tuple[int, int]) -> None:
    """0.2 in the mean, by hand 0.2 sqrt(12) for 5 x 12; singular values of 0.7 to 1.2 make it 0.14 to 0.24."""
    assert step_scale(5, 12) == pytest.approx(0.2 * math.sqrt(12))
    step = step_scale(*shape) * orthogonalised(matrix(*shape))
    assert 0.13 < float(step.square().mean().sqrt()) < 0.25
