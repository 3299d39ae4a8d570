"""Block FP8 against a decoder written from the format's definition, transformers' formulas, and its own way back."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from transformers import FineGrainedFP8Config
from transformers.integrations.finegrained_fp8 import Fp8Dequantize, Fp8Quantize
from transformers.quantizers.quantizer_finegrained_fp8 import FineGrainedFP8HfQuantizer

from rlkit.quant.fp8 import (
    BLOCK,
    E4M3,
    E4M3_MAX,
    SMALLEST_SCALE,
    block_grid,
    block_scales,
    dequantise_blocks,
    power_of_two,
    quantise_blocks,
    requantise_blocks,
)

SHAPES = [(128, 128), (256, 384), (576, 256), (1, 1), (130, 300), (127, 129)]
NANS = (0x7F, 0xFF)
CODES = torch.tensor([code for code in range(256) if code not in NANS], dtype=torch.uint8)
LARGEST_SCALE = 7.5e35
"""448 times this is the largest bf16 number."""


def value_of(code: int) -> float:
    """E4M3 by its definition (arXiv:2209.05433, table 1): sign, 4 bits of exponent with bias 7, 3 of mantissa."""
    exponent, mantissa = (code >> 3) & 15, code & 7
    size = 2.0**-6 * mantissa / 8 if exponent == 0 else 2.0 ** (exponent - 7) * (1 + mantissa / 8)
    return -size if code & 128 else size


def nearest_code(value: float) -> int:
    """The code whose value is nearest, the even one of two; saturating, the sign of zero kept."""
    sign = 128 if math.copysign(1, value) < 0 else 0
    return sign | min(range(0x7F), key=lambda code: (abs(value_of(code) - abs(value)), code & 1))


def bits(tensor: Tensor) -> Tensor:
    return tensor.view(torch.uint8 if tensor.dtype == E4M3 else torch.int32)


def same_bits(one: tuple[Tensor, Tensor], two: tuple[Tensor, Tensor]) -> bool:
    return all(torch.equal(bits(a), bits(b)) for a, b in zip(one, two, strict=True))


def weights(shape: tuple[int, int], seed: int = 0) -> Tensor:
    """bf16, of sizes that differ by block as those of a model do."""
    random = torch.Generator().manual_seed(seed)
    columns = torch.exp(torch.randn(1, shape[1], generator=random))
    return (0.02 * columns * torch.randn(shape, generator=random)).bfloat16()


def all_codes(scales: Tensor, seed: int = 0) -> Tensor:
    """A matrix of codes in which every block of 128 x 128 holds every code, in another order."""
    down, across = scales.shape
    random = torch.Generator().manual_seed(seed)
    drawn = CODES[torch.randint(len(CODES), (down, across, BLOCK * BLOCK), generator=random)]
    drawn[..., : len(CODES)] = CODES
    return drawn.view(down, across, BLOCK, BLOCK).transpose(1, 2).reshape(down * BLOCK, across * BLOCK).view(E4M3)


def test_every_code_has_the_value_of_the_format() -> None:
    codes = CODES.view(E4M3).unsqueeze(0)
    values = dequantise_blocks(codes, torch.tensor([[0.75, 0.5]])).flatten().tolist()
    assert values == [value_of(int(c)) * (0.75 if i < BLOCK else 0.5) for i, c in enumerate(CODES)]
    assert max(map(value_of, CODES.tolist())) == E4M3_MAX


@pytest.mark.parametrize("shape", SHAPES)
def test_codes_and_scales_are_those_of_the_definition(shape: tuple[int, int]) -> None:
    weight = weights(shape)
    codes, scales = quantise_blocks(weight)
    assert codes.dtype == E4M3 and scales.dtype == torch.float32
    assert tuple(scales.shape) == block_grid(shape) == (math.ceil(shape[0] / 128), math.ceil(shape[1] / 128))
    for i in range(scales.shape[0]):
        for j in range(scales.shape[1]):
            block = weight[i * 128 : i * 128 + 128, j * 128 : j * 128 + 128]
            assert scales[i, j] == torch.tensor(float(block.abs().max())) / 448
            found = codes.view(torch.uint8)[i * 128 : i * 128 + 128, j * 128 : j * 128 + 128].flatten()[::97]
            quotients = (block.float() / scales[i, j]).flatten()[::97]
            assert found.tolist() == [nearest_code(float(quotient)) for quotient in quotients]


def test_what_does_not_fit_saturates() -> None:
    codes, _ = quantise_blocks(torch.tensor([[1e9, -1e9, 464.0, 465.0, 432.0, 0.0, -0.0]]), torch.ones(1, 1))
    assert codes.float().tolist() == [[448.0, -448.0, 448.0, 448.0, 448.0, 0.0, 0.0]]  # 432: a tie, to the even code
    assert codes.view(torch.uint8)[0, -1] == 0x80


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_dequantising_is_transformers_formula(dtype: torch.dtype) -> None:
    """Whole blocks only: transformers 5.19 splits 192 rows of two blocks at row 96 and refuses 576 rows."""
    codes, scales = quantise_blocks(weights((256, 384)))
    theirs = Fp8Dequantize(None)._dequantize_one(codes, scales, dtype)
    assert torch.equal(dequantise_blocks(codes, scales, dtype), theirs)


def test_quantising_is_transformers_but_for_the_last_bit_of_scales() -> None:
    """They store 1 / (448 / max), we max / 448 as DeepSeek's kernel: at most 1 unit in the last place apart."""
    weight = weights((256, 384))
    quantizer = Fp8Quantize(FineGrainedFP8HfQuantizer(FineGrainedFP8Config(weight_block_size=(128, 128))))
    theirs = quantizer._quantize_one("a.weight", weight)
    codes, scales = quantise_blocks(weight)
    assert int((bits(scales) - bits(theirs["a.weight_scale_inv"])).abs().max()) <= 1
    steps = codes.float() - theirs["a.weight"].float()
    # A quotient that lies on the midpoint of two codes falls to either side of it.
    assert bool((steps.abs() <= codes.float().abs() / 8 + 2.0**-9).all())
    assert int((steps != 0).sum()) < 0.01 * steps.numel()


