"""Checkpoints as transformers, vLLM and DeepSeek write them, in fp32, bf16 or block FP8; one weight at a time."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Container, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rlkit.errors import UserError
from rlkit.model.config import CONFIG, GENERATION_CONFIG, DeepseekV3Config, read_config
from rlkit.model.files.names import Place
from rlkit.model.files.shards import (
    CARRIED_SCALES,
    MAX_SHARD_BYTES,
    ShardWriter,
    Stored,
    read_header,
    read_headers,
    read_tensor,
    replaced_folder,
)
from rlkit.model.files.weights import checked
from rlkit.quant.fp8 import (
    BLOCK,
    FLOAT8,
    block_grid,
    block_scales,
    dequantise_blocks,
    quantise_blocks,
    requantise_blocks,
)

DTYPES = ("bf16", *FLOAT8, "fp32")
QUANTISATION = {
    "quant_method": "fp8",
    "fmt": "e4m3",
    "activation_scheme": "dynamic",
    "weight_block_size": [BLOCK, BLOCK],
}
"""What config.json says of block FP8, as published."""
SCALE = "_scale_inv"
FP8 = "F8_E4M3"
READABLE = (FP8, "BF16", "F16", "F32")


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """Says what is wrong with a tensor of a file; `tensor` is empty where the file itself is wrong."""

    file: Path
    tensor: str
    problem: str

    def __str__(self) -> str:
        """Writes file, tensor and problem in one line."""
        return ": ".join(filter(None, (str(self.file), self.tensor, self.problem)))


class CheckpointError(UserError):
    """A fault that was found while reading."""

    def __init__(self, fault: Fault) -> None:
        super().__init__(str(fault))
        self.fault = fault


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint:
    """Holds what the headers of a checkpoint folder list: weights, the scales of those in FP8, scales carried along."""

    folder: Path
    raw: Mapping[str, Any]
    """The content of config.json."""
    weights: Mapping[str, Stored]
    scales: Mapping[str, Stored]
    """The scales, by the name of their weight."""
    carried: Mapping[str, Stored]
    """The scales of the FP8 checkpoint that this one was converted from, by the name of their weight."""

    @classmethod
    def open(cls, path: str | Path) -> Checkpoint:
        """Reads config.json and all headers; raises UserError if that fails or the model is another."""
        folder = Path(path)
        raw = read_config(folder)
        _check_quantisation(folder, raw)
        headers = read_headers(folder)
        carried = read_header(folder / CARRIED_SCALES) if (folder / CARRIED_SCALES).is_file() else {}
        return cls(
            folder=folder,
            raw=raw,
            weights={name: stored for name, stored in headers.items() if not name.endswith(SCALE)},
            scales=_by_weight(headers),
            carried=_by_weight(carried),
        )

    @property
    def config(self) -> DeepseekV3Config:
        """Returns the model's sizes; raises UserError where config.json asks for what is not computed here."""
        try:
            config = DeepseekV3Config.from_hf({key: self.raw[key] for key in self.raw if key != "quantization_config"})
            return as_stored(config, self.weights)
        except UserError as error:
            raise UserError(f"{self.folder / CONFIG}: {error}") from error

    def faults(self, table: Mapping[str, Place]) -> Iterator[Fault]:
        """Yields what is wrong in the headers: a weight missing, misshapen, without its scale, or one too many."""
        for name, place in table.items():
            stored = self.weights.get(name)
            if stored is None and place.copy:
                continue
            if stored is None:
                yield Fault(file=self.folder, tensor=name, problem="missing; the checkpoint is not complete")
            elif stored.shape != place.shape:
                problem = f"shape {stored.shape}, but config.json makes it {place.shape}; it belongs to other weights"
                yield Fault(file=stored.file, tensor=name, problem=problem)
            else:
                yield from self._dtype_faults(name, stored)
        for name in self.weights.keys() - table.keys():
            problem = "this model has no such weight; check config.json against the checkpoint"
            yield Fault(file=self.weights[name].file, tensor=name, problem=problem)
        for name, stored in self.scales.items():
            if name not in self.weights or self.weights[name].dtype != FP8:
                yield Fault(file=stored.file, tensor=name + SCALE, problem=f"a scale, but {name} is not in FP8")
        for name, stored in self.carried.items():
            if name in table and stored.shape != block_grid(table[name].shape):
                problem = f"shape {stored.shape} does not fit {name}; delete this file if the weights are new"
                yield Fault(file=stored.file, tensor=name + SCALE, problem=problem)

    def _dtype_faults(self, name: str, stored: Stored) -> Iterator[Fault]:
        if stored.dtype not in READABLE:
            problem = f"dtype {stored.dtype}; there are {', '.join(READABLE)}"
            yield Fault(file=stored.file, tensor=name, problem=problem)
        if stored.dtype != FP8:
            return
        if "quantization_config" not in self.raw:
            yield Fault(file=self.folder / CONFIG, tensor=name, problem="in FP8, but quantization_config is not there")
        scale = self.scales.get(name)
        if scale is None:
            yield Fault(file=stored.file, tensor=name + SCALE, problem=f"missing; without it {name} cannot be read")
        elif scale.dtype != "F32" or scale.shape != block_grid(stored.shape):
            problem = f"{scale.dtype} of shape {scale.shape}; {name} needs F32 of shape {block_grid(stored.shape)}"
            yield Fault(file=scale.file, tensor=name + SCALE, problem=problem)

    def copy_faults(self, table: Mapping[str, Place]) -> Iterator[Fault]:
        """Yields copies of embedding and head that are there and not equal to the main model's tensor.

        The headers have been checked before; raises CheckpointError as `weight` does.
        """
        for name, place in table.items():
            if place.copy and name in self.weights and not torch.equal(self.weight(name), self.weight(place.name)):
                problem = f"not equal to {place.name}, which it is a copy of; remove it or copy the file again"
                yield Fault(file=self.weights[name].file, tensor=name, problem=problem)

    def check(self, table: Mapping[str, Place]) -> None:
        """Raises UserError with the first of `faults` and their number, if there are any."""
        faults = list(self.faults(table))
        if faults:
            raise UserError(f"{faults[0]}" + (f" (and {len(faults) - 1} more like it)" if faults[1:] else ""))

    def weight(self, name: str) -> Tensor:
        """Reads a weight as it is stored, or in fp32 if that is FP8; raises CheckpointError where it is not finite."""
        stored = self.weights[name]
        tensor = read_tensor(name, stored)
        if stored.dtype == FP8:
            scales = read_tensor(name + SCALE, self.scales[name])
            if not (_finite(scales) and bool((scales > 0).all())):
                problem = "a scale is not finite or not positive; copy the file again"
                raise CheckpointError(Fault(file=self.scales[name].file, tensor=name + SCALE, problem=problem))
            tensor = dequantise_blocks(tensor, scales)
        if not _finite(tensor):
            problem = "a number is NaN or infinite; copy the file again"
            raise CheckpointError(Fault(file=stored.file, tensor=name, problem=problem))
        return tensor

    def known_scales(self, name: str) -> Tensor | None:
        """Returns the scales that a weight has in FP8, or had before it was converted; None where nothing tells."""
        stored = self.scales.get(name) or self.carried.get(name)
        return None if stored is None else read_tensor(name + SCALE, stored).clone()  # else its file stays mapped


