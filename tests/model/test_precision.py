"""Which matrices compute in FP8, that no others do, and that an export holds the bytes that they compute with."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from rlkit.model import DeepseekV3, DeepseekV3Config
from rlkit.model.deepseek_architecture import DeepseekArchitecture
from rlkit.model.experts import Experts, grouped_product
from rlkit.model.files.folder import Checkpoint
from rlkit.model.files.names import published_names
from rlkit.model.files.sent import in_form
from rlkit.model.precision import ARITHMETICS, COUNTERPARTS, compute_in_float8, float8_summary, other_activations
from rlkit.quant import (
    dequantise_tiles,
    float8_grouped,
    float8_linear,
    quantise_tiles,
    quantise_weight,
    straight_through,
)
from rlkit.quant.fp8 import FLOAT8, dequantise_blocks
from tests.model.float8 import TILED
from tests.model.tiny import relative, seeded

TOKENS = torch.randint(96, (40,), generator=torch.Generator().manual_seed(0))
ATTENTION = ["q_a_proj", "q_b_proj", "kv_a_proj_with_mqa", "kv_b_proj", "o_proj"]
PARTS = ["gate_proj", "up_proj", "down_proj"]
WITH_MTP = replace(TILED, num_nextn_predict_layers=1)


def made(mode: str | None, config: DeepseekV3Config = TILED) -> DeepseekV3:
    model = seeded(config).bfloat16()
    if mode is not None:
        compute_in_float8(model, mode)
    return model


def backward(model: DeepseekV3) -> tuple[Tensor, dict[str, Tensor]]:
    logits = model(TOKENS, (15, 25))
    logits.float().square().mean().backward()
    return logits.detach(), {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


def test_the_words_are_those_of_the_configuration() -> None:
    assert tuple(ARITHMETICS) == FLOAT8


@pytest.mark.parametrize("q_lora_rank", [128, None])
@pytest.mark.parametrize("mode", FLOAT8)
def test_these_matrices_and_no_others(mode: str, q_lora_rank: int | None) -> None:
    """Written out by hand: the table itself is tested against published files in test_names.py."""
    model = made(mode, replace(WITH_MTP, q_lora_rank=q_lora_rank))
    projections = ATTENTION if q_lora_rank else ["q_proj", *ATTENTION[2:]]
    expected = {f"model.layers.{i}.self_attn.{name}" for i in range(4) for name in projections}
    expected |= {f"model.layers.0.mlp.{name}" for name in PARTS}
    expected |= {f"model.layers.{i}.mlp.shared_experts.{name}" for i in (1, 2, 3) for name in PARTS}
    expected |= {f"model.layers.{i}.mlp.experts" for i in (1, 2, 3)}
    linear, experts = ARITHMETICS[mode].linear, ARITHMETICS[mode].experts
    assert {
        name for name, module in model.named_modules() if vars(module).get("product") in (linear, experts)
    } == expected
    high = {name for name, module in model.named_modules() if type(module) is nn.Linear}
    assert high == {"lm_head", "model.layers.3.eh_proj"}


@pytest.mark.parametrize("mode", FLOAT8)
def test_parameters_stay_what_they_were(mode: str) -> None:
    model = made(None)
    before = list(model.named_parameters())
    compute_in_float8(model, mode)
    after = list(model.named_parameters())
    assert [name for name, _ in after] == [name for name, _ in before]
    assert all(a is b and a.is_leaf and a.dtype == torch.bfloat16 for (_, a), (_, b) in zip(after, before, strict=True))
    assert model.state_dict().keys() == made(None).state_dict().keys()


def test_fp8_weights_is_bf16_with_the_numbers_that_an_engine_holds() -> None:
    """Bit for bit, forward and backward: the gradient of a weight is that of the rounded one in its place."""
    model, plain = made("fp8_weights"), made(None)
    with torch.no_grad():
        for name, parameter in plain.named_parameters():
            if any(part in name for part in ("self_attn", "mlp")) and not name.endswith(("norm.weight", "gate.weight")):
                parameter.copy_(straight_through(parameter))
    (ours, our_gradients), (theirs, their_gradients) = backward(model), backward(plain)
    assert torch.equal(ours, theirs)
    assert our_gradients.keys() == their_gradients.keys()
    for name, gradient in their_gradients.items():
        assert torch.equal(our_gradients[name], gradient), name
    assert not torch.equal(ours, backward(made(None))[0])


def test_fp8_quantises_what_enters_each_matrix() -> None:
    """Every module by itself, on the inputs that it gets inside the model."""
    model = made("fp8")
    seen: list[str] = []

    def compare(name: str) -> Any:
        def check(module: nn.Module, args: tuple[Tensor, ...], out: Tensor) -> None:
            if isinstance(module, Experts):
                plain = copy.deepcopy(module)
                plain.product = float8_grouped
                assert torch.equal(out, plain.forward(*args))
                plain.product = grouped_product
                assert 1e-3 < relative(out.float(), plain.forward(*args).float()) < 0.1
            elif f"{name}.weight" in fp8:
                weight = module.get_parameter("weight")
                assert torch.equal(out, float8_linear(args[0], weight))
                assert 1e-3 < relative(out.float(), nn.functional.linear(args[0], weight).float()) < 0.1
            else:
                return
            seen.append(name)

        return check

    fp8 = {name for name, place in published_names(TILED).items() if place.fp8}
    for name, module in model.named_modules():
        module.register_forward_hook(compare(name))
    _, gradients = backward(model)
    assert len(seen) == 3 * 5 + 3 * 3 + 2
    assert gradients.keys() == dict(model.named_parameters()).keys()
    assert all(gradient.isfinite().all() for gradient in gradients.values())


@pytest.mark.parametrize("dispatched", [False, True])
def test_fp8_with_activations_in_bf16_is_bf16_with_the_numbers_that_an_engine_gets(dispatched: bool) -> None:
    """Bit for bit; and what the model trains with is back afterwards, in a copy of it too."""
    model = seeded(TILED).bfloat16()
    weights = in_form(model.checkpoint_weights(), model.fp8_names(), "fp8 as bf16")
    plain = DeepseekV3(TILED).bfloat16()
    plain.load_weights(weights)
    compute_in_float8(model, "fp8", dispatched=dispatched)
    before = model(TOKENS)
    copied = copy.deepcopy(model)
    for computing in (model, copied):
        with other_activations(computing):
            assert torch.equal(computing(TOKENS), plain(TOKENS))
        assert torch.equal(computing(TOKENS), before) and not torch.equal(before, plain(TOKENS))


def test_fp8_weights_with_activations_in_fp8_multiply_codes_with_codes() -> None:
    """Every module by itself: an engine on a GPU rounds tiles of activations and has these codes."""
    model, seen = made("fp8_weights"), []

    def compare(module: nn.Module, args: tuple[Tensor, ...], out: Tensor) -> None:
        weight = module.get_parameter("weight").detach()
        stored = quantise_weight(weight, powers_of_two=True)
        expected = dequantise_tiles(*quantise_tiles(args[0]), torch.float32) @ dequantise_blocks(*stored).T
        assert relative(out.float(), expected) < 3e-3, "up to one rounding to bf16"
        assert relative(out.float(), args[0].float() @ dequantise_blocks(*stored).T) > 1e-2
        seen.append(module)

    before = model(TOKENS)
    names = {name for name, place in published_names(TILED).items() if place.fp8}
    hooks = [
        module.register_forward_hook(compare) for name, module in model.named_modules() if f"{name}.weight" in names
    ]
    with other_activations(model):
        rounded = model(TOKENS)
    for hook in hooks:
        hook.remove()
    assert len(seen) == 3 * 5 + 3 * 3
    assert torch.equal(model(TOKENS), before) and not torch.equal(rounded, before)


def test_other_activations_reach_each_expert() -> None:
    for mode in FLOAT8:
        model = made(mode)
        experts = model.get_submodule("model.layers.1.mlp.experts")
        assert isinstance(experts, Experts)
        x, shares = torch.randn(7, 128).bfloat16(), torch.ones(7, 1).bfloat16()
        chosen = torch.tensor([0, 0, 3, 3, 3, 2, 0])[:, None]  # nobody chooses expert 1
        with other_activations(model):
            out = experts(x, shares, chosen)
            linear = COUNTERPARTS[ARITHMETICS[mode].linear]
            for row, expert in enumerate(chosen.flatten().tolist()):
                gate, up = linear(x[row : row + 1], experts.gate_up_proj[expert]).chunk(2, -1)
                expected = linear(nn.functional.silu(gate) * up, experts.down_proj[expert])
                assert relative(out[row : row + 1].float(), expected.float()) < 1e-2


@pytest.mark.parametrize("mode", FLOAT8)
def test_a_copy_multiplies_with_its_own_weights(mode: str) -> None:
    """The reference is a deep copy; were it bound to the policy's weights, the KL would be 0 for ever."""
    model = made(mode)
    reference = copy.deepcopy(model)
    before = reference(TOKENS)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1.5)
    assert torch.equal(reference(TOKENS), before) and not torch.equal(model(TOKENS), before)