def test_error_is_half_a_step_of_the_code() -> None:
    weight = weights((576, 256)).float()
    codes, scales = quantise_blocks(weight)
    error = (dequantise_blocks(codes, scales) - weight).abs()
    scale_NK = scales.repeat_interleave(128, 0)[:576].repeat_interleave(128, 1)
    assert bool((error <= torch.maximum(weight.abs() * 2.0**-4, 2.0**-10 * scale_NK)).all())


ADVERSARIAL = {
    "zeros": torch.zeros(130, 130),
    "minus zeros": -torch.zeros(130, 130),
    "one outlier": torch.full((128, 128), 1e-3).index_put((torch.tensor(5), torch.tensor(7)), torch.tensor(3e38)),
    "largest bf16": torch.full((3, 3), torch.finfo(torch.bfloat16).max),
    "smallest normal": torch.full((3, 3), 2.0**-126),
    "subnormal": torch.linspace(-(2.0**-127), 2.0**-127, 128 * 128).view(128, 128),
    "around the smallest scale": torch.linspace(0, 900 * SMALLEST_SCALE, 256 * 128).view(256, 128),
    "powers of two": 2.0 ** torch.arange(-60, 68).float().repeat(128, 1),
    "one per block": 0.3 * torch.eye(512),
    "every bf16 significand": (1 + torch.arange(128 * 128).remainder(128) / 128).view(128, 128),
}


@pytest.mark.parametrize("name", [*ADVERSARIAL, "random"])
def test_our_fp8_comes_back_from_bf16_bit_for_bit_with_nothing_carried(name: str) -> None:
    """max |w| is a bf16 number, its code is 448, so bf16 gives it back exactly, and with it the scale."""
    weight = weights((576, 1000), seed=3) if name == "random" else ADVERSARIAL[name].bfloat16()
    first = quantise_blocks(weight)
    back = dequantise_blocks(*first, torch.bfloat16)
    assert bool(back.isfinite().all())
    assert same_bits(quantise_blocks(back), first)
    assert same_bits(requantise_blocks(back, first[1]), first)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_any_code_under_any_scale_comes_back_bit_for_bit_with_its_scale(dtype: torch.dtype) -> None:
    """Scales that no rule gave: 400 over the whole range, with random significands, and the ends of the range."""
    random = torch.Generator().manual_seed(0)
    exponents = torch.empty(20, 20).uniform_(-117, 118, generator=random)
    scales = (2.0 ** exponents.double()).float().clamp(SMALLEST_SCALE, LARGEST_SCALE)
    scales[0, 0], scales[0, 1] = SMALLEST_SCALE, LARGEST_SCALE
    codes = all_codes(scales)
    back = dequantise_blocks(codes, scales, dtype).bfloat16()
    assert bool(back.isfinite().all())
    assert same_bits(requantise_blocks(back, scales), (codes, scales))


def test_bf16_alone_does_not_tell_a_foreign_scale() -> None:
    """Why scales are carried: fp32 scales have 24 bits of significand, 8 of them survive."""
    scales = torch.rand(8, 8, generator=torch.Generator().manual_seed(0)) + 1e-3
    codes = all_codes(scales)
    _, found = quantise_blocks(dequantise_blocks(codes, scales, torch.bfloat16))
    assert int((found == scales).sum()) < 8
    torch.testing.assert_close(found, scales, rtol=2.0**-8, atol=0)


def test_far_below_the_smallest_scale_bits_are_lost() -> None:
    scales = torch.full((1, 1), 2.0**-126)
    codes = all_codes(scales)
    back = dequantise_blocks(codes, scales, torch.bfloat16)
    assert not same_bits(requantise_blocks(back, scales), (codes, scales))


def test_a_block_that_was_trained_gets_a_new_scale_and_the_others_keep_theirs() -> None:
    scales = torch.rand(3, 3, generator=torch.Generator().manual_seed(1)) + 1e-3
    codes = all_codes(scales)[:300]
    weight = dequantise_blocks(codes, scales, torch.bfloat16)
    weight[200, 5] *= 1.5
    found_codes, found = requantise_blocks(weight, scales)
    assert (found != scales).nonzero().tolist() == [[1, 0]]
    assert found[1, 0] == block_scales(weight)[1, 0]
    kept = torch.ones(300, 384, dtype=torch.bool)
    kept[128:256, :128] = False
    assert torch.equal(found_codes.view(torch.uint8)[kept], codes.view(torch.uint8)[kept])


@pytest.mark.parametrize("bad", [0.0, -1.0, math.nan, math.inf])
def test_bad_known_scales_are_not_used(bad: float) -> None:
    weight = weights((128, 256))
    known = torch.tensor([[bad, bad]])
    assert same_bits(requantise_blocks(weight, known), quantise_blocks(weight))


def test_scales_are_rounded_up_to_powers_of_two() -> None:
    scales = torch.tensor([[1.0, 1.0000001, 0.75, 0.5], [3e-20, 2.0**-117, 448.0, 2.0**100]])
    expected = torch.tensor([[2.0 ** math.ceil(math.log2(s)) for s in row] for row in scales.double().tolist()])
    assert torch.equal(power_of_two(scales), expected)
