"""FP8 products and the linear layer against float64, code by code and gradient by gradient."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from rlkit.quant import Float8Linear, backends, matmul, quantise_blocks, quantise_tiles
from rlkit.quant.fp8 import BLOCK, E4M3, E4M3_MAX, SMALLEST_SCALE
from tests.quant.test_fp8 import nearest_code

SHAPES = [(4, 128), (1, 1), (3, 130), (128, 256), (70, 320), (5, 576)]


def drawn(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    """Of sizes that differ by column, as those of activations do."""
    random = torch.Generator().manual_seed(seed)
    sizes = torch.exp(2 * torch.randn(1, shape[-1], generator=random))
    return (sizes * torch.randn(shape, generator=random)).to(dtype)


def decoded(codes: Tensor, scales: Tensor) -> Tensor:
    """In float64, row by row."""
    if len(scales) != len(codes):
        scales = scales.repeat_interleave(BLOCK, 0)[: len(codes)]
    return codes.double() * scales.double().repeat_interleave(BLOCK, 1)[:, : codes.shape[1]]


def relative(ours: Tensor, theirs: Tensor) -> float:
    return float((ours.double() - theirs).norm() / theirs.norm())


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_every_code_is_the_nearest_and_every_scale_that_of_its_tile(shape: tuple[int, int], dtype: torch.dtype) -> None:
    x_TK = drawn(*shape, dtype=dtype)
    codes, scales = quantise_tiles(x_TK)
    assert codes.dtype == E4M3 and scales.dtype == torch.float32
    for t in range(min(shape[0], 4)):
        for c, tile in enumerate(x_TK[t].float().split(BLOCK)):
            scale = torch.tensor(max(float(tile.abs().max() / E4M3_MAX), SMALLEST_SCALE))
            assert scales[t, c] == scale
            expected = [nearest_code(float(value / scale)) for value in tile]
            assert codes[t].view(torch.uint8)[c * BLOCK : c * BLOCK + len(tile)].tolist() == expected


def test_zeros_denormals_and_the_largest_number() -> None:
    x_TK = torch.zeros(4, 256)
    x_TK[1] = 1e-40
    x_TK[2, :128] = torch.finfo(torch.float32).max
    x_TK[3, 0], x_TK[3, 1:128] = 448.0, 2.0**-9  # the smallest code beside the largest
    codes, scales = quantise_tiles(x_TK)
    assert codes.float().isfinite().all() and scales.isfinite().all()
    assert not codes[0].float().any() and scales[0].tolist() == [SMALLEST_SCALE] * 2
    assert not codes[1].float().any(), "nothing that small is left"
    assert (codes[2, :128].float() == E4M3_MAX).all()
    assert codes[3, :128].view(torch.uint8).tolist() == [0x7E] + [0x01] * 127


@pytest.mark.parametrize(("rows", "columns", "inner"), [(4, 3, 128), (1, 1, 1), (70, 576, 320), (130, 129, 127)])
@pytest.mark.parametrize("right", ["blocks", "tiles"])
def test_a_product_is_that_of_the_decoded_numbers(rows: int, columns: int, inner: int, right: str) -> None:
    a = quantise_tiles(drawn(rows, inner))
    b = (quantise_blocks if right == "blocks" else quantise_tiles)(drawn(columns, inner, seed=1))
    for backend in backends():
        out_TN = matmul(*a, *b, backend=backend)
        assert out_TN.dtype == torch.float32 and out_TN.shape == (rows, columns)
        assert relative(out_TN, decoded(*a) @ decoded(*b).T) <= 1e-6


def test_what_does_not_fit_is_refused() -> None:
    a, b = quantise_tiles(drawn(4, 256)), quantise_blocks(drawn(130, 256))
    with pytest.raises(
        ValueError,
        match=r"backend='cublas' cannot be used here \(there are scaled_mm, triton, emulate\); use one of emulate",
    ):
        matmul(*a, *b, backend="cublas")
    with pytest.raises(ValueError, match=r"b_scales has the shape \(2, 1\); a matrix of 130 x 256 has \(130, 2\)"):
        matmul(*a, b[0], b[1][:, :1])
    with pytest.raises(ValueError, match=r"a_scales has the shape \(2, 2\)"):
        matmul(a[0], a[1][:2], *b)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("tokens", "outputs", "inputs"), [(130, 160, 200), (1, 128, 128), (64, 1, 300)])
def test_the_layer_computes_three_products_of_decoded_numbers(
    tokens: int, outputs: int, inputs: int, dtype: torch.dtype
) -> None:
    layer = Float8Linear(inputs, outputs).to(dtype)
    x_TK, dy_TN = drawn(tokens, inputs, dtype=dtype).requires_grad_(), drawn(tokens, outputs, seed=1, dtype=dtype)
    y_TN = layer(x_TK)
    y_TN.backward(dy_TN)
    weight = layer.weight.detach()
    x, dy, x_t, dy_t = (decoded(*quantise_tiles(tensor)) for tensor in (x_TK.detach(), dy_TN, x_TK.detach().T, dy_TN.T))
    w = decoded(*quantise_blocks(weight))
    assert x_TK.grad is not None and layer.weight.grad is not None
    rounding = 1e-6 if dtype == torch.float32 else 4e-3
    for ours, theirs in ((y_TN.detach(), x @ w.T), (x_TK.grad, dy @ w), (layer.weight.grad, dy_t @ x_t.T)):
        assert ours.dtype == dtype and relative(ours, theirs) <= rounding


def test_leading_dimensions_and_frozen_sides() -> None:
    layer = Float8Linear(160, 130)
    x = drawn(2, 3, 160)
    assert torch.equal(layer(x).flatten(0, 1), layer(x.flatten(0, 1)))
    layer.weight.requires_grad_(False)
    moving = x.clone().requires_grad_()
    layer(moving).sum().backward()
    assert moving.grad is not None and layer.weight.grad is None


def test_rows_of_all_sizes_survive_a_product() -> None:
    """Gradients of tokens differ by decades; with one scale for all of them the small ones are zero or one code."""
    random = torch.Generator().manual_seed(0)
    sizes = 10 ** (-8 * torch.rand(256, 1, generator=random))
    dy_TN, weight_NK = sizes * torch.randn(256, 512, generator=random), torch.randn(256, 512, generator=random)
    exact = dy_TN.double() @ weight_NK.double().T
    blocks = quantise_blocks(weight_NK)
    scale = dy_TN.abs().max() / E4M3_MAX
    whole = matmul((dy_TN / scale).to(E4M3), scale.expand(256, 4), *blocks)
    tiled = matmul(*quantise_tiles(dy_TN), *blocks)
    errors = [(found - exact).norm(dim=1) / exact.norm(dim=1) for found in (whole, tiled)]
    lost = [float((each > 0.5).double().mean()) for each in errors]
    print(f"rows that a product loses: {lost[0]:.0%} with one scale, {lost[1]:.0%} with tiles")
    print(f"median error of a row: {errors[0].median():.2f} with one scale, {errors[1].median():.3f} with tiles")
    assert lost[0] > 0.2 and lost[1] == 0 and errors[1].max() < 0.06


def test_tiles_keep_outliers_apart() -> None:
    """With a few large columns one scale for all loses the small ones, which is why there are tiles (section 3.3.2)."""
    x_TK = torch.randn(64, 1024, generator=torch.Generator().manual_seed(0))
    x_TK[:, ::512] *= 3e4
    small = torch.ones_like(x_TK, dtype=torch.bool)
    small[:, ::512] = False
    scale = x_TK.abs().max() / E4M3_MAX
    whole, tiled = (x_TK / scale).to(E4M3).double() * scale, decoded(*quantise_tiles(x_TK))
    lost = [relative(found[small], x_TK[small].double()) for found in (whole, tiled)]
    print(f"error of the small numbers: {lost[0]:.2f} with one scale, {lost[1]:.3f} with tiles")
    assert lost[1] < lost[0] / 2
