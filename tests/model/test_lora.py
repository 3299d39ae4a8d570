"""Adapters on both kinds of model: the equation, what is frozen, what engines get, and what peft reads."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from torch import Tensor
from transformers import AutoModelForCausalLM

from rlkit.model import DeepseekV3
from rlkit.model.base import CausalLM
from rlkit.model.hf import HfModel
from rlkit.model.lora import adapter_weights, add_lora, choose_targets, count_parameters, merged, write_adapter
from tests.hf_folders import make, save
from tests.model.tiny import BASE, seeded

TOKENS = torch.tensor([5, 6, 7, 8, 9, 10, 11, 3])
ATTENTION = ["kv_a_proj_with_mqa", "kv_b_proj", "o_proj", "q_a_proj", "q_b_proj"]
KINDS = ["ours", "qwen2", "llama", "deepseek"]


def plain(kind: str, folder: Path) -> CausalLM:
    if kind == "ours":
        model = seeded(replace(BASE, q_lora_rank=24))
        model.save_checkpoint(folder, dtype="fp32")
        return DeepseekV3.from_checkpoint(folder)
    return HfModel.from_checkpoint(save(make(kind), folder))


def adapted(kind: str, folder: Path, *, rank: int = 4, alpha: float = 6, seed: int = 0) -> CausalLM:
    """A model whose adapters are no longer at 0."""
    model = plain(kind, folder)
    add_lora(model, rank=rank, alpha=alpha, targets="all-linear", seed=seed)
    torch.manual_seed(7)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.2)
    return model


@torch.no_grad()
def logits(model: CausalLM) -> Tensor:
    return model.lm_head(model.hidden(TOKENS))


@pytest.mark.parametrize("kind", KINDS)
def test_merged_weights_are_the_formula_and_compute_the_same(kind: str, tmp_path: Path) -> None:
    """W + (alpha / r) B A, in float64, under published names."""
    model, base = adapted(kind, tmp_path), dict(plain(kind, tmp_path).checkpoint_weights())
    adapters, sent = adapter_weights(model), dict(model.checkpoint_weights())
    assert sent.keys() == base.keys()
    changed = set()
    for name, tensor in sent.items():
        layer = f"base_model.model.{name.removesuffix('.weight')}"
        expected = base[name].double()
        if f"{layer}.lora_A.weight" in adapters:
            changed.add(name)
            product = adapters[f"{layer}.lora_B.weight"].double() @ adapters[f"{layer}.lora_A.weight"].double()
            expected = expected + 6 / 4 * product
        torch.testing.assert_close(tensor.double(), expected, rtol=0, atol=1e-6)
    assert len(changed) * 2 == len(adapters) > 0
    fresh = plain(kind, tmp_path)
    assert (logits(fresh) - logits(model)).abs().max() > 0.05, "the adapters do nothing, so this shows nothing"
    fresh.load_weights(sent.items())
    torch.testing.assert_close(logits(fresh), logits(model), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_a_new_adapter_changes_nothing_and_is_all_that_is_trained(kind: str, tmp_path: Path) -> None:
    model, base = plain(kind, tmp_path), plain(kind, tmp_path)
    add_lora(model, rank=4, alpha=8, targets="all-linear", seed=0)
    assert torch.equal(logits(model), logits(base))
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert trained and all(".lora_A." in name or ".lora_B." in name for name in trained)
    assert sum(p.numel() for p in model.parameters() if p.requires_grad) == count_parameters(
        base, 4, choose_targets(base, "all-linear")
    )
    for (name, tensor), (other, expected) in zip(model.checkpoint_weights(), base.checkpoint_weights(), strict=True):
        assert name == other and torch.equal(tensor, expected), name


@pytest.mark.parametrize("kind", KINDS)
def test_peft_loads_what_is_written(kind: str, tmp_path: Path) -> None:
    """Onto transformers' class of the same checkpoint; for ours that is DeepseekV3ForCausalLM."""
    model = adapted(kind, tmp_path / "base")
    folder = tmp_path / "adapter"
    write_adapter(folder, adapter_weights(model), rank=4, alpha=6, base=tmp_path / "base")
    assert {file.name for file in folder.iterdir()} == {"adapter_config.json", "adapter_model.safetensors"}
    theirs = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(tmp_path / "base"), folder).eval()
    with torch.no_grad():
        expected_TV = theirs(TOKENS.unsqueeze(0)).logits[0]
    torch.testing.assert_close(logits(model), expected_TV, rtol=1e-4, atol=1e-5)


