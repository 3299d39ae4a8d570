"""Whether a run has a sync at all, in which form, and how its bytes are dealt where no tensor is known."""

from __future__ import annotations

from typing import Any

import pytest

from rlkit.config import LoraConfig
from rlkit.model.config import DeepseekV3Config
from rlkit.model.deepseek_architecture import DeepseekArchitecture
from rlkit.model.files.weights import PIECE_BYTES, WORKER_PIECE_BYTES
from rlkit.plan.layout import Layout
from rlkit.plan.sync import SyncBytes, planned_sync, sync_bytes
from tests.config.variants import but, default
from tests.model.tiny import BASE

TINY = DeepseekArchitecture(config=BASE)


def planned(
    changes: dict[str, Any],
    trainer: str = "bf16",
    engine: str = "bf16",
    config: DeepseekV3Config | None = BASE,
    workers: int = 1,
) -> SyncBytes | None:
    cfg = but(default("grpo"), changes)
    layout = Layout(ranks=2)
    return planned_sync(cfg, TINY, config, layout, trainer_dtype=trainer, engine_dtype=engine, workers=workers)


@pytest.mark.parametrize(
    "changes",
    [
        {"cluster.kind": "local", "engine.kind": "torch", "trainer.kind": "torch"},
        {"trainer.lora": LoraConfig(served="adapter")},
    ],
)
def test_where_no_weights_travel_there_is_no_sync(changes: dict[str, Any]) -> None:
    """One process has one copy, and an adapter is sent by itself."""
    assert planned(changes) is None


def test_a_merged_adapter_is_sent_as_all_weights() -> None:
    assert planned({"trainer.lora": LoraConfig()}) == planned({}) is not None


@pytest.mark.parametrize(
    ("trainer", "engine", "form"),
    [
        ("fp32", "fp32", "plain"),
        ("bf16", "bf16", "plain"),
        ("fp8", "bf16", "fp8 as bf16"),
        ("fp8_weights", "bf16", "fp8_weights as bf16"),
        ("fp8", "fp8", "fp8"),
        ("fp8_weights", "fp8", "fp8_weights"),
        ("bf16", "fp8", "fp8"),
        ("fp32", "fp8", "fp8"),
    ],
)
def test_the_form_is_that_of_the_engine(trainer: str, engine: str, form: str) -> None:
    """A plan may ask for an engine in FP8 beside any trainer; it gets codes."""
    found = planned({}, trainer, engine)
    assert found is not None and found.form == form


def test_a_model_of_unknown_tensors_is_counted_by_its_parameters() -> None:
    size = TINY.size()
    for dtype, width in (("bf16", 2), ("fp32", 4)):
        found = planned({}, dtype, dtype, config=None)
        assert found is not None and found.published == width * (size.parameters + size.mtp_parameters)


@pytest.mark.parametrize(("ranks", "share"), [(1, 2002), (2, 1001), (4, 501), (3, 668)])
def test_a_share_is_rounded_up(ranks: int, share: int) -> None:
    """2 x 1,001 bytes over 4 ranks are 500.5 each, and over 3 they are 667 1/3."""
    found = sync_bytes(None, Layout(ranks=ranks), parameters=1001, form="plain", dtype="bf16", workers=1)
    assert (found.published, found.share) == (2002, share)


def test_memory_is_shared_with_workers_where_there_are_any() -> None:
    alone, many = planned({}), planned({}, workers=2)
    assert alone is not None and many is not None
    assert (alone.workers, many.workers) == (0, WORKER_PIECE_BYTES)
    assert alone.piece == many.piece == PIECE_BYTES and many.engine == 2 * PIECE_BYTES


def test_fp8_is_about_half_of_bf16_and_fp32_twice() -> None:
    sizes = {}
    for trainer, engine in (("fp32", "fp32"), ("bf16", "bf16"), ("fp8", "fp8"), ("fp8", "bf16")):
        found = planned({}, trainer, engine)
        assert found is not None
        sizes[trainer, engine] = found.published
    plain = sizes["bf16", "bf16"]
    assert 1.9 * plain < sizes["fp32", "fp32"] <= 2 * plain
    assert sizes["fp8", "bf16"] == plain, "codes multiplied out are bf16 numbers"
    assert plain / 2 < sizes["fp8", "fp8"] < plain
