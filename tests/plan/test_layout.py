"""What does not divide is refused with key, value and fix."""

from __future__ import annotations

import pytest

from rlkit.errors import UserError
from rlkit.model import DeepseekV3Config
from rlkit.plan.engine import EngineLayout
from rlkit.plan.layout import Layout
from tests.model.tiny import BASE

V3 = DeepseekV3Config(num_nextn_predict_layers=1)


@pytest.mark.parametrize(
    ("layout", "message"),
    [
        (Layout(ranks=96, expert_parallel=48), "expert_parallel=48 does not divide n_routed_experts=256; use 32 or 64"),
        (Layout(ranks=96, expert_parallel=64), "expert_parallel=64 does not divide gpus=96; use 32"),
        (
            Layout(ranks=96, expert_parallel=16, pipeline_stages=4),
            "expert_parallel=16 does not divide gpus=96 / pipeline_stages=4; use 8",
        ),
        (Layout(ranks=96, pipeline_stages=36), "pipeline_stages=36 does not divide gpus=96; use 32 or 48"),
        (
            Layout(ranks=128, pipeline_stages=32),
            "pipeline_stages=32: DualPipeV gives every stage two pieces, and the model has 61 layers for the 64; "
            "use at most 30",
        ),
        (Layout(ranks=8, pipeline_stages=2, zero_stage=2), "zero_stage=2 with pipeline_stages=2: .* use zero_stage=1"),
        (Layout(ranks=8, zero_stage=4), "zero_stage=4 is unknown; use 1, 2 or 3"),
        (Layout(ranks=8, offload="disk"), "offload='disk' is unknown; use none or optimizer or all"),
        (
            Layout(ranks=8, zero_stage=2, offload="all"),
            "offload=all with zero_stage=2: .* use zero_stage=3, or",
        ),
        (
            Layout(ranks=8, pipeline_stages=2, offload="optimizer"),
            "offload=optimizer with pipeline_stages=2: .* use pipeline_stages=1, or offload=none",
        ),
        (Layout(ranks=0), "gpus=0 must be at least 1"),
        (Layout(ranks=8, expert_parallel=0), "expert_parallel=0 must be at least 1"),
        (Layout(ranks=8, pipeline_stages=0), "pipeline_stages=0 must be at least 1"),
    ],
)
def test_a_layout_that_cannot_be(layout: Layout, message: str) -> None:
    with pytest.raises(UserError, match=message):
        layout.check(V3)


def test_models_without_what_is_divided() -> None:
    with pytest.raises(UserError, match="pipeline_stages=2: a model of transformers is not cut into stages; use 1"):
        Layout(ranks=2, pipeline_stages=2).check(None)
    with pytest.raises(UserError, match="expert_parallel=2: the model has no routed experts of our own class; use 1"):
        Layout(ranks=2, expert_parallel=2).check(None)


@pytest.mark.parametrize(
    ("layout", "message"),
    [
        (EngineLayout(gpus=6, tensor_parallel=4), "engine.tensor_parallel=4 does not divide engine_gpus=6"),
        (EngineLayout(gpus=3, tensor_parallel=3), "engine.tensor_parallel=3 does not divide num_attention_heads=128"),
        (
            EngineLayout(gpus=320, tensor_parallel=4, expert_parallel=True, redundant_experts=32),
            "redundant_experts=32: 256 experts and the redundant ones are 288, which engine_gpus=320 do not share "
            "evenly; use 64",
        ),
    ],
)
def test_an_engine_that_cannot_be(layout: EngineLayout, message: str) -> None:
    with pytest.raises(UserError, match=message):
        layout.check(V3)


def test_ranks_are_numbered_stage_by_stage() -> None:
    """12 ranks in 2 stages of 6, EP2: ranks 0 and 1 have all experts of the first stage, 2 and 3 again, and so on."""
    layout = Layout(ranks=12, expert_parallel=2, pipeline_stages=2)
    layout.check(BASE.__class__(num_hidden_layers=8))
    assert (layout.replicas, layout.expert_replicas) == (6, 3)
    assert [layout.coordinates(rank) for rank in (0, 1, 2, 5, 6, 11)] == [
        (0, 0, 0),
        (0, 0, 1),
        (0, 1, 0),
        (0, 2, 1),
        (1, 0, 0),
        (1, 2, 1),
    ]
