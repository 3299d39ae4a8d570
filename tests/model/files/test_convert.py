"""Conversion: bit for bit back from FP8, config.json right for both sides, companions kept, memory bounded."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from rlkit.model import DeepseekV3
from rlkit.model.files.convert import convert_checkpoint
from rlkit.model.files.shards import read_headers
from rlkit.model.files.verify import compare_checkpoints
from rlkit.quant.fp8 import dequantise_blocks
from tests.model.files.test_folder import WIDE, read_folder, same_states
from tests.model.tiny import BASE, seeded

ROOT = Path(__file__).resolve().parents[3]
MTP_LAYERS = 1


def foreign(folder: Path, seed: int = 0) -> None:
    """FP8 as others write it: any scale, every code, shards, an MTP layer, keys of transformers 4, a tokenizer."""
    seeded(WIDE).save_checkpoint(folder, dtype="fp8")
    tensors = load_file(folder / "model.safetensors")
    extra = {name.replace("layers.2.", "layers.3."): t for name, t in tensors.items() if ".layers.2." in name}
    hidden, vocabulary = WIDE.hidden_size, (WIDE.vocab_size, WIDE.hidden_size)
    for name in ("enorm", "hnorm", "shared_head.norm"):
        extra[f"model.layers.3.{name}.weight"] = torch.ones(hidden, dtype=torch.bfloat16)
    extra["model.layers.3.eh_proj.weight"] = torch.ones(hidden, 2 * hidden, dtype=torch.bfloat16)
    for name in ("embed_tokens", "shared_head.head"):
        extra[f"model.layers.3.{name}.weight"] = torch.ones(vocabulary, dtype=torch.bfloat16)
    tensors |= {name: tensor.clone() for name, tensor in extra.items()}
    random = torch.Generator().manual_seed(seed)
    for name, tensor in tensors.items():
        if name.endswith("_scale_inv"):
            tensor.copy_(1e-3 * torch.rand(tensor.shape, generator=random) + 1e-5)
            codes = tensors[name.removesuffix("_scale_inv")].view(torch.uint8)
            codes.copy_(torch.randint(0, 127, codes.shape, generator=random) + 128 * (codes > 127))
    (folder / "model.safetensors").unlink()
    halves = {f"model-0000{i + 1}-of-00002.safetensors": sorted(tensors)[i::2] for i in range(2)}
    for shard, names in halves.items():  # every other name: most scales lie apart from their weights
        save_file({name: tensors[name] for name in names}, folder / shard, metadata={"format": "pt"})
    where = {name: shard for shard, names in halves.items() for name in names}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": where}))
    raw = json.loads((folder / "config.json").read_text())
    raw["torch_dtype"] = raw.pop("dtype")
    raw |= {"num_nextn_predict_layers": MTP_LAYERS, "auto_map": {"AutoConfig": "x.Y"}}
    (folder / "config.json").write_text(json.dumps(raw))
    (folder / "tokenizer.json").write_text("{}")
    (folder / "pytorch_model.bin").write_text("weights in another format")
    (folder / ".git").mkdir()


def same(a: Path, b: Path) -> bool:
    return not list(compare_checkpoints(a, b))


@pytest.mark.parametrize("between", ["bf16", "fp32"])
def test_foreign_fp8_comes_back_bit_for_bit(between: str, tmp_path: Path) -> None:
    foreign(tmp_path / "a")
    convert_checkpoint(tmp_path / "a", tmp_path / "b", between)
    convert_checkpoint(tmp_path / "b", tmp_path / "c", "fp8", max_shard_bytes=200_000)
    assert same(tmp_path / "a", tmp_path / "c")
    assert len(list((tmp_path / "c").glob("*.safetensors"))) > 2
    configs = [json.loads((tmp_path / name / "config.json").read_text()) for name in "abc"]
    assert configs[0] == configs[2]
    assert "quantization_config" not in configs[1]
    assert configs[1]["torch_dtype"] == {"bf16": "bfloat16", "fp32": "float32"}[between]
    assert sorted(os.listdir(tmp_path / "b")) == [
        "config.json", "fp8_scales.sft", "model.safetensors", "tokenizer.json",
    ]  # fmt: skip
    assert not (tmp_path / "c" / "fp8_scales.sft").exists()


def test_fp8_becomes_code_times_scale(tmp_path: Path) -> None:
    foreign(tmp_path / "a")
    before = read_folder(tmp_path / "a")
    for dtype, kind in (("bf16", torch.bfloat16), ("fp32", torch.float32)):
        convert_checkpoint(tmp_path / "a", tmp_path / dtype, dtype)
        after = read_folder(tmp_path / dtype)
        assert after.keys() == {name for name in before if not name.endswith("_scale_inv")}
        for name, tensor in after.items():
            scales = before.get(f"{name}_scale_inv")
            expected = before[name] if scales is None else dequantise_blocks(before[name], scales)
            bias = name.endswith("e_score_correction_bias")
            assert tensor.dtype == (torch.float32 if bias else kind), name
            assert torch.equal(tensor, expected.to(tensor.dtype)), name


def test_only_blocks_that_were_trained_get_new_scales(tmp_path: Path) -> None:
    foreign(tmp_path / "a")
    convert_checkpoint(tmp_path / "a", tmp_path / "b", "bf16")
    file = tmp_path / "b" / "model.safetensors"
    tensors = load_file(file)
    name = "model.layers.0.mlp.gate_proj.weight"
    tensors[name][300, 200] += 1
    save_file(tensors, file, metadata={"format": "pt"})
    convert_checkpoint(tmp_path / "b", tmp_path / "c", "fp8")
    assert {row.tensor for row in compare_checkpoints(tmp_path / "a", tmp_path / "c")} == {name, f"{name}_scale_inv"}
    scales = [read_folder(tmp_path / folder)[f"{name}_scale_inv"] for folder in "ac"]
    assert (scales[0] != scales[1]).nonzero().tolist() == [[2, 1]]


def test_our_fp8_comes_back_without_the_carried_scales(tmp_path: Path) -> None:
    seeded(WIDE).save_checkpoint(tmp_path / "a", dtype="fp8")
    convert_checkpoint(tmp_path / "a", tmp_path / "b", "bf16")
    (tmp_path / "b" / "fp8_scales.sft").unlink()
    convert_checkpoint(tmp_path / "b", tmp_path / "c", "fp8")
    assert same(tmp_path / "a", tmp_path / "c")


def test_carried_scales_of_another_model_are_refused(tmp_path: Path) -> None:
    seeded(BASE).save_checkpoint(tmp_path / "a", dtype="bf16")
    name = "model.layers.0.self_attn.o_proj.weight_scale_inv"
    save_file({name: torch.ones(2, 2)}, tmp_path / "a" / "fp8_scales.sft")
    with pytest.raises(ValueError, match=rf"fp8_scales\.sft: {name}: shape \(2, 2\) does not fit .*; delete this file"):
        convert_checkpoint(tmp_path / "a", tmp_path / "b", "fp8")


@pytest.mark.parametrize("dtype", ["bf16", "fp8", "fp32"])
def test_converting_is_saving_in_that_dtype(dtype: str, tmp_path: Path) -> None:
    """From fp32, through FP8's bf16 too, the files are those that the model itself writes."""
    model = seeded(replace(WIDE, tie_word_embeddings=True))
    model.save_checkpoint(tmp_path / "fp32", dtype="fp32")
    model.save_checkpoint(tmp_path / "saved", dtype=dtype)
    done: list[int] = []
    convert_checkpoint(tmp_path / "fp32", tmp_path / "converted", dtype, advance=done.append)
    assert same(tmp_path / "saved", tmp_path / "converted")
    assert sum(done) == sum(not name.endswith("_scale_inv") for name in read_headers(tmp_path / "saved"))
    configs = [json.loads((tmp_path / name / "config.json").read_text()) for name in ("saved", "converted")]
    assert configs[0] == configs[1]
    assert same_states(*(DeepseekV3.from_checkpoint(tmp_path / name) for name in ("saved", "converted")))


