"""Rotary embedding: the formula, its gradient, and the property it exists for."""

from __future__ import annotations

import math

import pytest
import torch
from transformers import DeepseekV3Config as TheirConfig
from transformers.models.deepseek_v3.modeling_deepseek_v3 import DeepseekV3Attention, DeepseekV3RotaryEmbedding

from rlkit.model import DeepseekV3Config
from rlkit.model.config import Yarn
from rlkit.model.rope import frequencies, magnitude, rotate_tail, rotations, softmax_scale

V3 = Yarn(factor=40, original_max_position_embeddings=4096, mscale=1.0, mscale_all_dim=1.0)
YARNS = {
    "V3": (V3, 10000.0, 64),
    "V2-Lite": (Yarn(factor=40, original_max_position_embeddings=4096, mscale=0.707, mscale_all_dim=0.707), 1e4, 64),
    "no mscale": (Yarn(factor=8, original_max_position_embeddings=2048), 50000.0, 64),
    "two mscales": (Yarn(factor=4, original_max_position_embeddings=512, mscale=1.3, mscale_all_dim=0.4), 1e4, 32),
    "other turns": (Yarn(factor=32, original_max_position_embeddings=4096, beta_fast=16, beta_slow=2), 1e4, 64),
    "fraction": (Yarn(factor=2.5, original_max_position_embeddings=100, mscale_all_dim=1.0), 500.0, 16),
    "toy": (Yarn(factor=2, original_max_position_embeddings=64, mscale_all_dim=1.0), 1e4, 4),
    "nothing": (Yarn(factor=1, original_max_position_embeddings=64, mscale_all_dim=1.0), 1e4, 16),
}


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


def theirs(yarn: Yarn | None, theta: float, dim: int) -> TheirConfig:
    reach = yarn.reach if yarn else 4096
    config = DeepseekV3Config(
        rope_scaling=yarn, rope_theta=theta, qk_rope_head_dim=dim, max_position_embeddings=reach, num_attention_heads=1
    )
    return TheirConfig(**config.to_hf())


@pytest.mark.parametrize("name", YARNS)
def test_yarn_is_theirs_to_the_last_position(name: str) -> None:
    """Frequencies to the bit: at position 163,839 one unit in the last place is 0.01 radians."""
    yarn, theta, dim = YARNS[name]
    reference = DeepseekV3RotaryEmbedding(theirs(yarn, theta, dim))
    assert torch.equal(frequencies(dim, theta, yarn), reference.inv_freq)
    positions_T = torch.tensor([0, 1, 2, 63, yarn.original_max_position_embeddings, yarn.reach // 2, yarn.reach - 1])
    cos, sin = reference(torch.zeros(1), positions_T[None])
    expected = torch.complex(cos[0, :, : dim // 2], sin[0, :, : dim // 2])
    torch.testing.assert_close(rotations(positions_T, dim, theta, yarn), expected, rtol=0, atol=2e-7)


@pytest.mark.parametrize("name", [*YARNS, "plain"])
def test_softmax_scale_is_theirs(name: str) -> None:
    yarn, theta, dim = YARNS.get(name, (None, 1e4, 64))
    with torch.device("meta"):
        attention = DeepseekV3Attention(theirs(yarn, theta, dim), layer_idx=0)
    assert softmax_scale(128 + dim, yarn) == pytest.approx(attention.scaling, rel=1e-12)


def test_yarn_by_hand() -> None:
    """V3's numbers: pair j turns 4096 / (2 pi 10000^(j/32)) times in 4096 tokens; 32 turns at j = 10.5, one at 22.5."""
    plain, stretched = frequencies(64, 10000.0), frequencies(64, 10000.0, V3)
    assert torch.equal(stretched[:11], plain[:11]), "pairs 0..10 turn more than 32 times and are kept"
    torch.testing.assert_close(stretched[23:], plain[23:] / 40)
    halfway = (1 - 6 / 13) + 6 / 13 / 40  # pair 16 is 6 of the 13 steps from 10 to 23
    assert float(stretched[16] / plain[16]) == pytest.approx(halfway, rel=1e-6)
    assert magnitude(40, 1.0) == pytest.approx(1.3688879454)
    assert softmax_scale(192, V3) == pytest.approx(192**-0.5 * 1.3688879454**2)
    torch.testing.assert_close(rotations(torch.arange(5), 64, 1e4, V3).abs(), torch.ones(5, 32))


def test_factor_1_changes_nothing() -> None:
    yarn = YARNS["nothing"][0]
    assert torch.equal(rotations(torch.arange(64), 16, 1e4, yarn), rotations(torch.arange(64), 16, 1e4))
    assert softmax_scale(64, yarn) == softmax_scale(64, None) == 0.125


def test_gradient_of_a_rotation_that_also_stretches() -> None:
    """With two mscales the factors are not unit numbers; <turn x, y> = <x, turn^T y>."""
    torch.manual_seed(0)
    x, upstream = torch.randn(6, 3, 40, requires_grad=True), torch.randn(6, 3, 40)
    factors = rotations(torch.arange(6), 32, 1e4, YARNS["two mscales"][0])
    assert float(factors.abs().max()) > 1.05
    out = rotate_tail(x, factors)
    (gradient,) = torch.autograd.grad(out, x, upstream)
    torch.testing.assert_close((out * upstream).sum(), (x * gradient).sum())
