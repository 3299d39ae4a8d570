"""The table of names is a bijection, and loading is strict."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from rlkit.model import DeepseekV3, DeepseekV3Config
from rlkit.model.weights import checkpoint_weights, load_weights, published_names
from tests.model.tiny import BASE, seeded

CONFIGS = [BASE, replace(BASE, q_lora_rank=24, first_k_dense_replace=0), replace(BASE, first_k_dense_replace=3)]


@pytest.mark.parametrize("config", CONFIGS)
def test_every_number_of_ours_has_exactly_one_published_name(config: DeepseekV3Config) -> None:
    """Number all entries, read them through the table: each comes out once, so the table is a bijection."""
    model = DeepseekV3(config)
    start = 0
    numbered: dict[str, Tensor] = {}
    for name, tensor in model.state_dict().items():
        numbered[name] = torch.arange(start, start + tensor.numel()).view(tensor.shape)
        start += tensor.numel()
    read = [place.view(numbered[place.name]).flatten() for place in published_names(config).values()]
    assert torch.equal(torch.cat(read).sort().values, torch.arange(start))


def test_experts_are_stacked_gate_over_up() -> None:
    model = seeded()
    published = dict(checkpoint_weights(model))
    experts = model.state_dict()["model.layers.1.mlp.experts.gate_up_proj"]
    assert torch.equal(published["model.layers.1.mlp.experts.5.gate_proj.weight"], experts[5, :32])
    assert torch.equal(published["model.layers.1.mlp.experts.5.up_proj.weight"], experts[5, 32:])
    assert Counter(tensor.requires_grad for tensor in published.values()) == {False: len(published)}


@pytest.mark.parametrize("tied", [False, True])
def test_loading_what_was_published_restores_every_bit(tied: bool) -> None:
    source, target = (seeded(replace(BASE, tie_word_embeddings=tied), seed) for seed in (1, 2))
    load_weights(target, reversed(list(checkpoint_weights(source))))
    states = target.state_dict()
    assert all(torch.equal(tensor, states[name]) for name, tensor in source.state_dict().items())


def test_loading_is_strict() -> None:
    model = seeded()
    full = dict(checkpoint_weights(model))
    name = "model.layers.2.mlp.experts.3.up_proj.weight"
    with pytest.raises(ValueError, match=f"{name}: missing, with 0 others"):
        load_weights(model, ((key, tensor) for key, tensor in full.items() if key != name))
    with pytest.raises(ValueError, match=r"model.layers.9.norm: this model has no such weight"):
        load_weights(model, [*full.items(), ("model.layers.9.norm", torch.zeros(1))])
    with pytest.raises(ValueError, match=rf"{name} in a.safetensors: shape \(2, 64\), but .* makes it \(32, 64\)"):
        load_weights(model, [(name, torch.zeros(2, 64))], {name: "a.safetensors"})
    with pytest.raises(ValueError, match=f"{name}: given twice"):
        load_weights(model, [(name, full[name]), (name, full[name])])
