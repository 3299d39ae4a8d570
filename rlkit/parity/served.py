"""The gate of an engine in FP8 without a trainer: what it computes with is held against the files that it loaded."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from torch import Tensor

from rlkit.model.files.folder import SCALE, Checkpoint
from rlkit.model.files.sent import fingerprints
from rlkit.model.files.shards import read_tensor
from rlkit.parity.fp8 import Replicated, check_bytes, check_products
from rlkit.parity.gate import Sequences, ask_all


def check_served(engine: Replicated, checkpoint: Path, sequences: Sequences) -> int:
    """Returns how many tensors every replica holds byte for byte as the folder in FP8 does.

    Raises ParityError for the first that it does not, and for a layer that does not compute what its tensors say.
    """
    prints = fingerprints(_stored(Checkpoint.open(checkpoint)))
    audited = len(prints)
    for _, seen in ask_all(engine.replicas(), lambda replica: replica.examine(sequences)):
        check_bytes(prints, seen, source=str(checkpoint))
        check_products(seen)
        audited = min(audited, len(prints.keys() - seen.unused))
    return audited


def _stored(checkpoint: Checkpoint) -> Iterator[tuple[str, Tensor]]:
    for name, stored in checkpoint.weights.items():
        yield name, read_tensor(name, stored)
    for name, stored in checkpoint.scales.items():
        yield name + SCALE, read_tensor(name + SCALE, stored)
