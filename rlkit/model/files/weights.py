"""Weights between a model's state and their published names, by a table such as `rlkit.model.files.names` makes."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping

import torch
from torch import Tensor

from rlkit.model.files.names import Place

PIECE_BYTES = 2**26
"""Weights travel from a rank to an engine in pieces of at most this size (or one tensor)."""
WORKER_PIECE_BYTES = 2**28
"""An engine's process hands them on to its workers in pieces of at most this size (or one tensor)."""


def published_weights(state: Mapping[str, Tensor], table: Mapping[str, Place]) -> Iterator[tuple[str, Tensor]]:
    """Yields every weight of `table` under its published name, as a view of our tensor in `state`."""
    for name, place in table.items():
        yield name, place.view(state[place.name])


@torch.no_grad()
def copy_weights(
    weights: Iterable[tuple[str, Tensor]], state: Mapping[str, Tensor], table: Mapping[str, Place]
) -> None:
    """Copies published tensors into the tensors of `state`, casting to their dtypes.

    Raises ValueError for weights that are not those of `table` (see `checked`), and for a copy of another tensor that
    is not equal to it. Copies may come before or after what they copy, so the first of them is written and the others
    are compared with it.
    """
    shared = {place.name for place in table.values() if place.copy}
    first: dict[str, str] = {}
    for name, tensor in checked(weights, table):
        ours = table[name].name
        target = table[name].view(state[ours])
        if ours in shared and (other := first.setdefault(ours, name)) != name:
            if not torch.equal(tensor.to(target), target):
                raise ValueError(f"{name}: not equal to {other}, but the model has one tensor for both; remove one")
        else:
            target.copy_(tensor)


def checked(
    weights: Iterable[tuple[str, Tensor]], table: Mapping[str, Place], dropped: Collection[str] = ()
) -> Iterator[tuple[str, Tensor]]:
    """Yields the same weights again, except those named in `dropped`, and checks them against `table` on the way.

    Raises ValueError for a weight that is unknown, doubled or of another shape, and, at the end, for one that is
    missing. Copies of other tensors may be missing.
    """
    seen: set[str] = set()
    for name, tensor in weights:
        if name in dropped:
            continue
        if name not in table:
            raise ValueError(f"{name}: this model has no such weight; check config.json against the checkpoint")
        if name in seen:
            raise ValueError(f"{name}: given twice; remove one of the copies")
        if tuple(tensor.shape) != table[name].shape:
            shapes = f"shape {tuple(tensor.shape)}, but config.json makes it {table[name].shape}"
            raise ValueError(f"{name}: {shapes}; use the config.json that belongs to these weights")
        seen.add(name)
        yield name, tensor
    missing = [name for name, place in table.items() if name not in seen and not place.copy]
    if missing:
        raise ValueError(f"{missing[0]}: missing, with {len(missing) - 1} others; the weights are not complete")


def in_buckets(weights: Iterable[tuple[str, Tensor]], max_bytes: int) -> Iterator[list[tuple[str, Tensor]]]:
    """Deals weights in order into lists of at most `max_bytes` (or one tensor); no weights make no list."""
    bucket: list[tuple[str, Tensor]] = []
    size = 0
    for name, tensor in weights:
        if bucket and size + tensor.nbytes > max_bytes:
            yield bucket
            bucket, size = [], 0
        bucket.append((name, tensor))
        size += tensor.nbytes
    if bucket:
        yield bucket