def test_the_same_seed_gives_the_same_adapter_and_moves_no_other_random_number(tmp_path: Path) -> None:
    torch.manual_seed(99)
    state = torch.get_rng_state()
    made = []
    for seed in (1, 1, 2):
        model = HfModel.from_checkpoint(save(make("llama"), tmp_path))
        torch.set_rng_state(state)
        add_lora(model, rank=2, alpha=2, targets=["q_proj"], seed=seed)
        assert torch.equal(torch.get_rng_state(), state)
        made.append(adapter_weights(model))
    key = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"
    assert torch.equal(made[0][key], made[1][key]) and not torch.equal(made[0][key], made[2][key])


def test_all_linear_leaves_head_router_and_experts_alone(tmp_path: Path) -> None:
    assert choose_targets(plain("ours", tmp_path / "a"), "all-linear") == ATTENTION
    assert choose_targets(plain("deepseek", tmp_path / "b"), "all-linear") == ATTENTION
    dense = ["down_proj", "gate_proj", "k_proj", "o_proj", "q_proj", "up_proj", "v_proj"]
    assert choose_targets(plain("qwen2", tmp_path / "c"), "all-linear") == dense
    assert choose_targets(plain("qwen2", tmp_path / "c"), ("v_proj", "q_proj")) == ["v_proj", "q_proj"]
    assert choose_targets(plain("qwen2", tmp_path / "c"), "v_proj") == ["v_proj"]


@pytest.mark.parametrize(
    ("targets", "words"),
    [
        (("q_proj", "value"), r"value cannot be a target; give all-linear or some of down_proj, .*, v_proj"),
        (("lm_head",), r"lm_head cannot be a target; give"),
        ("embed_tokens", r"trainer.lora.targets='embed_tokens': embed_tokens cannot be a target; give"),
        ((), r"trainer.lora.targets=\(\): it is empty"),
    ],
)
def test_wrong_targets_are_answered_with_those_there_are(targets: object, words: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=words):
        choose_targets(plain("qwen2", tmp_path), targets)  # type: ignore[arg-type]


def test_layers_that_peft_would_take_for_experts_are_refused(tmp_path: Path) -> None:
    for kind in ("ours", "deepseek"):
        with pytest.raises(ValueError, match=r"gate_proj cannot be a target \(peft would take it for the routed exper"):
            choose_targets(plain(kind, tmp_path / kind), ["gate_proj"])


def test_counting_by_hand(tmp_path: Path) -> None:
    """Qwen2 with hidden 64, 2 heads and 1 key head of 32: q 64 -> 64, v 64 -> 32, in two layers."""
    assert count_parameters(plain("qwen2", tmp_path), 4, ["q_proj", "v_proj"]) == 2 * 4 * ((64 + 64) + (64 + 32))


def test_without_adapters_nothing_is_merged_or_copied() -> None:
    model = seeded()
    state = merged(model)
    assert all(state[name].data_ptr() == tensor.data_ptr() for name, tensor in model.state_dict().items())
    assert adapter_weights(model) == {}


def test_in_bf16_the_sum_is_rounded_once(tmp_path: Path) -> None:
    model = HfModel.from_checkpoint(save(make("llama"), tmp_path), torch.bfloat16)
    add_lora(model, rank=4, alpha=4, targets=["q_proj"], seed=0)
    layer = model.inner.get_submodule("model.layers.0.self_attn.q_proj")
    torch.nn.init.normal_(layer.lora_B["default"].weight, std=0.3)
    a, b = layer.lora_A["default"].weight.detach().double(), layer.lora_B["default"].weight.detach().double()
    weight = merged(model.inner)["model.layers.0.self_attn.q_proj.weight"]
    assert weight.dtype == torch.bfloat16
    exact = layer.base_layer.weight.detach().double() + b @ a
    assert (weight.double() - exact).abs().max() <= exact.abs().max() * 2**-8
