"""The experts' products in FP8 against a float64 reference that quantises each expert's rows alone."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from rlkit.quant import float8_grouped, float8_linear, quantise_blocks, quantise_tiles, straight_through
from rlkit.quant.fp8 import block_scales, dequantise_blocks, power_of_two
from tests.quant.test_matmul import decoded, drawn, relative

SIZES = [0, 130, 1, 0, 64, 128, 0]
"""Rows of each expert: none at both ends and between, one, and more than a tile."""
ENDS = torch.tensor(SIZES).cumsum(0).int()


def stack(*shape: int, seed: int, dtype: torch.dtype) -> Tensor:
    return torch.stack([drawn(*shape[1:], seed=seed + i) for i in range(shape[0])]).to(dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("outputs", "inputs"), [(256, 128), (160, 200), (1, 1)])
def test_each_expert_computes_three_products_of_decoded_numbers(outputs: int, inputs: int, dtype: torch.dtype) -> None:
    weight = stack(len(SIZES), outputs, inputs, seed=2, dtype=dtype).requires_grad_()
    x, dy = drawn(sum(SIZES), inputs, dtype=dtype).requires_grad_(), drawn(sum(SIZES), outputs, seed=1, dtype=dtype)
    y = float8_grouped(x, weight, ENDS)
    y.backward(dy)
    assert x.grad is not None and weight.grad is not None
    assert (y.dtype, x.grad.dtype, weight.grad.dtype) == (dtype,) * 3
    rounding = 1e-6 if dtype == torch.float32 else 4e-3
    start = 0
    for expert, size in enumerate(SIZES):
        rows, w = slice(start, start + size), decoded(*quantise_blocks(weight[expert].detach()))
        start += size
        if size == 0:
            assert weight.grad[expert].count_nonzero() == 0
            continue
        here, there = x[rows].detach(), dy[rows]
        a, d, a_t, d_t = (decoded(*quantise_tiles(tensor)) for tensor in (here, there, here.T, there.T))
        assert relative(y[rows].detach(), a @ w.T) <= rounding
        assert relative(x.grad[rows], d @ w) <= rounding
        assert relative(weight.grad[expert], d_t @ a_t.T) <= rounding


def test_one_expert_is_a_linear_layer() -> None:
    x, weight = drawn(70, 200), drawn(130, 200, seed=1)
    assert torch.equal(float8_grouped(x, weight.unsqueeze(0), torch.tensor([70])), float8_linear(x, weight))


def test_no_rows_at_all_give_gradients_of_zero() -> None:
    weight, x = drawn(128, 128).repeat(2, 1, 1).requires_grad_(), torch.zeros(0, 128, requires_grad=True)
    y = float8_grouped(x, weight, torch.tensor([0, 0]))
    assert y.shape == (0, 128)
    y.sum().backward()
    assert weight.grad is not None and weight.grad.count_nonzero() == 0 and x.grad is not None


def test_an_outlier_of_one_expert_leaves_the_others_alone() -> None:
    """Were rows of two experts in one tile along the tokens, the small ones would be lost (section 3.3.2)."""
    x = drawn(20, 128)
    x[10:] *= 1e6
    weight = torch.ones(2, 128, 128, requires_grad=True)
    float8_grouped(x, weight, torch.tensor([10, 20])).sum().backward()
    assert weight.grad is not None
    torch.testing.assert_close(
        weight.grad[0], x[:10].sum(0).expand(128, 128), rtol=0.1, atol=0.1 * float(x[:10].abs().max())
    )


@pytest.mark.parametrize("shape", [(576, 320), (1, 1), (3, 130, 200)])
def test_weights_in_fp8_are_exact_in_bf16_and_the_gradient_passes(shape: tuple[int, ...]) -> None:
    weight = (drawn(*shape) if len(shape) == 2 else stack(*shape, seed=0, dtype=torch.float32)).bfloat16()
    weight.requires_grad_()
    out = straight_through(weight)
    matrices = [weight] if len(shape) == 2 else list(weight)
    for matrix, found in zip(matrices, [out] if len(shape) == 2 else list(out), strict=True):
        scales = power_of_two(block_scales(matrix.detach()))
        codes, _ = quantise_blocks(matrix.detach(), scales)
        assert found.dtype == torch.bfloat16
        assert torch.equal(found.double(), decoded(codes, scales)), "nothing is rounded a second time"
        assert torch.equal(found, dequantise_blocks(codes, scales, torch.bfloat16))
    gradient = torch.randn(shape, generator=torch.Generator().manual_seed(0)).bfloat16()
    out.backward(gradient)
    assert weight.grad is not None and torch.equal(weight.grad, gradient)


def test_powers_of_two_cost_little() -> None:
    weight = drawn(512, 1024)
    plain = quantise_blocks(weight)
    rounded = quantise_blocks(weight, block_scales(weight, powers_of_two=True))
    errors = [relative(decoded(*pair).float(), weight.double()) for pair in (plain, rounded)]
    print(f"error of weights: {errors[0]:.4f} with fp32 scales, {errors[1]:.4f} with powers of two")
    assert bool((torch.frexp(rounded[1]).mantissa == 0.5).all())
    assert errors[1] <= 2 * errors[0], "a scale grows by less than 2, and with it the steps of the few smallest codes"
