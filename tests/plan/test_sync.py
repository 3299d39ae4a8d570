"""The bytes of a sync against the tensors that a trainer publishes, and the pieces that they are dealt in."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from rlkit.cluster.buckets import buckets
from rlkit.config import GrpoRun
from rlkit.config.compose import load_config
from rlkit.model import DeepseekV3
from rlkit.model.deepseek_architecture import DeepseekArchitecture
from rlkit.model.files.sent import form_for, in_form
from rlkit.model.files.weights import PIECE_BYTES, WORKER_PIECE_BYTES
from rlkit.plan.layout import Layout
from rlkit.plan.plan import make_plan
from rlkit.plan.settings import PlanSettings, read_settings
from rlkit.plan.sync import sync_bytes
from rlkit.plan.table import lines
from rlkit.train.publishing import share_of
from tests.model.float8 import TILED
from tests.model.tiny import seeded

CONFIG = replace(TILED, num_hidden_layers=4, num_nextn_predict_layers=1)
ALONE = Layout(ranks=1)


def sent(trainer_dtype: str, engine_dtype: str) -> dict[str, torch.Tensor]:
    """What a trainer of this dtype publishes for such an engine."""
    model = seeded(CONFIG)
    model = model if trainer_dtype == "fp32" else model.bfloat16()
    return dict(in_form(model.checkpoint_weights(), model.fp8_names(), form_for(trainer_dtype, engine_dtype)))


@pytest.mark.parametrize(
    ("trainer", "engine"),
    [("fp32", "fp32"), ("bf16", "bf16"), ("fp8", "bf16"), ("fp8_weights", "fp8"), ("fp8", "fp8")],
)
def test_what_is_published(trainer: str, engine: str) -> None:
    """The router's biases alone may be wider or narrower than they are counted: 4 numbers a layer."""
    tensors = sent(trainer, engine)
    form = form_for(trainer, engine)
    planned = sync_bytes(CONFIG, ALONE, parameters=0, form=form, dtype=trainer, workers=1)
    assert planned.published == pytest.approx(sum(tensor.nbytes for tensor in tensors.values()), abs=4 * 4 * 4)
    assert planned.share == planned.published


def test_pieces_are_those_that_ranks_put_into_the_store() -> None:
    tensors = sent("bf16", "bf16")
    dealt = [bucket for bucket, _ in buckets(tensors.items(), 0, 1, PIECE_BYTES)]
    planned = sync_bytes(CONFIG, ALONE, parameters=0, form="plain", dtype="bf16", workers=2)
    assert max(sum(array.nbytes for array in bucket.data) for bucket in dealt) <= planned.piece == PIECE_BYTES
    assert (planned.engine, planned.workers) == (2 * PIECE_BYTES, WORKER_PIECE_BYTES)
    wide = replace(CONFIG, vocab_size=10**6)  # an embedding of 256 MB is a piece of its own
    planned = sync_bytes(wide, ALONE, parameters=0, form="plain", dtype="bf16", workers=2)
    assert planned.piece == 2 * 128 * 10**6 and planned.workers == WORKER_PIECE_BYTES
    assert sync_bytes(wide, ALONE, parameters=0, form="plain", dtype="fp32", workers=2).workers == 4 * 128 * 10**6


@pytest.mark.parametrize(
    "layout",
    [
        Layout(ranks=4),
        Layout(ranks=4, expert_parallel=4),
        Layout(ranks=4, expert_parallel=2),
        Layout(ranks=4, expert_parallel=2, pipeline_stages=2),
    ],
    ids=str,
)
def test_the_fullest_share_is_that_of_the_ranks(layout: Layout) -> None:
    """As `rlkit.train.publishing` deals the names, to less than the largest tensor."""
    from rlkit.model.experts import ExpertShare
    from rlkit.model.stages import Stage

    with torch.device("meta"):
        model = DeepseekV3(
            CONFIG, ExpertShare(rank=0, size=layout.expert_parallel), Stage(rank=0, size=layout.pipeline_stages)
        )
    sizes = {name: 2 * math.prod(shape) for name, shape in model.all_published().items()}
    dealt = [share_of(sizes, lambda name: model.holders(name, layout.ranks), rank) for rank in range(layout.ranks)]
    fullest = max(sum(sizes[name] for name in names) for names in dealt)
    planned = sync_bytes(CONFIG, layout, parameters=0, form="plain", dtype="bf16", workers=1)
    assert abs(planned.share - fullest) <= max(sizes.values())
    assert planned.published == pytest.approx(sum(sizes.values()), abs=100)


def test_a_model_of_transformers_has_its_parameters_alone() -> None:
    planned = sync_bytes(None, Layout(ranks=2), parameters=1000, form="plain", dtype="bf16", workers=1)
    assert (planned.published, planned.share, planned.piece) == (2000, 1000, PIECE_BYTES)


def test_the_plan_has_a_sync_where_weights_travel() -> None:
    words = ["trainer.dtype=bf16", "engine.dtype=bf16", "engine.tensor_parallel=2"]

    def planned(*more: str) -> str:
        settings, overrides = read_settings([*words, *more])
        cfg = load_config("grpo", GrpoRun, overrides)
        assert cfg.model.architecture is not None
        return "\n".join(lines(make_plan(cfg, DeepseekArchitecture(config=cfg.model.architecture), settings)))

    shown = planned("hardware=h100")
    assert "a sync of all weights, in main memory" in shown and "268.4 MB  shared with its workers" in shown
    assert "in the form 'fp8', by all ranks" in planned("hardware=h100", "trainer_dtype=fp8", "engine_dtype=fp8")
    assert "in the form 'fp8', by all ranks" in planned("hardware=h100", "engine_dtype=fp8")
    alone = ["cluster=local", "engine=torch", "trainer=torch"]
    cfg = load_config("grpo", GrpoRun, alone)
    assert cfg.model.architecture is not None
    plan = make_plan(cfg, DeepseekArchitecture(config=cfg.model.architecture), PlanSettings())
    assert plan.sync is None and "a sync of" not in "\n".join(lines(plan))
