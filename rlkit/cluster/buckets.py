"""What travels from trainer ranks to engines: bytes in buckets, and a list that says which tensor they are.

A rank sends its own tensors, in the order of the model's table of names, cut into buckets. Its list comes first: it is
small, so the receiver knows before the first byte whether all ranks together send every name once, and sees a bucket's
tensors only after their bytes have the checksums that the rank wrote down.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from xxhash import xxh3_64_intdigest

from rlkit.model.files.weights import in_buckets
from rlkit.parts import SyncError
from rlkit.types import Weights

Bytes = NDArray[np.uint8]
"""The bytes of a tensor in one dimension. Ray keeps those of an array beside the pickle, so that a receiver on the same
machine reads them where they lie, and may not write to them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """Describes one tensor: what it is, where it lies and the checksum of its bytes."""

    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]
    bucket: int
    place: int
    """Which of the bucket's arrays it is."""
    checksum: int
    """xxh3 (64 bits) of the bytes: as fast as memory, five times as fast as CRC-32 and ten times as SHA-256."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Bucket:
    """The bytes of a few tensors of one rank."""

    rank: int
    version: int
    number: int
    data: tuple[Bytes, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Contents:
    """The list of all that one rank publishes of one version."""

    rank: int
    version: int
    entries: tuple[Entry, ...]
    table: tuple[str, ...]
    """All names of the model, in order. Rank 0 gives them for all ranks; those of the others are empty."""


def buckets(weights: Weights, rank: int, version: int, max_bytes: int) -> Iterator[tuple[Bucket, list[Entry]]]:
    """Deals weights in order into buckets of at most `max_bytes` (or one tensor), each with its part of the list.

    The arrays view the tensors where these lie contiguous on the CPU, so a bucket is for sending at once: it changes
    with the weights.
    """
    for number, dealt in enumerate(in_buckets(weights, max_bytes)):
        arrays = tuple(bytes_of(tensor) for _, tensor in dealt)
        entries = [
            Entry(
                name=name,
                dtype=tensor.dtype,
                shape=tuple(tensor.shape),
                bucket=number,
                place=place,
                checksum=xxh3_64_intdigest(array.data),
            )
            for place, ((name, tensor), array) in enumerate(zip(dealt, arrays, strict=True))
        ]
        yield Bucket(rank=rank, version=version, number=number, data=arrays), entries


def bytes_of(tensor: Tensor) -> Bytes:
    """Views a tensor of any dtype, shape and device as its bytes; copies only what is not contiguous on the CPU."""
    return tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()


def tensor_of(array: Bytes, dtype: torch.dtype, shape: Sequence[int]) -> Tensor:
    """Views bytes as a tensor; who writes to it writes to what others read."""
    if not array.nbytes:  # torch refuses to view nothing as another dtype
        return torch.empty(tuple(shape), dtype=dtype)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The given NumPy array is not writable", UserWarning)
        return torch.from_numpy(array).view(dtype).reshape(tuple(shape))


def plan(lists: Sequence[Contents], version: int) -> list[tuple[int, Entry]]:
    """Returns every tensor with its rank, in the order of the model's table.

    Raises SyncError if a list is of another version than the announced one, if a name is published twice, by nobody or
    by mistake, or if no list has the table.
    """
    for contents in lists:
        if contents.version != version:
            raise SyncError(
                f"rank {contents.rank} publishes version {contents.version} of the weights, but version {version} was "
                "announced"
            )
    table = next((contents.table for contents in lists if contents.rank == 0), ())
    found: dict[str, tuple[int, Entry]] = {}
    for contents in lists:
        for entry in contents.entries:
            if entry.name in found:
                others = f"rank {found[entry.name][0]} and rank {contents.rank}"
                raise SyncError(f"{entry.name}: published twice, by {others}, in version {version}")
            found[entry.name] = contents.rank, entry
    if missing := [name for name in table if name not in found]:
        raise SyncError(
            f"{missing[0]}: published by no rank in version {version}; {len(missing)} of {len(table)} names are missing"
        )
    if len(found) > len(table):
        name = min(found.keys() - set(table))
        raise SyncError(f"{name}: published by rank {found[name][0]} in version {version}, but not of this model")
    return [found[name] for name in table]


def tensors(
    ordered: Sequence[tuple[int, Entry]], version: int, fetch: Mapping[int, Callable[[int], Bucket]]
) -> Iterator[tuple[str, Tensor]]:
    """Yields the tensors of `plan`; `fetch[rank](number)` gets one bucket, which is let go after its last tensor.

    Raises SyncError for a bucket that is not the one asked for and for a tensor whose bytes are not those that the rank
    published; it names tensor, rank and version.
    """
    left: dict[tuple[int, int], int] = {}
    for rank, entry in ordered:
        left[rank, entry.bucket] = left.get((rank, entry.bucket), 0) + 1
    held: dict[tuple[int, int], Bucket] = {}
    for rank, entry in ordered:
        key = rank, entry.bucket
        if key not in held:
            held[key] = fetch[rank](entry.bucket)
        tensor = verified(held[key], entry, rank, version)
        left[key] -= 1
        if not left[key]:
            del held[key]
        yield entry.name, tensor


def verified(bucket: Bucket, entry: Entry, rank: int, version: int) -> Tensor:
    """Returns one tensor of a bucket; raises SyncError unless it is, byte for byte, the one that the list describes."""
    if (bucket.rank, bucket.version, bucket.number) != (rank, version, entry.bucket):
        raise SyncError(
            f"{entry.name}: asked for bucket {entry.bucket} of rank {rank}, version {version}, and got bucket "
            f"{bucket.number} of rank {bucket.rank}, version {bucket.version}"
        )
    array = bucket.data[entry.place] if entry.place < len(bucket.data) else None
    expected = math.prod(entry.shape) * entry.dtype.itemsize
    if array is None or array.nbytes != expected or xxh3_64_intdigest(array.data) != entry.checksum:
        raise SyncError(
            f"{entry.name}: the bytes that arrived are not those that rank {rank} published in version {version}: "
            "their checksums differ, so memory or network of that machine or of this one is at fault"
        )
    return tensor_of(array, entry.dtype, entry.shape)