def _check_quantisation(folder: Path, raw: Mapping[str, Any]) -> None:
    for key in ("quant_method", "weight_block_size") if raw.get("quantization_config") else ():
        value, wanted = raw["quantization_config"].get(key), QUANTISATION[key]
        if value != wanted:
            raise UserError(f"{folder / CONFIG}: quantization_config.{key}={value!r}; only {wanted!r} can be read")


def as_stored(config: DeepseekV3Config, names: Container[str]) -> DeepseekV3Config:
    """Returns the config without MTP modules if none of the stored `names` is theirs.

    transformers leaves these layers out when it saves a model, and its config.json still counts them.
    """
    first = f"model.layers.{config.num_hidden_layers}.eh_proj.weight"
    return config if first in names else replace(config, num_nextn_predict_layers=0)


def checkpoint_files(path: str | Path) -> dict[str, Path]:
    """The file that holds each weight of a checkpoint folder, scales left out; UserError as in `read_headers`."""
    return {name: stored.file for name, stored in read_headers(path).items() if not name.endswith(SCALE)}


def encode(name: str, tensor: Tensor, place: Place | None, dtype: str, scales: Tensor | None) -> dict[str, Tensor]:
    """Returns what a checkpoint of `dtype` holds of a weight: in FP8 codes and scales where `place` says so.

    FP8 is made from the weight rounded to bf16, so that all ways there give the same bits. `scales` are those that it
    may have had before. The router's correction bias is fp32 in every dtype: bf16 swallows its steps.
    """
    # The scale of a block follows from its largest number. Whoever quantises fp32 directly may find another largest
    # number than who went through bf16, and then the whole block differs; so FP8 always starts from bf16.
    kept = torch.float32 if dtype == "fp32" or name.endswith("e_score_correction_bias") else torch.bfloat16
    # A copy: tied weights share memory, which safetensors refuses to write.
    tensor = tensor.to("cpu", kept, copy=True)
    if dtype not in FLOAT8 or place is None or not place.fp8:
        return {name: tensor}
    if dtype == "fp8_weights":
        codes, found = quantise_blocks(tensor, block_scales(tensor, powers_of_two=True))
        return {name: codes, name + SCALE: found}
    codes, found = quantise_blocks(tensor) if scales is None else requantise_blocks(tensor, scales)
    return {name: codes, name + SCALE: found}


