"""Weights on their way from trainer ranks to engines, through Ray's object store.

Every rank puts its share there, and whoever loads the weights takes it from there: the driver hands on a few
references. On one machine the store is shared memory, which the receiver reads where it lies.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import ray
from torch import Tensor

from rlkit.cluster.buckets import Bucket, Contents, buckets, plan, tensors
from rlkit.cluster.deaths import deaths_named
from rlkit.model.files.weights import PIECE_BYTES
from rlkit.types import Weights


@dataclass(frozen=True, slots=True, kw_only=True)
class Publication:
    """What one rank has put into the object store: a list, and the buckets that it describes."""

    contents: ray.ObjectRef
    buckets: tuple[ray.ObjectRef, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class RemoteWeights:
    """All weights of one version, in the publications of all ranks; whoever iterates over them pulls the buckets."""

    version: int
    publications: tuple[Publication, ...]
    """In the order of the ranks."""

    def __iter__(self) -> Iterator[tuple[str, Tensor]]:
        """Gives every tensor under its checkpoint name, in the model's order, read-only.

        Raises SyncError if they are not, name by name and byte for byte, the ranks' weights of this version.
        """
        lists: list[Contents] = _get([publication.contents for publication in self.publications])
        fetch = {rank: partial(_fetch, publication) for rank, publication in enumerate(self.publications)}
        yield from tensors(plan(lists, self.version), self.version, fetch)


def publish(weights: Weights, share: Collection[str], *, table: Sequence[str], rank: int, version: int) -> Publication:
    """Puts those of the weights that are in `share` into the object store, bucket by bucket.

    `table` are all names of the model in order, which rank 0 adds to its list.
    """
    refs, entries = [], []
    chosen = frozenset(share)
    for bucket, described in buckets(((n, t) for n, t in weights if n in chosen), rank, version, PIECE_BYTES):
        refs.append(ray.put(bucket))
        entries += described
    named = tuple(table) if rank == 0 else ()
    contents = Contents(rank=rank, version=version, entries=tuple(entries), table=named)
    return Publication(contents=ray.put(contents), buckets=tuple(refs))


def _fetch(publication: Publication, number: int) -> Bucket:
    """Gets one bucket, and tells Ray to bring the next one to this machine meanwhile."""
    following = list(publication.buckets[number + 1 : number + 2])
    if following:
        ray.wait(following, timeout=0, fetch_local=True)
    return _get([publication.buckets[number]])[0]


def _get(refs: list[ray.ObjectRef]) -> list[Any]:
    with deaths_named():
        return ray.get(refs)
