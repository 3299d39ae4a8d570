"""Bad checkpoints: each names the file and the tensor, in every command that reads one, and leaves nothing behind."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from rlkit.model import DeepseekV3
from rlkit.model.files.convert import convert_checkpoint
from rlkit.model.files.verify import checkpoint_faults
from tests.model.tiny import BASE, seeded

UP = "model.layers.2.mlp.experts.3.up_proj.weight"
DOWN = "model.layers.0.mlp.down_proj.weight"
NORM = "model.norm.weight"
GATE = "model.layers.1.mlp.gate.weight"
INDEX = "model.safetensors.index.json"


def shard_of(folder: Path, name: str) -> Path:
    return folder / json.loads((folder / INDEX).read_text())["weight_map"][name]


def edit(name: str, change: Callable[[dict[str, Tensor]], object], also: str = "") -> Callable[[Path], None]:
    """Change what a shard holds, and the index with it."""

    def break_it(folder: Path) -> None:
        file = shard_of(folder, name)
        tensors = load_file(file)
        change(tensors)
        index = json.loads((folder / INDEX).read_text())
        where = {key: shard for key, shard in index["weight_map"].items() if shard != file.name}
        index["weight_map"] = where | dict.fromkeys(tensors, file.name)
        (folder / INDEX).write_text(json.dumps(index))
        save_file(tensors, file)

    return break_it


def fill(name: str, value: float) -> Callable[[Path], None]:
    def change(tensors: dict[str, Tensor]) -> None:
        tensors[name].view(-1)[-1] = value

    return edit(name, change)


def nan_code(folder: Path) -> None:
    edit(UP, lambda tensors: tensors[UP].view(torch.uint8).view(-1)[7:8].fill_(0x7F))(folder)


def cut(folder: Path) -> None:
    file = shard_of(folder, UP)
    file.write_bytes(file.read_bytes()[:-20])


def empty(folder: Path) -> None:
    shard_of(folder, UP).write_bytes(b"")


def drop_file(folder: Path) -> None:
    shard_of(folder, UP).unlink()


def reindex(folder: Path, change: Callable[[dict[str, str]], object]) -> None:
    index = json.loads((folder / INDEX).read_text())
    change(index["weight_map"])
    (folder / INDEX).write_text(json.dumps(index))


def configured(**changes: Any) -> Callable[[Path], None]:
    def break_it(folder: Path) -> None:
        raw = json.loads((folder / "config.json").read_text()) | changes
        (folder / "config.json").write_text(json.dumps({key: raw[key] for key in raw if raw[key] is not ...}))

    return break_it


SCALE = f"{UP}_scale_inv"
SHARD = r"model-0000\d-of-0000\d\.safetensors"
# What is broken -> how, and what the message says.
BROKEN: dict[str, tuple[Callable[[Path], object], str]] = {
    "tensor missing": (
        edit(UP, lambda t: t.pop(UP) is t.pop(SCALE)),
        rf"{UP}: missing; the checkpoint is not complete",
    ),
    "tensor unknown": (
        edit(UP, lambda t: t.update(odd=torch.ones(2))),
        rf"{SHARD}: odd: this model has no such weight",
    ),
    "layer unknown": (
        configured(num_hidden_layers=2),
        rf"{SHARD}: model\.layers\.2\.\S+: this model has no such weight",
    ),
    "wrong shape": (
        edit(NORM, lambda t: t.update({NORM: torch.ones(65)})),
        rf"{SHARD}: {NORM}: shape \(65,\), but config.json makes it \(64,\)",
    ),
    "wrong dtype": (edit(NORM, lambda t: t.update({NORM: t[NORM].int()})), rf"{SHARD}: {NORM}: dtype I32; there are"),
    "shard cut short": (cut, rf"{SHARD}: cut short or not safetensors"),
    "shard empty": (empty, rf"{SHARD}: cut short or not safetensors"),
    "NaN": (fill(GATE, float("nan")), rf"{SHARD}: {GATE}: a number is NaN or infinite"),
    "infinity": (fill(NORM, float("-inf")), rf"{SHARD}: {NORM}: a number is NaN or infinite"),
    "NaN code": (nan_code, rf"{SHARD}: {UP}: a number is NaN or infinite"),
    "NaN scale": (fill(SCALE, float("nan")), rf"{SHARD}: {SCALE}: a scale is not finite or not positive"),
    "zero scale": (fill(SCALE, 0.0), rf"{SHARD}: {SCALE}: a scale is not finite or not positive"),
    "scale missing": (edit(UP, lambda t: t.pop(SCALE)), rf"{SHARD}: {SCALE}: missing; without it {UP} cannot be read"),
    "scale of wrong shape": (
        edit(UP, lambda t: t.update({SCALE: torch.ones(2, 1)})),
        rf"{SHARD}: {SCALE}: F32 of shape \(2, 1\); {UP} needs F32 of shape \(1, 1\)",
    ),
    "scale of wrong dtype": (edit(UP, lambda t: t.update({SCALE: t[SCALE].half()})), rf"{SCALE}: F16 of shape"),
    "scale of no FP8": (
        edit(NORM, lambda t: t.update({f"{NORM}_scale_inv": torch.ones(1, 1)})),
        rf"{NORM}_scale_inv: a scale, but {NORM} is not in FP8",
    ),
    "FP8 unannounced": (
        configured(quantization_config=...),
        r"config.json: \S+: in FP8, but quantization_config is not",
    ),
    "other blocks": (
        configured(quantization_config={"quant_method": "fp8", "weight_block_size": [64, 64]}),
        r"config.json: quantization_config.weight_block_size=\[64, 64\]; only \[128, 128\]",
    ),
    "other quantisation": (configured(quantization_config={"quant_method": "awq"}), r"quant_method='awq'; only 'fp8'"),
    "other architecture": (configured(model_type="llama"), r"config.json: model_type='llama'; only 'deepseek_v3'"),
    "other routing": (configured(scoring_func="softmax"), r"config.json: scoring_func='softmax'"),
    "other config": (
        configured(hidden_size=72),
        rf"{SHARD}: \S+: shape \(96, 64\), but config.json makes it \(96, 72\)",
    ),
    "config not JSON": (lambda folder: (folder / "config.json").write_text("{"), r"config.json: not valid JSON"),
    "config not an object": (lambda folder: (folder / "config.json").write_text("[]"), r"config.json: model_type=\[\]"),
    "config missing": (lambda folder: (folder / "config.json").unlink(), r"config.json: missing; give a folder"),
    "shard missing": (drop_file, rf"{SHARD}: missing, but {INDEX} lists it for \S+; copy"),
    "index not JSON": (lambda folder: (folder / INDEX).write_text("{"), rf"{INDEX}: not an index of shards"),
    "index without map": (lambda folder: (folder / INDEX).write_text("{}"), rf"{INDEX}: not an index of shards"),
    "index missing": (lambda folder: (folder / INDEX).unlink(), "only safetensors checkpoints can be loaded"),
    "index names too much": (
        lambda folder: reindex(folder, lambda where: where.update(ghost=where[UP])),
        rf"{SHARD}: ghost is not in it, but {INDEX} says so",
    ),
    "index names too little": (
        lambda folder: reindex(folder, lambda where: where.pop(NORM)),
        rf"{SHARD}: {NORM} is in it, but {INDEX} does not say so",
    ),
}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("whole")
    seeded().save_checkpoint(folder, dtype="fp8", max_shard_bytes=60_000)
    return folder


def copy_of(whole: Path, tmp_path: Path) -> Path:
    folder = tmp_path / "checkpoint"
    folder.mkdir()
    for file in whole.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    return folder


@pytest.mark.parametrize("name", BROKEN)
def test_a_bad_checkpoint_names_file_and_tensor(name: str, whole: Path, tmp_path: Path) -> None:
    break_it, message = BROKEN[name]
    folder = copy_of(whole, tmp_path)
    DeepseekV3.from_checkpoint(folder)
    break_it(folder)
    for read in (DeepseekV3.from_checkpoint, lambda path: convert_checkpoint(path, tmp_path / "out", "bf16")):
        with pytest.raises(ValueError, match=message) as error:
            read(folder)
        assert str(folder) in str(error.value)
    assert os.listdir(tmp_path) == ["checkpoint"], "the conversion left something behind"
    try:
        faults = [str(fault) for fault in checkpoint_faults(folder)]
    except ValueError as error:
        faults = [str(error)]
    assert any(re.search(message, fault) for fault in faults), faults


def test_all_faults_are_counted_and_listed(whole: Path, tmp_path: Path) -> None:
    folder = copy_of(whole, tmp_path)
    BROKEN["NaN"][0](folder)
    BROKEN["tensor missing"][0](folder)
    edit(DOWN, lambda tensors: tensors.update({f"{DOWN}_scale_inv": torch.ones(1, 2)}))(folder)
    assert {fault.tensor for fault in checkpoint_faults(folder)} == {GATE, UP, f"{DOWN}_scale_inv"}
    with pytest.raises(ValueError, match=r"\(and 1 more like it\)"):
        DeepseekV3.from_checkpoint(folder)


def test_a_sound_checkpoint_has_no_faults(whole: Path, tmp_path: Path) -> None:
    assert list(checkpoint_faults(whole)) == []
    seeded(replace(BASE, tie_word_embeddings=True)).save_checkpoint(tmp_path)
    assert list(checkpoint_faults(tmp_path)) == []


def test_no_folder_and_no_weights(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="nowhere: no such folder; give the folder"):
        DeepseekV3.from_checkpoint(tmp_path / "nowhere")
    (tmp_path / "config.json").write_text(json.dumps(BASE.to_hf()))
    with pytest.raises(ValueError, match="only safetensors checkpoints can be loaded"):
        DeepseekV3.from_checkpoint(tmp_path)
