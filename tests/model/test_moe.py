"""The mixture of experts against a plain loop in float64, and the corners of sorting tokens by expert."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from rlkit.model.experts import Experts
from rlkit.model.moe import MoE, Router
from tests.model.tiny import BASE, relative, seeded


def naive(experts: Experts, x_TD: Tensor, weights_TK: Tensor, experts_TK: Tensor) -> Tensor:
    """sum_k g_tk expert_k(x_t), token by token."""
    rows = []
    for x, weights, chosen in zip(x_TD, weights_TK, experts_TK, strict=True):
        y = torch.zeros_like(x)
        for weight, e in zip(weights, chosen.tolist(), strict=True):
            gate, up = (experts.gate_up_proj[e] @ x).chunk(2)
            y = y + weight * (experts.down_proj[e] @ (F.silu(gate) * up))
        rows.append(y)
    return torch.stack(rows)


def a_layer(num_experts: int, k: int) -> tuple[MoE, Tensor, Tensor, Tensor]:
    config = replace(BASE, n_routed_experts=num_experts, num_experts_per_tok=k, first_k_dense_replace=0)
    layer = seeded(config).model.layers[0].mlp
    assert isinstance(layer, MoE)
    torch.manual_seed(1)
    x_TD = torch.randn(33, config.hidden_size)
    routing = layer.gate(x_TD)
    return layer, x_TD, routing.weights_TK.detach(), routing.experts_TK


@pytest.mark.parametrize(("num_experts", "k"), [(4, 1), (8, 2), (16, 4), (64, 8)])
def test_value_and_gradients_equal_a_plain_loop_in_float64(num_experts: int, k: int) -> None:
    layer, x_TD, weights_TK, experts_TK = a_layer(num_experts, k)
    leaves = [x_TD.requires_grad_(), weights_TK.requires_grad_(), *layer.experts.parameters()]
    out = layer.experts(x_TD, weights_TK, experts_TK)
    upstream = torch.randn_like(out)
    found = torch.autograd.grad(out, leaves, upstream)
    exact = Experts(layer.gate.config).double()
    exact.load_state_dict(layer.experts.state_dict())
    doubles = [leaf.detach().double().requires_grad_() for leaf in leaves[:2]]
    expected_out = naive(exact, *doubles, experts_TK)
    expected = torch.autograd.grad(expected_out, [*doubles, *exact.parameters()], upstream.double())
    assert relative(out, expected_out) <= 2e-6
    for name, a, b in zip(("x", "weights", "gate_up", "down"), found, expected, strict=True):
        assert relative(a, b) <= 2e-6, f"gradient of {name} with {num_experts} experts: {relative(a, b):.2e}"


def test_experts_without_tokens_get_zero_gradients() -> None:
    layer, x_TD, weights_TK, experts_TK = a_layer(8, 2)
    experts_TK = torch.where(experts_TK == 3, 4, experts_TK).clamp(1, 6)
    layer.experts(x_TD, weights_TK, experts_TK).square().sum().backward()
    for parameter in layer.experts.parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all()
        for e in range(8):
            used = bool((experts_TK == e).any())
            assert bool(parameter.grad[e].any()) == used, f"expert {e}"
    assert not (experts_TK == 0).any() and not (experts_TK == 3).any() and not (experts_TK == 7).any()


@pytest.mark.parametrize("threads", [1, 2])
def test_same_bits_on_every_run(threads: int) -> None:
    layer, _, _, _ = a_layer(16, 4)
    x_TD = torch.randn(2048, BASE.hidden_size)
    torch.set_num_threads(threads)
    runs = []
    for _ in range(3):
        layer.zero_grad()
        layer(x_TD).square().mean().backward()
        runs.append([parameter.grad for parameter in layer.parameters()])
    for run in runs[1:]:
        assert all(torch.equal(a, b) for a, b in zip(runs[0], run, strict=True))


def test_the_bias_stays_fp32_when_the_model_is_cast() -> None:
    router = Router(BASE)
    router.e_score_correction_bias.fill_(0.1234567)
    exact = router.e_score_correction_bias.clone()
    router.to(torch.bfloat16)
    assert router.weight.dtype == torch.bfloat16
    assert router.e_score_correction_bias.dtype == torch.float32
    assert torch.equal(router.e_score_correction_bias, exact)
    router.to("meta").to_empty(device="cpu")
    assert router.e_score_correction_bias.device.type == "cpu"


def test_bias_moves_the_choice_but_not_the_weights() -> None:
    layer, x_TD, _, _ = a_layer(8, 2)
    layer.gate.e_score_correction_bias.zero_()
    layer.gate.e_score_correction_bias[5] = 10.0
    routing = layer.gate(x_TD)
    assert (routing.experts_TK == 5).any(1).all()
    torch.testing.assert_close(routing.weights_TK.sum(1), torch.full((33,), BASE.routed_scaling_factor))
    assert (routing.weights_TK < 0.99 * BASE.routed_scaling_factor).all(), (
        "a bias of 10 would leave no weight to the other"
    )