@pytest.mark.parametrize("mode", FLOAT8)
def test_an_export_holds_the_bytes_that_the_trainer_computes_with(mode: str, tmp_path: Path) -> None:
    """The stack of gate and up is quantised whole in the trainer, and each by itself in a file: the same blocks."""
    model = made(mode, WITH_MTP)
    model.save_checkpoint(tmp_path, dtype=mode)
    stored, checkpoint = load_file(tmp_path / "model.safetensors"), Checkpoint.open(tmp_path)
    for name, place in published_names(model.config).items():
        if not place.fp8:
            assert f"{name}_scale_inv" not in stored
            continue
        whole = model.get_parameter(place.name).detach()
        matrix = whole if place.expert is None else whole[place.expert]
        codes, scales = quantise_weight(matrix, powers_of_two=mode == "fp8_weights")
        rows, blocks = slice(place.start, place.stop), slice(place.start // 128, place.stop and -(-place.stop // 128))
        assert torch.equal(stored[name].view(torch.uint8), codes.view(torch.uint8)[rows]), name
        assert torch.equal(stored[f"{name}_scale_inv"], scales[blocks]), name
        if mode == "fp8_weights":
            assert torch.equal(checkpoint.weight(name), place.view(straight_through(whole)).float()), name


@pytest.mark.parametrize("mode", FLOAT8)
def test_a_model_from_an_export_computes_the_same(mode: str, tmp_path: Path) -> None:
    """Codes become bf16 numbers, and these the same codes."""
    model = made(mode)
    model.save_checkpoint(tmp_path, dtype=mode)
    again = DeepseekV3.from_checkpoint(tmp_path, torch.bfloat16)
    compute_in_float8(again, mode)
    assert torch.equal(again(TOKENS), model(TOKENS))


def test_the_summary_counts_published_matrices() -> None:
    assert float8_summary(published_names(WITH_MTP)) == (
        "68 matrices in FP8 (self_attn 20, mlp 3, mlp.experts 36, mlp.shared_experts 9); not: embed_tokens, lm_head, "
        "mlp.gate, mlp.gate.e_score_correction_bias, eh_proj and 8 kinds of norms"
    )


@pytest.mark.parametrize(
    ("key", "value"),
    [("hidden_size", 192), ("moe_intermediate_size", 64), ("intermediate_size", 200), ("q_lora_rank", 16)],
)
def test_widths_that_do_not_divide_are_refused(key: str, value: int) -> None:
    assert DeepseekArchitecture(config=WITH_MTP).float8_problem() is None
    assert DeepseekArchitecture(config=DeepseekV3Config()).float8_problem() is None
    found = DeepseekArchitecture(config=replace(TILED, **{key: value})).float8_problem()
    assert found == (
        f"model.architecture.{key}={value} does not divide into tiles of 128 numbers with a scale each; change it, or "
        "use trainer.dtype=bf16"
    )
    found = DeepseekArchitecture(config=replace(TILED, v_head_dim=48)).float8_problem()
    assert found is not None and found.startswith("model.architecture.num_attention_heads x v_head_dim=192 does not")


def test_a_dense_model_needs_no_width_for_experts() -> None:
    dense = replace(TILED, first_k_dense_replace=3, moe_intermediate_size=40)
    assert DeepseekArchitecture(config=dense).float8_problem() is None


def test_a_model_without_a_table_is_refused() -> None:
    with pytest.raises(TypeError, match="Linear has no table of the matrices that FP8 is for"):
        compute_in_float8(nn.Linear(1, 1), "fp8")  # type: ignore[arg-type]
