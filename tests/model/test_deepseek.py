"""The whole model without a reference: batches and packs, seeds, memory, determinism."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from rlkit.model import DeepseekV3
from rlkit.model.attention import MLA
from rlkit.model.ragged import lay_out
from tests.model.tiny import BASE, relative, seeded


def test_a_batch_is_a_pack_of_equal_samples() -> None:
    model = seeded()
    tokens = torch.randint(0, 96, (4, 11))
    packed = model(tokens.flatten(), (11,) * 4)
    assert torch.equal(model(tokens), packed.view(4, 11, 96))
    assert relative(model(tokens[2]), model(tokens)[2]) <= 1e-6


def test_samples_do_not_see_each_other_nor_the_future() -> None:
    model = seeded()
    lengths = (6, 9, 4)
    tokens_T = torch.randint(0, 96, (19,))
    changed_T = tokens_T.clone()
    changed_T[10] = (changed_T[10] + 1) % 96  # token 4 of the second sample
    before, after = model(tokens_T, lengths), model(changed_T, lengths)
    moved = (before - after).abs().amax(1) > 1e-6
    assert moved.nonzero().flatten().tolist() == list(range(10, 15))


def test_gradients_of_a_pack_are_those_of_its_samples() -> None:
    model = seeded(replace(BASE, q_lora_rank=24))
    lengths = (3, 30, 8, 1, 8)
    tokens_T = torch.randint(0, 96, (sum(lengths),))
    upstream = torch.randn(sum(lengths), 96)
    model(tokens_T, lengths).backward(upstream)
    packed = [p.grad.clone() for p in model.parameters()]  # pyright: ignore[reportOptionalMemberAccess]
    model.zero_grad()
    for tokens, grad in zip(tokens_T.split(lengths), upstream.split(lengths), strict=True):
        model(tokens).backward(grad)
    for (name, parameter), gradient in zip(model.named_parameters(), packed, strict=True):
        assert parameter.grad is not None
        assert relative(gradient, parameter.grad) <= 1e-5, name


@pytest.mark.parametrize("lengths", [(64,) * 4, (300, 300, 150), (7, 290, 33, 5)])
def test_attention_equals_softmax_written_out_in_float64(lengths: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    layer = MLA(BASE)
    exact = MLA(BASE).double()
    exact.load_state_dict(layer.state_dict())
    x_TD = torch.randn(sum(lengths), BASE.hidden_size)
    angles = torch.polar(torch.ones(sum(lengths), 4), torch.rand(sum(lengths), 4))
    samples = []
    for x, turn in zip(x_TD.double().split(lengths), angles.split(lengths), strict=True):
        q, (latent, key) = exact.queries(x, turn), exact.latents(x, turn)
        k_nope, v = exact.kv_b_proj(latent).view(len(x), 4, 28).split([16, 12], dim=-1)
        k = torch.cat([k_nope, key[:, None].expand(-1, 4, -1)], dim=-1)
        scores = torch.einsum("qhd,khd->hqk", q, k) * 24**-0.5
        scores = scores.masked_fill(torch.ones(len(x), len(x), dtype=torch.bool).triu(1), float("-inf"))
        samples.append(exact.o_proj(torch.einsum("hqk,khd->qhd", scores.softmax(-1), v).flatten(1)))
    assert relative(layer(x_TD, angles, lay_out(lengths, x_TD.device)), torch.cat(samples)) <= 2e-6


@pytest.mark.parametrize("lengths", [(32,) * 8, (40, 3, 17, 3, 60, 5)])
def test_same_bits_on_every_run(lengths: tuple[int, ...]) -> None:
    model = seeded()
    tokens_T = torch.randint(0, 96, (sum(lengths),))
    runs = []
    for _ in range(2):
        model.zero_grad()
        model(tokens_T, lengths).square().mean().backward()
        runs.append([parameter.grad for parameter in model.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*runs, strict=True))


def test_the_callers_seed_decides_the_weights() -> None:
    torch.manual_seed(3)
    first = DeepseekV3(BASE).state_dict()
    torch.manual_seed(3)
    again = DeepseekV3(BASE)
    assert all(torch.equal(first[name], tensor) for name, tensor in again.state_dict().items())
    for name, tensor in first.items():
        if "norm" in name:
            assert bool((tensor == 1).all())
        elif name.endswith("e_score_correction_bias"):
            assert not tensor.any()
        else:
            assert 0.09 < tensor.std() < 0.11 and tensor.mean().abs() < 0.02, name


@pytest.mark.parametrize(
    ("shape", "lengths", "message"),
    [((6,), (2, 3), r"lengths=\(2, 3\) sum to 5; they must sum to 6"), ((2, 3), (3, 3), "flatten them")],
)
def test_refuses_lengths_that_do_not_fit(shape: tuple[int, ...], lengths: tuple[int, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        seeded()(torch.zeros(shape, dtype=torch.long), lengths)


def test_saved_activations_grow_with_the_number_of_samples_not_with_its_square() -> None:
    model = seeded()

    def saved(num: int) -> int:
        sizes = []
        with torch.autograd.graph.saved_tensors_hooks(lambda t: (sizes.append(t.numel()), t)[1], lambda t: t):
            model(torch.zeros(num * 16, dtype=torch.long), (16,) * num)
        return sum(sizes) - sum(p.numel() for p in model.parameters())

    assert saved(64) < 4.2 * saved(16)


def test_trace_names_every_block_in_order_and_leaves_no_hook() -> None:
    model = seeded()
    tokens = [5, 9, 2, 77]
    found = model.trace(tokens)
    blocks = [f"model.layers.{i}.{part}" for i in range(3) for part in ("self_attn", "mlp")]
    margins = [found.pop(f"model.layers.{i}.mlp.gate") for i in range(model.config.first_k_dense_replace, 3)]
    assert all(margin.shape == (4, 1) and (margin >= 0).all() for margin in margins)
    assert list(found) == [*blocks, "model.norm"]
    assert all(out.shape == (4, 64) and not out.requires_grad for out in found.values())
    assert torch.equal(found["model.norm"], model.hidden(torch.tensor(tokens)))
    embedded = model.model.embed_tokens(torch.tensor(tokens))
    residual = embedded + sum(out for name, out in found.items() if name != "model.norm")
    torch.testing.assert_close(model.model.norm(residual), found["model.norm"])
    assert not any(module._forward_hooks for module in model.modules())
