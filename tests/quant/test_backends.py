"""Every backend that runs here computes what the emulation does; Triton's kernels run interpreted, in a process."""

from __future__ import annotations

import os
import subprocess
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from rlkit.quant import backends, matmul, quantise_tiles, quantise_weight, scaled_mm, unusable
from rlkit.quant.fp8 import BLOCK, E4M3, SMALLEST_SCALE
from rlkit.quant.linear import transposed
from tests.quant.test_fp8 import CODES, value_of

MAX = torch.finfo(torch.float32).max
VALUES = sorted(value_of(int(code)) for code in CODES if code < 0x7F)


def drawn(rows: int, columns: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    """Of sizes that differ by column, as those of activations do."""
    random = torch.Generator().manual_seed(seed)
    sizes = torch.exp(2 * torch.randn(1, columns, generator=random))
    return (sizes * torch.randn(rows, columns, generator=random)).to(dtype)


def boundaries() -> Tensor:
    """Beside 448, which makes the scale 1: every code, every midpoint of two codes, and their neighbours in fp32."""
    middles = [(low + high) / 2 for low, high in pairwise(VALUES)]
    exact = torch.tensor([*VALUES, *middles])
    up, down = (torch.nextafter(exact, torch.tensor(end)) for end in (MAX, 0.0))
    numbers = torch.cat([exact, up.clamp(max=448.0), down])
    numbers = torch.cat([numbers, -numbers])
    rows = -(-len(numbers) // (BLOCK - 1))
    filled = torch.zeros(rows * (BLOCK - 1))
    filled[: len(numbers)] = numbers
    return torch.cat([torch.full((rows, 1), 448.0), filled.view(rows, -1)], 1)


MATRICES = {
    "random": drawn(70, 320),
    "random in bf16": drawn(33, 576, dtype=torch.bfloat16),
    "boundaries": boundaries(),
    "one number": torch.tensor([[3.0]]),
    "zeros": torch.zeros(3, 130),
    "minus zeros": -torch.zeros(3, 130),
    "denormal": torch.linspace(-(2.0**-126), 2.0**-126, 3 * 200).view(3, 200),
    "around the smallest scale": torch.linspace(0, 900 * SMALLEST_SCALE, 4 * 160).view(4, 160),
    "the largest": torch.tensor([[MAX, -MAX, 1.0, MAX / 449, 2.0**100]]),
    "powers of two": 2.0 ** torch.arange(-60, 68).float().repeat(3, 1),
}
PRODUCTS = [
    ((4, 3, 128), "tiles", "tiles"),
    ((1, 1, 1), "tiles", "blocks"),
    ((70, 576, 320), "tiles", "blocks"),
    ((130, 129, 127), "blocks", "tiles"),
    ((130, 140, 256), "blocks", "blocks"),
    ((200, 70, 100), "tiles", "tiles"),
    ((0, 70, 100), "tiles", "tiles"),
]
"""((T, N, K), what the scales of the left matrix hold for, what those of the right one do)."""


def operands(shape: tuple[int, int, int], left: str, right: str) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    rows, columns, inner = shape
    quantise = {"tiles": quantise_tiles, "blocks": quantise_weight}
    return *quantise[left](drawn(rows, inner)), *quantise[right](drawn(columns, inner, seed=1))


def run_interpreted(module: str, out: Path) -> Any:
    """What a module writes whose process interprets Triton's kernels; this one's Triton stays as it is."""
    command = [sys.executable, "-W", "ignore", "-m", module, str(out)]
    done = subprocess.run(command, env=os.environ | {"TRITON_INTERPRET": "1"}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return torch.load(out)


@pytest.fixture(scope="module")
def interpreted(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return run_interpreted("tests.quant.interpreted", tmp_path_factory.mktemp("triton") / "out.pt")


def bits(tensor: Tensor) -> Tensor:
    return tensor.view(torch.uint8)


@pytest.mark.slow
def test_triton_quantises_to_the_same_bytes(interpreted: dict[str, Any]) -> None:
    from tests.quant.interpreted import quantised

    ours, theirs = interpreted["quantised"], quantised("emulate")
    assert ours.keys() == theirs.keys() and len(ours) == 8 * len(MATRICES)
    for name, (codes, scales) in theirs.items():
        assert ours[name][0].dtype == E4M3
        assert torch.equal(bits(ours[name][0]), bits(codes)), name
        assert torch.equal(bits(ours[name][1]), bits(scales)), name


@pytest.mark.slow
def test_triton_multiplies_as_the_emulation(interpreted: dict[str, Any]) -> None:
    from tests.quant.interpreted import products

    for name, theirs in products("emulate").items():
        ours = interpreted["products"][name]
        assert ours.dtype == theirs.dtype and ours.shape == theirs.shape
        # In bf16 a sum that lies on a midpoint may fall to either side.
        limit = 1e-6 if ours.dtype == torch.float32 else 1e-3
        assert (ours.double() - theirs.double()).norm() <= limit * theirs.double().norm(), name


@pytest.mark.slow
def test_interpreted_kernels_are_for_those_who_ask(interpreted: dict[str, Any]) -> None:
    assert interpreted["usable"] == ("triton", "emulate") if not torch.cuda.is_available() else True
    assert interpreted["usual"]


@pytest.mark.slow
def test_no_rows_are_quantised_to_none(interpreted: dict[str, Any]) -> None:
    assert (
        interpreted["nothing"] == [tensor.shape for tensor in quantise_tiles(torch.zeros(0, 256))] == [(0, 256), (0, 2)]
    )


@pytest.mark.parametrize("backend", ["triton", "scaled_mm"])
def test_on_a_gpu_kernels_compute_what_the_emulation_does(backend: str) -> None:
    """Tensor cores add up 128 products in about 14 bits: hence more than fp32 rounding (section 3.3.2)."""
    if not torch.cuda.is_available() or backend not in backends():
        pytest.skip(f"{backend}: {unusable(backend)}")
    for case in PRODUCTS:
        if backend == "scaled_mm" and case[1:] == ("blocks", "blocks"):
            continue
        here = [tensor.cuda() for tensor in operands(*case)]
        ours, theirs = matmul(*here, backend=backend), matmul(*here, backend="emulate")
        assert (ours - theirs).norm() <= 2e-3 * theirs.norm(), case
    for matrix in MATRICES.values():
        for quantise in (quantise_tiles, quantise_weight):
            for mine, specified in zip(quantise(matrix.cuda()), quantise(matrix), strict=True):
                assert torch.equal(bits(mine).cpu(), bits(specified))


def test_a_backend_that_cannot_be_used_says_why() -> None:
    assert "emulate" in backends() and unusable("emulate") is None
    a = quantise_tiles(torch.ones(2, 128))
    if not torch.cuda.is_available():
        assert unusable("scaled_mm") == "torch finds no GPU"
        why = r"backend='triton' cannot be used here \(torch finds no GPU; with TRITON_INTERPRET=1 set before Python st"
        with pytest.raises(ValueError, match=why):
            matmul(*a, *a, backend="triton")
        with pytest.raises(ValueError, match="backend='triton' cannot be used here"):
            quantise_tiles(torch.ones(2, 128), backend="triton")


@pytest.mark.parametrize(("hopper", "has_it", "cuda", "words"), [
    ((8, 0), True, "12.9", "need a GPU of compute capability 9.0"),
    ((10, 0), True, "12.9", "need a GPU of compute capability 9.0"),
    ((9, 0), False, "12.9", "has no torch.nn.functional.scaled_mm"),
    ((9, 0), True, "12.8", "need CUDA 12.9, and torch has 12.8"),
    ((9, 0), True, None, "need CUDA 12.9, and torch has None"),
    ((9, 0), True, "13.0", None),
])  # fmt: skip
def test_where_torch_has_the_product(
    monkeypatch: pytest.MonkeyPatch, hopper: tuple[int, int], has_it: bool, cuda: str | None, words: str | None
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: hopper)
    monkeypatch.setattr(torch.version, "cuda", cuda)
    if not has_it:
        monkeypatch.delattr(torch.nn.functional, "scaled_mm")
    found = scaled_mm.problem()
    assert found is None if words is None else words in str(found)


@pytest.mark.parametrize(("shape", "left", "right"), [case for case in PRODUCTS if case[1:] != ("blocks", "blocks")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_torch_accepts_the_layouts_of_scaled_mm(
    shape: tuple[int, int, int], left: str, right: str, dtype: torch.dtype
) -> None:
    """On the meta device, where torch checks shapes, strides and dtypes as on a GPU and computes nothing."""
    group = {"tiles": 1, "blocks": BLOCK}
    a, a_scales, b, b_scales = (tensor.to("meta") for tensor in operands(shape, left, right))
    out = scaled_mm.product(a, a_scales, b, b_scales, group[left], group[right], dtype)
    assert out.shape == shape[:2] and out.dtype == dtype


@pytest.mark.parametrize("shape", [(130, 512), (512, 1024), (576, 300)])
def test_and_those_of_backward(shape: tuple[int, int]) -> None:
    """dx takes the blocks of forward transposed, and transposed scales lie otherwise in memory."""
    codes_NK, scales = quantise_weight(drawn(*shape))
    dy, dy_scales = quantise_tiles(drawn(4, shape[0]))
    operand = transposed(codes_NK).to("meta"), scales.T.to("meta")
    assert not operand[1].is_contiguous()
    out = scaled_mm.product(dy.to("meta"), dy_scales.to("meta"), *operand, 1, BLOCK, torch.bfloat16)
    assert out.shape == (4, shape[1])


def test_what_is_padded_for_scaled_mm_adds_nothing() -> None:
    for case in PRODUCTS:
        a, a_scales, b, b_scales = operands(*case)
        groups = [1 if kind == "tiles" else BLOCK for kind in case[1:]]
        left, a_laid, _ = scaled_mm._operand(a, a_scales, groups[0])
        right, b_laid, _ = scaled_mm._operand(b, b_scales, groups[1])
        tiles = left.shape[1] // BLOCK
        back = [
            laid if group == 1 else laid.t()[:, :tiles] for laid, group in zip((a_laid, b_laid), groups, strict=True)
        ]
        whole = matmul(left, back[0], right, back[1])
        torch.testing.assert_close(whole[: len(a), : len(b)], matmul(a, a_scales, b, b_scales), rtol=1e-4, atol=1e-4)
        assert not whole[len(a) :].any() and not whole[:, len(b) :].any()


def test_blocks_on_both_sides_have_no_product_of_torch() -> None:
    with pytest.raises(ValueError, match="scaled_mm multiplies tiles with tiles or with blocks, not blocks with block"):
        scaled_mm.product(*operands((130, 140, 256), "blocks", "blocks"), BLOCK, BLOCK, torch.float32)
