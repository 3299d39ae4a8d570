"""The bytes of a sync: the weights on their way from ranks to engines, all of them in main memory.

Every rank copies its share, a piece at a time, into Ray's store, where it stays until all engines have loaded it. An
engine has two pieces, the one that it loads and the next. With worker processes it copies tensors on into memory that
these share. What a loaded tensor needs on a device is among the bytes of the engine.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from rlkit.config import TrainingRun
from rlkit.model.architecture import Architecture
from rlkit.model.config import DeepseekV3Config
from rlkit.model.files.sent import form_for
from rlkit.model.files.weights import PIECE_BYTES, WORKER_PIECE_BYTES
from rlkit.plan.layout import Layout
from rlkit.plan.shards import Stored, published_index, stage_of
from rlkit.quant.fp8 import FLOAT8


@dataclass(frozen=True, slots=True, kw_only=True)
class SyncBytes:
    """What one sync of all weights needs beside trainer and engines, in bytes of main memory."""

    form: str
    """One of `rlkit.model.files.sent.FORMS`."""
    published: int
    """Of all ranks together, in Ray's store."""
    share: int
    """Of the rank that publishes most."""
    piece: int
    """The most that a rank copies at a time: a piece of the usual size, or the largest tensor."""
    engine: int
    """In the process of an engine: two pieces."""
    workers: int
    """What it shares with its worker processes; 0 without."""


def sync_bytes(
    config: DeepseekV3Config | None, layout: Layout, *, parameters: int, form: str, dtype: str, workers: int
) -> SyncBytes:
    """Returns the bytes of a sync from ranks in `layout` that compute in `dtype`, to engines of so many workers each.

    A model of transformers, without `config`, has `parameters` in tensors of unknown size.
    """
    width = 4 if form == "plain" and dtype == "fp32" else 2
    index = {} if config is None else published_index(config, "fp8" if form in FLOAT8 else "bf16")
    stages = Counter({0: 0 if config is not None else width * parameters})
    for stored in index.values():
        assert config is not None
        stages[stage_of(stored.layer, config, layout)] += _sent(stored, width)
    largest = max((_sent(stored, width) for stored in index.values()), default=0)
    piece = max(PIECE_BYTES, largest)
    return SyncBytes(
        form=form,
        published=stages.total(),
        share=-(-max(stages.values()) // layout.replicas),
        piece=piece,
        engine=2 * piece,
        workers=max(WORKER_PIECE_BYTES, largest) if workers > 1 else 0,
    )


def planned_sync(
    cfg: TrainingRun,
    architecture: Architecture,
    config: DeepseekV3Config | None,
    layout: Layout,
    *,
    trainer_dtype: str,
    engine_dtype: str,
    workers: int,
) -> SyncBytes | None:
    """Returns the bytes of a sync of this run; None where the weights stay in one process or an adapter is sent."""
    if cfg.cluster.kind == "local" or cfg.served_adapter is not None:
        return None
    size = architecture.size()
    # A plan may ask for an engine in FP8 beside a trainer in bf16, which no run may have.
    planned = "fp8" if engine_dtype == "fp8" and trainer_dtype not in FLOAT8 else trainer_dtype
    form = form_for(planned, engine_dtype)
    total = size.parameters + size.mtp_parameters
    return sync_bytes(config, layout, parameters=total, form=form, dtype=trainer_dtype, workers=workers)


def _sent(stored: Stored, width: int) -> int:
    return stored.nbytes * 2 if width == 4 and stored.dtype.itemsize == 2 else stored.nbytes
