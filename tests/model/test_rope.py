"""Rotary embedding: the formula, its gradient, and the property it exists for."""

from __future__ import annotations

import math

import pytest
import torch

from rlkit.model.rope import rotate_tail, rotations


def test_hand_computed_rotation() -> None:
    """Dimension 4, theta 100: frequencies 1 and 1/10. At position 3 the pairs turn by 3 and 0.3 radians."""
    x = torch.tensor([[7.0, 1.0, 0.0, 0.0, 2.0]])
    out = rotate_tail(x, rotations(torch.tensor([3]), 4, 100.0))
    expected = [7.0, math.cos(3), math.sin(3), -2 * math.sin(0.3), 2 * math.cos(0.3)]
    torch.testing.assert_close(out, torch.tensor([expected]))


def test_dot_products_depend_on_the_distance_only() -> None:
    torch.manual_seed(0)
    q, k = torch.randn(1, 16), torch.randn(1, 16)

    def score(p: int, r: int) -> torch.Tensor:
        turned = [rotate_tail(x, rotations(torch.tensor([i]), 16, 1e4)) for x, i in ((q, p), (k, r))]
        return (turned[0] * turned[1]).sum()

    torch.testing.assert_close(score(9, 4), score(105, 100), atol=1e-4, rtol=0)
    assert abs(float(score(9, 4) - score(9, 5))) > 1e-2


@pytest.mark.parametrize("shape", [(5, 6), (5, 3, 10)])
def test_gradient_equals_autograd_through_the_formula(shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    x = torch.randn(shape, requires_grad=True)
    angles = rotations(torch.arange(5), 4, 50.0)
    upstream = torch.randn(shape)
    (found,) = torch.autograd.grad(rotate_tail(x, angles), x, upstream)
    turn = angles.view(5, *[1] * (len(shape) - 2), 2)
    even, odd = x[..., -4::2], x[..., -3::2]
    pairs = torch.stack([even * turn.real - odd * turn.imag, even * turn.imag + odd * turn.real], dim=-1).flatten(-2)
    formula = torch.cat([x[..., :-4], pairs], dim=-1)
    torch.testing.assert_close(rotate_tail(x, angles), formula)
    torch.testing.assert_close(found, torch.autograd.grad(formula, x, upstream)[0])


def test_bf16_is_turned_in_fp32() -> None:
    torch.manual_seed(0)
    x = torch.randn(300, 8).bfloat16()
    angles = rotations(torch.arange(300), 8, 1e4)
    assert torch.equal(rotate_tail(x, angles), rotate_tail(x.float(), angles).bfloat16())
