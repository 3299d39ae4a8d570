"""Checkpoint folders: what comes back, and what a broken one says."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from rlkit.model import DeepseekV3
from tests.model.tiny import BASE, seeded


@pytest.mark.parametrize("tied", [False, True])
def test_fp32_round_trip_is_exact_and_draws_no_random_number(tied: bool, tmp_path: Path) -> None:
    model = seeded(replace(BASE, q_lora_rank=24, tie_word_embeddings=tied))
    model.save_checkpoint(tmp_path, dtype="fp32")
    before = torch.get_rng_state()
    loaded = DeepseekV3.from_checkpoint(tmp_path)
    assert torch.equal(before, torch.get_rng_state())
    assert loaded.config == model.config
    assert (loaded.lm_head.weight is loaded.model.embed_tokens.weight) == tied
    states = loaded.state_dict()
    assert all(torch.equal(tensor, states[name]) for name, tensor in model.state_dict().items())
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


@pytest.mark.parametrize("dtype", ["fp8", "int4"])
def test_refuses_other_dtypes(dtype: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=f"dtype='{dtype}': give one of bf16, fp32"):
        seeded().save_checkpoint(tmp_path / "out", dtype=dtype)
    assert not (tmp_path / "out").exists()


def test_saving_over_an_old_checkpoint_keeps_strangers_and_removes_stale_shards(tmp_path: Path) -> None:
    sharded(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{}")
    model = seeded(seed=9)
    model.save_checkpoint(tmp_path, dtype="fp32")
    assert sorted(file.name for file in tmp_path.iterdir()) == ["config.json", "model.safetensors", "tokenizer.json"]
    assert torch.equal(DeepseekV3.from_checkpoint(tmp_path).lm_head.weight, model.lm_head.weight)


def test_an_interrupted_save_leaves_the_old_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    old = seeded(seed=1)
    old.save_checkpoint(tmp_path, dtype="fp32")

    def killed(*_args: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("rlkit.model.checkpoint.os.fsync", killed)
    with pytest.raises(KeyboardInterrupt):
        seeded(seed=2).save_checkpoint(tmp_path, dtype="fp32")
    assert torch.equal(DeepseekV3.from_checkpoint(tmp_path).lm_head.weight, old.lm_head.weight)


def sharded(folder: Path) -> None:
    """Write a checkpoint in two shards, as published ones are."""
    model = seeded()
    model.save_checkpoint(folder, dtype="fp32")
    weights = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    names = sorted(weights)
    where = {name: f"model-0000{1 + (i % 2)}-of-00002.safetensors" for i, name in enumerate(names)}
    for shard in set(where.values()):
        save_file({name: weights[name] for name in names if where[name] == shard}, folder / shard)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": where}))


def test_shards_are_read(tmp_path: Path) -> None:
    sharded(tmp_path)
    states = DeepseekV3.from_checkpoint(tmp_path).state_dict()
    assert all(torch.equal(tensor, states[name]) for name, tensor in seeded().state_dict().items())


def test_broken_folders_name_the_file_and_the_fix(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="nowhere: no such folder; give the folder"):
        DeepseekV3.from_checkpoint(tmp_path / "nowhere")
    sharded(tmp_path)
    second = tmp_path / "model-00002-of-00002.safetensors"
    whole = second.read_bytes()
    second.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match=r"model-00002-of-00002\.safetensors: cut short .*copy the file again"):
        DeepseekV3.from_checkpoint(tmp_path)
    second.unlink()
    with pytest.raises(ValueError, match=r"model-00002-of-00002\.safetensors: missing, but model\.safetensors\.index"):
        DeepseekV3.from_checkpoint(tmp_path)
    (tmp_path / "model.safetensors.index.json").unlink()
    with pytest.raises(ValueError, match="only safetensors checkpoints can be loaded"):
        DeepseekV3.from_checkpoint(tmp_path)


def test_a_tensor_of_another_shape_is_named_with_its_file(tmp_path: Path) -> None:
    seeded().save_checkpoint(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(replace(BASE, vocab_size=100).to_hf()))
    with pytest.raises(ValueError, match=r"(lm_head|embed_tokens)\.weight in .*model\.safetensors: shape \(96, 64\)"):
        DeepseekV3.from_checkpoint(tmp_path)


def test_missing_tensors_are_named_with_the_folder(tmp_path: Path) -> None:
    seeded().save_checkpoint(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    del weights["model.norm.weight"]
    save_file(weights, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match=rf"{tmp_path}: model\.norm\.weight: missing"):
        DeepseekV3.from_checkpoint(tmp_path)
