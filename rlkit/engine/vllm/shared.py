"""Weights on their way from the engine's process to its workers: a bucket at a time, in memory that all of them map.

vLLM hands arguments to its workers by pickling them, once for each worker. A bucket here is written once; what is
pickled is a table of contents. The memory is a file without a name (memfd_create): it counts against no disk and not
against /dev/shm, and the kernel frees it when the last process that maps it unmaps it or dies, however it dies.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from math import prod

import torch
from torch import Tensor

ALIGNED = 64
"""Tensors begin at multiples of a line of the processor's cache, and so of every dtype's size."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """Says where in a bucket one tensor lies."""

    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]
    offset: int
    """In bytes."""

    @property
    def num_bytes(self) -> int:
        """Returns the size of the tensor."""
        return prod(self.shape) * self.dtype.itemsize


@dataclass(frozen=True, slots=True, kw_only=True)
class SharedBucket:
    """Tensors in memory that other processes can map; this is what travels to them."""

    path: str
    """The memory's file, by the process that holds it open; other processes of the same user can open it."""
    num_bytes: int
    entries: tuple[Entry, ...]

    def tensors(self) -> Iterator[tuple[str, Tensor]]:
        """Maps the memory and gives every tensor under its name; the map lasts as long as one of them does.

        It is a private one: what a receiver writes into a tensor, no other process sees.
        """
        flat = torch.from_file(self.path, shared=False, size=self.num_bytes, dtype=torch.uint8)
        for entry in self.entries:
            piece = flat[entry.offset : entry.offset + entry.num_bytes]
            yield entry.name, piece.view(entry.dtype).view(entry.shape)


@contextmanager
def shared(bucket: list[tuple[str, Tensor]]) -> Iterator[SharedBucket]:
    """Copies tensors into memory that others can map; inside the block they can, and keep it if they have."""
    entries, size = [], 0
    for name, tensor in bucket:
        entries.append(Entry(name=name, dtype=tensor.dtype, shape=tuple(tensor.shape), offset=size))
        size += -(-tensor.nbytes // ALIGNED) * ALIGNED
    file = os.memfd_create("rlkit-weights")
    try:
        path = f"/proc/{os.getpid()}/fd/{file}"
        size = max(size, ALIGNED)  # nothing cannot be mapped
        os.ftruncate(file, size)
        flat = torch.from_file(path, shared=True, size=size, dtype=torch.uint8)
        for entry, (_, tensor) in zip(entries, bucket, strict=True):
            place = flat[entry.offset : entry.offset + entry.num_bytes]
            place.copy_(tensor.detach().contiguous().view(-1).view(torch.uint8))
        yield SharedBucket(path=path, num_bytes=size, entries=tuple(entries))
    finally:
        os.close(file)
