"""Checkpoint folders that our model writes: every dtype comes back, in one file or in shards."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from rlkit.model import DeepseekV3, DeepseekV3Config
from rlkit.model.files.folder import QUANTISATION
from rlkit.model.files.names import published_names
from rlkit.quant.fp8 import dequantise_blocks
from tests.model.tiny import BASE, seeded

WIDE = replace(BASE, hidden_size=256, intermediate_size=384, kv_lora_rank=512, qk_rope_head_dim=64)
"""Several blocks in most matrices; kv_a_proj_with_mqa has 576 rows, as V3's."""


def read_folder(folder: Path) -> dict[str, torch.Tensor]:
    return {name: tensor for file in folder.glob("*.safetensors") for name, tensor in load_file(file).items()}


def same_states(one: DeepseekV3, two: DeepseekV3) -> bool:
    states = two.state_dict()
    return all(torch.equal(tensor, states[name]) for name, tensor in one.state_dict().items())


@pytest.mark.parametrize("tied", [False, True])
def test_fp32_round_trip_is_exact_and_draws_no_random_number(tied: bool, tmp_path: Path) -> None:
    model = seeded(replace(BASE, q_lora_rank=24, tie_word_embeddings=tied))
    model.save_checkpoint(tmp_path, dtype="fp32")
    before = torch.get_rng_state()
    loaded = DeepseekV3.from_checkpoint(tmp_path)
    assert torch.equal(before, torch.get_rng_state())
    assert loaded.config == model.config
    assert (loaded.lm_head.weight is loaded.model.embed_tokens.weight) == tied
    assert same_states(model, loaded)
    assert all(parameter.requires_grad for parameter in loaded.parameters())


def test_bf16_is_the_default_and_spares_the_bias(tmp_path: Path) -> None:
    model = seeded()
    model.save_checkpoint(tmp_path)
    saved = load_file(tmp_path / "model.safetensors")
    kinds = {name: tensor.dtype for name, tensor in saved.items()}
    assert {name for name, kind in kinds.items() if kind == torch.float32} == {
        f"model.layers.{i}.mlp.gate.e_score_correction_bias" for i in (1, 2)
    }
    assert set(kinds.values()) == {torch.float32, torch.bfloat16}
    assert json.loads((tmp_path / "config.json").read_text())["dtype"] == "bfloat16"
    loaded = DeepseekV3.from_checkpoint(tmp_path, dtype=torch.bfloat16)
    assert loaded.lm_head.weight.dtype == torch.bfloat16
    assert torch.equal(loaded.lm_head.weight, model.lm_head.weight.bfloat16())


def test_fp8_holds_what_the_published_model_holds(tmp_path: Path) -> None:
    model = seeded(WIDE)
    model.save_checkpoint(tmp_path, dtype="fp8")
    saved = read_folder(tmp_path)
    table = published_names(WIDE)
    assert saved.keys() == {*table, *(f"{name}_scale_inv" for name, place in table.items() if place.fp8)}
    for name, place in table.items():
        bias = name.endswith("e_score_correction_bias")
        kind = torch.float8_e4m3fn if place.fp8 else torch.float32 if bias else torch.bfloat16
        assert saved[name].dtype == kind and tuple(saved[name].shape) == place.shape, name
    latent = saved["model.layers.0.self_attn.kv_a_proj_with_mqa.weight_scale_inv"]
    assert latent.shape == (5, 2) and latent.dtype == torch.float32
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["quantization_config"] == {
        "quant_method": "fp8",
        "fmt": "e4m3",
        "activation_scheme": "dynamic",
        "weight_block_size": [128, 128],
    }
    assert config["dtype"] == "bfloat16"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_fp8_is_loaded_as_code_times_scale_and_saved_again_bit_for_bit(dtype: torch.dtype, tmp_path: Path) -> None:
    seeded(WIDE).save_checkpoint(tmp_path / "a", dtype="fp8")
    saved = read_folder(tmp_path / "a")
    loaded = DeepseekV3.from_checkpoint(tmp_path / "a", dtype)
    for name, tensor in loaded.checkpoint_weights():
        scales = saved.get(f"{name}_scale_inv")
        expected = saved[name] if scales is None else dequantise_blocks(saved[name], scales)
        assert torch.equal(tensor, expected.to(tensor.dtype)), name
    loaded.save_checkpoint(tmp_path / "b", dtype="fp8")
    assert (tmp_path / "a" / "model.safetensors").read_bytes() == (tmp_path / "b" / "model.safetensors").read_bytes()


def test_fp8_costs_little_of_the_logits(tmp_path: Path) -> None:
    """E4M3 keeps 4 bits: a matrix is off by 2.6e-2 of its norm, 21 of them in a row by sqrt(21) times that, 0.12."""
    model = seeded(replace(WIDE, first_k_dense_replace=3))
    model.save_checkpoint(tmp_path, dtype="fp8")
    tokens = torch.arange(40) % 96
    with torch.no_grad():
        exact, rounded = model(tokens), DeepseekV3.from_checkpoint(tmp_path)(tokens)
    gap = float((rounded - exact).norm() / exact.norm())
    assert 1e-3 < gap < 0.2, gap


def test_refuses_other_dtypes(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="dtype='int4': give one of bf16, fp8, fp8_weights, fp32"):
        seeded().save_checkpoint(tmp_path / "out", dtype="int4")
    with pytest.raises(ValueError, match="max_shard_bytes=0: give a positive number"):
        seeded().save_checkpoint(tmp_path / "out", max_shard_bytes=0)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("dtype", ["fp32", "fp8"])
def test_shards_are_written_below_the_limit_and_read(dtype: str, tmp_path: Path) -> None:
    limit = 100_000
    model = seeded()
    model.save_checkpoint(tmp_path / "one", dtype=dtype)
    model.save_checkpoint(tmp_path / "many", dtype=dtype, max_shard_bytes=limit)
    index = json.loads((tmp_path / "many" / "model.safetensors.index.json").read_text())
    shards = sorted(set(index["weight_map"].values()))
    assert shards == [f"model-{i + 1:05}-of-{len(shards):05}.safetensors" for i in range(len(shards))]
    assert len(shards) > 2 and {*shards, "config.json", "model.safetensors.index.json"} == {
        file.name for file in (tmp_path / "many").iterdir()
    }
    total = 0
    for shard in shards:
        held = load_file(tmp_path / "many" / shard)
        size = sum(tensor.nbytes for tensor in held.values())
        assert size <= limit
        total += size
        assert {name for name, file in index["weight_map"].items() if file == shard} == held.keys()
        assert all(name.removesuffix("_scale_inv") in held for name in held), "a scale lies apart from its weight"
    assert index["metadata"] == {"total_size": total}
    one, many = (DeepseekV3.from_checkpoint(tmp_path / name) for name in ("one", "many"))
    assert same_states(one, many)


def test_a_published_quantization_config_is_not_part_of_the_architecture(tmp_path: Path) -> None:
    seeded().save_checkpoint(tmp_path, dtype="fp8")
    raw = json.loads((tmp_path / "config.json").read_text())
    assert raw.pop("quantization_config") == QUANTISATION
    assert DeepseekV3.from_checkpoint(tmp_path).config == DeepseekV3Config.from_hf(raw) == BASE
