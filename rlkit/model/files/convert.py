"""Checkpoints go from one dtype into another weight by weight, with one output shard and one weight in memory."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from safetensors.torch import save_file

from rlkit.errors import UserError
from rlkit.model.files.folder import SCALE, Checkpoint, check_dtype, encode, write_config
from rlkit.model.files.names import published_names
from rlkit.model.files.shards import (
    CARRIED_SCALES,
    MAX_SHARD_BYTES,
    ShardWriter,
    copy_companions,
    replaced_folder,
    share,
)
from rlkit.quant.fp8 import FLOAT8


def convert_checkpoint(
    source: str | Path,
    target: str | Path,
    dtype: str,
    max_shard_bytes: int = MAX_SHARD_BYTES,
    advance: Callable[[int], None] = lambda _done: None,
) -> None:
    """Writes `source` anew in one of `DTYPES` into a new folder, with config.json and all other files.

    FP8 -> bf16 or fp32 -> FP8 gives the same bits back: bf16 alone does not tell which scale a block had, so the scales
    go along in fp8_scales.sft and serve again for every block that did not change (`requantise_blocks`). `advance` is
    told of every weight done. Raises UserError, naming file and tensor, for a bad checkpoint or a target that is not
    empty; nothing is left of the target then.
    """
    check_dtype(dtype)
    if Path(target).exists() and (not Path(target).is_dir() or any(Path(target).iterdir())):
        raise UserError(f"{target}: not empty; give a folder that does not exist yet")
    checkpoint = Checkpoint.open(source)
    table = published_names(checkpoint.config)
    checkpoint.check(table)
    with replaced_folder(target) as folder:
        writer = ShardWriter(folder, max_shard_bytes)
        for name in checkpoint.weights:
            scales = checkpoint.known_scales(name) if dtype == "fp8" else None
            writer.add(encode(name, checkpoint.weight(name), table.get(name), dtype, scales))
            advance(1)
        writer.finish()
        if dtype not in FLOAT8:
            _carry_scales(checkpoint, folder)
        write_config(folder, checkpoint.raw, dtype)
        copy_companions(checkpoint.folder, folder)


def _carry_scales(checkpoint: Checkpoint, folder: Path) -> None:
    # In a pass of its own: small tensors that stay, between large ones that go, would break the heap to pieces.
    found = {name + SCALE: checkpoint.known_scales(name) for name in checkpoint.weights}
    carried = {name: scales for name, scales in found.items() if scales is not None}
    if carried:
        save_file(carried, folder / CARRIED_SCALES, metadata={"format": "pt"})
        share(folder / CARRIED_SCALES)
