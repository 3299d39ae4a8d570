"""Is a checkpoint whole, and are two the same? Headers are read first, then tensors, at most two at a time."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from rlkit.model.files.folder import SCALE, Checkpoint, CheckpointError, Fault
from rlkit.model.files.names import published_names
from rlkit.model.files.shards import Stored, read_headers, read_tensor

HASH_DIGITS = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """Names a tensor that two checkpoints do not share, and what each of them holds."""

    tensor: str
    what: str
    """One of: missing, shape, dtype, values."""
    a: str
    b: str


def checkpoint_faults(path: str | Path, advance: Callable[[int], None] = lambda _done: None) -> Iterator[Fault]:
    """Finds what keeps a DeepSeek-V3 checkpoint from loading: tensors missing, unknown, misshapen, without scale, NaN.

    Raises UserError where it cannot be read at all. `advance` is told of every weight done.
    """
    checkpoint = Checkpoint.open(path)
    table = published_names(checkpoint.config)
    faults = list(checkpoint.faults(table))
    yield from faults
    faulty = {fault.tensor.removesuffix(SCALE) for fault in faults}
    for name in checkpoint.weights:
        if name not in faulty:
            try:
                checkpoint.weight(name)
            except CheckpointError as error:
                faulty.add(name)
                yield error.fault
        advance(1)
    yield from checkpoint.copy_faults({n: place for n, place in table.items() if not faulty & {n, place.name}})


def compare_checkpoints(
    path_a: str | Path, path_b: str | Path, advance: Callable[[int], None] = lambda _done: None
) -> Iterator[Difference]:
    """Finds every tensor whose name, shape, dtype or bytes differ between any two safetensors checkpoints.

    Raises UserError where one cannot be read. `advance` is told of every tensor done.
    """
    a, b = read_headers(path_a), read_headers(path_b)
    for name in sorted(a.keys() | b.keys()):
        if name not in a or name not in b:
            sides = [_describe(headers[name]) if name in headers else "-" for headers in (a, b)]
            yield Difference(tensor=name, what="missing", a=sides[0], b=sides[1])
        elif a[name].shape != b[name].shape:
            yield Difference(tensor=name, what="shape", a=_describe(a[name]), b=_describe(b[name]))
        elif a[name].dtype != b[name].dtype:
            yield Difference(tensor=name, what="dtype", a=_describe(a[name]), b=_describe(b[name]))
        else:
            ours, theirs = (tensor_hash(read_tensor(name, headers[name])) for headers in (a, b))
            if ours != theirs:
                yield Difference(tensor=name, what="values", a=ours[:HASH_DIGITS], b=theirs[:HASH_DIGITS])
        advance(1)


def tensor_hash(tensor: Tensor) -> str:
    """Returns the SHA-256 of a tensor's bytes, as hexadecimal digits."""
    return hashlib.sha256(tensor.contiguous().flatten().view(torch.uint8).numpy().data).hexdigest()


def _describe(stored: Stored) -> str:
    return f"{stored.dtype} {list(stored.shape)}"
