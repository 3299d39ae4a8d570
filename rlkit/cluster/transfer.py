"""Weights on their way from trainer to engines: in the object store, a bucket at a time."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import ray
import torch
from torch import Tensor

from rlkit.cluster.deaths import deaths_named
from rlkit.types import Weights

BUCKET_BYTES = 2**28
"""Weights travel in pieces of at most this size (or one tensor)."""


def buckets(weights: Weights, max_bytes: int) -> Iterator[list[tuple[str, Tensor]]]:
    """Deals weights in order into lists of at most `max_bytes` (or one tensor), in memory of their own on the CPU.

    Parameters are views: experts of a stack, everything of ZeRO's flat buffer. Sending a view sends all that it views.
    """
    bucket, size = [], 0
    for name, tensor in weights:
        if bucket and size + tensor.nbytes > max_bytes:
            yield bucket
            bucket, size = [], 0
        bucket.append((name, tensor.detach().cpu().clone(memory_format=torch.contiguous_format)))
        size += tensor.nbytes
    yield bucket


@dataclass(frozen=True, slots=True)
class RemoteWeights:
    """Weights in the object store; whoever iterates over them pulls one bucket at a time."""

    buckets: tuple[ray.ObjectRef, ...]

    def __iter__(self) -> Iterator[tuple[str, Tensor]]:
        """Gives every tensor under its checkpoint name."""
        for bucket in self.buckets:
            with deaths_named():
                named = ray.get(bucket)
            yield from named


def publish(weights: Weights) -> RemoteWeights:
    """Puts all weights into the object store, bucket by bucket."""
    return RemoteWeights(tuple(ray.put(bucket) for bucket in buckets(weights, BUCKET_BYTES)))
