"""Checkpoint folders: config.json beside safetensors, in one file or in shards with an index."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from rlkit.model.weights import checkpoint_weights

if TYPE_CHECKING:
    from rlkit.model.deepseek import DeepseekV3

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}


def checkpoint_files(path: str | Path) -> dict[str, Path]:
    """The file that holds each tensor of a checkpoint folder.

    ValueError naming the file and the fix where there are no weights, a shard is missing or a file is cut short.
    """
    folder = Path(path)
    if (folder / SINGLE).is_file():
        shards = [folder / SINGLE]
    elif (folder / INDEX).is_file():
        shards = _listed_shards(folder)
    else:
        raise ValueError(f"{folder}: neither {SINGLE} nor {INDEX}; only safetensors checkpoints can be loaded")
    files: dict[str, Path] = {}
    for shard in shards:
        if not shard.is_file():
            raise ValueError(f"{shard}: missing, but {INDEX} lists it; copy the file again")
        try:
            with safe_open(shard, framework="pt") as reader:
                files.update(dict.fromkeys(reader.keys(), shard))
        except SafetensorError as error:
            raise ValueError(f"{shard}: cut short or not safetensors ({error}); copy the file again") from error
    return files


def read_tensors(files: Mapping[str, Path]) -> Iterator[tuple[str, Tensor]]:
    """Read tensors one at a time, shard by shard."""
    for shard in sorted(set(files.values())):
        with safe_open(shard, framework="pt") as reader:
            for name in reader.keys():  # noqa: SIM118 - not a mapping
                yield name, reader.get_tensor(name)


def write_checkpoint(model: DeepseekV3, path: str | Path, dtype: str) -> None:
    """Write config.json and model.safetensors; each appears whole or not at all, other files in the folder stay.

    Shards of an earlier checkpoint in the folder are removed. ValueError for an unknown `dtype`.
    """
    if dtype not in DTYPES:
        soon = "; FP8 is not written yet" if dtype == "fp8" else ""
        raise ValueError(f"dtype={dtype!r}: give one of {', '.join(DTYPES)}{soon}")
    folder = Path(path)
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {}
    for name, tensor in checkpoint_weights(model):
        kept = torch.float32 if name.endswith("e_score_correction_bias") else DTYPES[dtype]
        tensors[name] = tensor.to("cpu", kept, copy=True).contiguous()
    weights, config = folder / f".{SINGLE}.partial", folder / ".config.json.partial"
    save_file(tensors, weights, metadata={"format": "pt"})
    described = {**model.config.to_hf(), "dtype": str(DTYPES[dtype]).removeprefix("torch.")}
    config.write_text(json.dumps(described, indent=2) + "\n")
    for file in (weights, config):
        with file.open("rb") as handle:
            os.fsync(handle.fileno())
    os.replace(weights, folder / SINGLE)
    os.replace(config, folder / "config.json")
    if (folder / INDEX).is_file():
        for shard in _listed_shards(folder):
            shard.unlink(missing_ok=True)
        (folder / INDEX).unlink()


def _listed_shards(folder: Path) -> list[Path]:
    try:
        names = set(json.loads((folder / INDEX).read_text())["weight_map"].values())
    except (json.JSONDecodeError, KeyError) as error:
        raise ValueError(f"{folder / INDEX}: not an index of shards ({error!r}); copy the file again") from error
    return [folder / name for name in sorted(names)]