def test_an_occupied_target_and_an_unknown_dtype_are_refused(tmp_path: Path) -> None:
    seeded().save_checkpoint(tmp_path / "a")
    for target in (tmp_path / "a", tmp_path / "a" / "config.json"):
        with pytest.raises(ValueError, match="not empty; give a folder that does not exist yet"):
            convert_checkpoint(tmp_path / "a", target, "fp8")
    with pytest.raises(ValueError, match="dtype='int8': give one of"):
        convert_checkpoint(tmp_path / "a", tmp_path / "b", "int8")
    (tmp_path / "b").mkdir()
    convert_checkpoint(tmp_path / "a", tmp_path / "b", "fp8")


LARGE = replace(
    BASE,
    vocab_size=8192,
    hidden_size=1024,
    intermediate_size=4096,
    moe_intermediate_size=1024,
    num_hidden_layers=5,
    n_routed_experts=32,
)
SHARD = 200_000_000
WRITE = """
import math, sys, torch, json
from pathlib import Path
from rlkit.model.files.shards import ShardWriter
from rlkit.model.files.names import published_names
from tests.model.files.test_convert import LARGE, SHARD
folder = Path(sys.argv[1])
noise = torch.randn(8192 * 1024, generator=torch.Generator().manual_seed(0)).bfloat16()
writer = ShardWriter(folder, SHARD)
for i, (name, place) in enumerate(published_names(LARGE).items()):
    writer.add({name: noise[: math.prod(place.shape)].view(place.shape) * (1 + i % 97)})
writer.finish()
(folder / "config.json").write_text(json.dumps(LARGE.to_hf()))
"""
CONVERT = """
import sys, torch
from rlkit.model.files.convert import convert_checkpoint
from tests.model.files.test_convert import SHARD, resident
before = resident("VmRSS")
convert_checkpoint(sys.argv[1], sys.argv[2], sys.argv[3], SHARD)
print(before, resident("VmHWM"))
"""


def resident(key: str) -> int:
    """Bytes of this process in memory: VmRSS now, VmHWM at the highest. getrusage would count the parent's, too."""
    status = Path("/proc/self/status").read_text()
    return 1024 * int(status.split(f"{key}:")[1].split()[0])


def run(script: str, *args: str | Path) -> str:
    command = [sys.executable, "-c", script, *map(str, args)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=800)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.slow
def test_a_large_checkpoint_converts_within_one_shard_and_one_layer(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    run(WRITE, tmp_path / "a")
    stored = read_headers(tmp_path / "a")
    sizes = {name: 2 * math.prod(s.shape) for name, s in stored.items()}
    layer = sum(size for name, size in sizes.items() if ".layers.4." in name)
    assert sum(sizes.values()) >= 2 * (SHARD + layer)
    for source, target, dtype in (("a", "b", "fp8"), ("b", "c", "bf16")):
        before, peak = map(int, run(CONVERT, tmp_path / source, tmp_path / target, dtype).split())
        taken, bound = peak - before, SHARD + layer
        print(f"{dtype}: {sum(sizes.values()) / 1e9:.2f} GB in bf16, {taken / 1e6:.0f} of {bound / 1e6:.0f} MB taken")
        assert taken <= bound