def write_config(folder: Path, raw: Mapping[str, Any], dtype: str) -> None:
    """Writes config.json with the keys that tell transformers and vLLM how the weights are stored."""
    described = {key: value for key, value in raw.items() if key != "quantization_config"}
    # transformers 4 calls it torch_dtype.
    for key in [key for key in ("dtype", "torch_dtype") if key in raw] or ["dtype"]:
        described[key] = "float32" if dtype == "fp32" else "bfloat16"
    if dtype in FLOAT8:
        described["quantization_config"] = QUANTISATION
    (folder / CONFIG).write_text(json.dumps(described, indent=2) + "\n")


def write_checkpoint(
    path: str | Path,
    weights: Iterable[tuple[str, Tensor]],
    table: Mapping[str, Place],
    raw: Mapping[str, Any],
    dtype: str,
    *,
    base: Path | None = None,
    max_shard_bytes: int = MAX_SHARD_BYTES,
) -> None:
    """Writes the weights of `table` and config.json; the folder appears whole or not at all, other files in it stay.

    `raw` is the content of config.json. generation_config.json comes along from `base`, the checkpoint that the model
    was made from: it may name end tokens that config.json does not have. Raises ValueError for an unknown `dtype` and
    for weights that are not those of `table`; one that is no more than a copy may be missing.
    """
    check_dtype(dtype)
    with replaced_folder(path) as folder:
        writer = ShardWriter(folder, max_shard_bytes)
        for name, tensor in checked(weights, table):
            writer.add(encode(name, tensor, table[name], dtype, None))
        writer.finish()
        write_config(folder, raw, dtype)
        if base is not None and (base / GENERATION_CONFIG).is_file():
            shutil.copyfile(base / GENERATION_CONFIG, folder / GENERATION_CONFIG)


def check_dtype(dtype: str) -> None:
    """Raises ValueError for anything but the `DTYPES`."""
    if dtype not in DTYPES:
        raise ValueError(f"dtype={dtype!r}: give one of {', '.join(DTYPES)}")


def _by_weight(headers: Mapping[str, Stored]) -> dict[str, Stored]:
    return {name.removesuffix(SCALE): stored for name, stored in headers.items() if name.endswith(SCALE)}


def _finite(tensor: Tensor) -> bool:
    if tensor.numel() == 0:
        return True
    return all(math.isfinite(float(bound)) for bound in torch.aminmax(tensor))
