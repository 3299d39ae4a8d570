"""The table of names is a bijection, it is the published one, and loading is strict."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from rlkit.model import DeepseekV3, DeepseekV3Config
from rlkit.model.files.names import EMBEDDING, HEAD, published_names
from rlkit.quant.fp8 import block_grid
from tests.model.tiny import BASE, seeded

CONFIGS = [BASE, replace(BASE, q_lora_rank=24, first_k_dense_replace=0), replace(BASE, first_k_dense_replace=3)]

# The headers of the published DeepSeek-V3 (a listing of them: the README of github.com/simpx/model-inspect).
PUBLISHED_TENSORS = 91_991
PUBLISHED_BYTES = 688_574_839_360
PUBLISHED_ROWS = """
embed_tokens.weight 129280 7168 BF16
layers.0.self_attn.q_a_proj.weight 1536 7168 F8_E4M3 12 56
layers.0.self_attn.q_a_layernorm.weight 1536 BF16
layers.0.self_attn.q_b_proj.weight 24576 1536 F8_E4M3 192 12
layers.0.self_attn.kv_a_proj_with_mqa.weight 576 7168 F8_E4M3 5 56
layers.0.self_attn.kv_a_layernorm.weight 512 BF16
layers.0.self_attn.kv_b_proj.weight 32768 512 F8_E4M3 256 4
layers.0.self_attn.o_proj.weight 7168 16384 F8_E4M3 56 128
layers.0.mlp.gate_proj.weight 18432 7168 F8_E4M3 144 56
layers.0.mlp.up_proj.weight 18432 7168 F8_E4M3 144 56
layers.0.mlp.down_proj.weight 7168 18432 F8_E4M3 56 144
layers.0.input_layernorm.weight 7168 BF16
layers.0.post_attention_layernorm.weight 7168 BF16
layers.61.embed_tokens.weight 129280 7168 BF16
layers.61.enorm.weight 7168 BF16
layers.61.hnorm.weight 7168 BF16
layers.61.eh_proj.weight 7168 14336 BF16
layers.61.shared_head.norm.weight 7168 BF16
layers.61.shared_head.head.weight 129280 7168 BF16
"""


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


def test_the_table_of_671b_is_a_bijection() -> None:
    """On the meta device: the places in each of our tensors lie side by side without gap or overlap, and fill it."""
    config = DeepseekV3Config()
    with torch.device("meta"):
        ours = DeepseekV3(config).state_dict()
    places = defaultdict(lambda: defaultdict(list))
    for name, place in published_names(config).items():
        target = ours[place.name]
        assert place.shape == tuple(place.view(target).shape), name
        rows = place.stop or (target.shape[0] if place.expert is None else target.shape[1])
        places[place.name][place.expert] += [place.start, rows]
    assert places.keys() == ours.keys()
    for name, experts in places.items():
        stacked = ".mlp.experts." in name
        assert experts.keys() == (set(range(256)) if stacked else {None}), name
        for expert, found in experts.items():
            edges = [0, *sorted(found), ours[name].shape[1 if stacked else 0]]
            assert edges[::2] == edges[1::2], f"{name} of expert {expert}: {edges}"


def test_names_shapes_and_bytes_of_671b_are_the_published_ones() -> None:
    table = published_names(DeepseekV3Config(num_nextn_predict_layers=1))
    scales = {name: block_grid(place.shape) for name, place in table.items() if place.fp8}
    print(f"{len(table)} weights, {sum(math.prod(place.shape) for place in table.values()):,} numbers")
    assert len(table) + len(scales) == PUBLISHED_TENSORS
    size = 0
    for name, place in table.items():
        each = 1 if place.fp8 else 4 if name.endswith("e_score_correction_bias") else 2
        size += each * math.prod(place.shape) + 4 * math.prod(scales.get(name, (0,)))
    assert size == PUBLISHED_BYTES
    for row in PUBLISHED_ROWS.split("\n")[1:-1]:
        short, *words = row.split()
        name = f"model.{short}"
        kind = "F8_E4M3" if table[name].fp8 else "BF16"
        assert words == [*map(str, table[name].shape), kind, *map(str, scales.get(name, ()))], name


def test_parameters_without_mtp_are_671b() -> None:
    table = published_names(DeepseekV3Config())
    biases = 58 * 256  # buffers, not parameters
    assert sum(math.prod(place.shape) for place in table.values()) - biases == 671_026_404_352


def test_experts_are_stacked_gate_over_up() -> None:
    model = seeded()
    published = dict(model.checkpoint_weights())
    experts = model.state_dict()["model.layers.1.mlp.experts.gate_up_proj"]
    assert torch.equal(published["model.layers.1.mlp.experts.5.gate_proj.weight"], experts[5, :32])
    assert torch.equal(published["model.layers.1.mlp.experts.5.up_proj.weight"], experts[5, 32:])
    assert Counter(tensor.requires_grad for tensor in published.values()) == {False: len(published)}


@pytest.mark.parametrize("tied", [False, True])
def test_loading_what_was_published_restores_every_bit(tied: bool) -> None:
    source, target = (seeded(replace(BASE, tie_word_embeddings=tied), seed) for seed in (1, 2))
    target.load_weights(reversed(list(source.checkpoint_weights())))
    states = target.state_dict()
    assert all(torch.equal(tensor, states[name]) for name, tensor in source.state_dict().items())


@pytest.mark.parametrize("head", ["equal", "missing", "different"])
def test_a_tied_head_may_be_left_out_of_a_file_but_not_differ(head: str, tmp_path: Path) -> None:
    """A head of its own was read past without a word, and the model went on with the embedding in its place."""
    model = seeded(replace(BASE, tie_word_embeddings=True))
    model.save_checkpoint(tmp_path, dtype="fp32")
    file = tmp_path / "model.safetensors"
    weights = load_file(file)
    weights[HEAD] = weights[HEAD] + (1 if head == "different" else 0)
    kept = {name: tensor for name, tensor in weights.items() if head != "missing" or name != HEAD}
    save_file(kept, file, metadata={"format": "pt"})
    if head == "different":
        with pytest.raises(ValueError, match=rf"{HEAD}: not equal to {EMBEDDING}, which it is a copy of"):
            DeepseekV3.from_checkpoint(tmp_path)
        with pytest.raises(ValueError, match=r"not equal to .*, but the model has one tensor for both"):
            model.load_weights(weights.items())
    else:
        states = DeepseekV3.from_checkpoint(tmp_path).state_dict()
        assert all(torch.equal(tensor, states[name]) for name, tensor in model.state_dict().items())


def test_loading_is_strict() -> None:
    model = seeded()
    full = dict(model.checkpoint_weights())
    name = "model.layers.2.mlp.experts.3.up_proj.weight"
    with pytest.raises(ValueError, match=f"{name}: missing, with 0 others"):
        model.load_weights(((key, tensor) for key, tensor in full.items() if key != name))
    with pytest.raises(ValueError, match=r"model.layers.9.norm: this model has no such weight"):
        model.load_weights([*full.items(), ("model.layers.9.norm", torch.zeros(1))])
    with pytest.raises(ValueError, match=rf"{name}: shape \(2, 64\), but .* makes it \(32, 64\)"):
        model.load_weights([(name, torch.zeros(2, 64))])
    with pytest.raises(ValueError, match=f"{name}: given twice"):
        model.load_weights([(name, full[name]), (name, full[name])])
