"""The shares of a layout against the published index, and that against a checkpoint which was written."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from rlkit.config import GrpoRun
from rlkit.config.compose import load_config
from rlkit.model import DeepseekV3, DeepseekV3Config
from rlkit.model.experts import ExpertShare
from rlkit.model.matrices import matrix_shapes
from rlkit.model.stages import Stage
from rlkit.plan.counts import held_by_stage, stage_layers
from rlkit.plan.layout import Layout
from rlkit.plan.rehearse import rehearse
from rlkit.plan.shards import check_union, deal_flat, published_index, shares
from tests.model.tiny import BASE

V3 = load_config("grpo", GrpoRun, ["model=deepseek_v3_671b"]).model.architecture
assert V3 is not None
TRAINED = Layout(ranks=2048, expert_parallel=64, pipeline_stages=16)
LAYOUTS = [
    TRAINED,
    Layout(ranks=96, expert_parallel=32, zero_stage=3),
    Layout(ranks=96, expert_parallel=8, pipeline_stages=12),
    Layout(ranks=128, expert_parallel=32, pipeline_stages=4),
    Layout(ranks=128, expert_parallel=64, zero_stage=2),
]
KINDS = {"F8_E4M3": "torch.float8_e4m3fn", "BF16": "torch.bfloat16", "F32": "torch.float32"}


@pytest.mark.parametrize(
    ("config", "dtype"), [(BASE, "fp8"), (BASE, "bf16"), (replace(BASE, num_nextn_predict_layers=1), "fp8")]
)
def test_the_index_is_that_of_a_checkpoint_on_disk(config: DeepseekV3Config, dtype: str, tmp_path: Path) -> None:
    """Names, shapes, dtypes and bytes; our files leave out the copies that MTP brings in published ones."""
    DeepseekV3(config).save_checkpoint(tmp_path / "model", dtype=dtype)
    found = {}
    for file in (tmp_path / "model").glob("*.safetensors"):
        with safe_open(file, "pt") as opened:
            for name in opened.keys():  # noqa: SIM118
                part = opened.get_slice(name)
                found[name] = (tuple(part.get_shape()), KINDS[part.get_dtype()])
    index = {name: (stored.shape, str(stored.dtype)) for name, stored in published_index(config, dtype).items()}
    copies = {
        name for name in index if (".embed_tokens." in name and ".layers." in name) or ".shared_head.head" in name
    }
    assert {name: value for name, value in index.items() if name not in copies or name in found} == found


@pytest.mark.slow
def test_the_index_of_deepseek_v3() -> None:
    """91,991 is the number of tensors in model.safetensors.index.json of deepseek-ai/DeepSeek-V3."""
    index = published_index(V3)
    assert len(index) == 91_991
    assert sum(stored.numel for stored in index.values()) == 671_026_404_352 + 11_610_067_968
    assert index["model.layers.3.self_attn.kv_a_proj_with_mqa.weight_scale_inv"].shape == (5, 56)
    assert str(index["model.layers.3.mlp.gate.weight"].dtype) == "torch.bfloat16"


@pytest.mark.slow
@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda layout: f"{layout.ranks} {layout}")
def test_all_shares_are_the_published_index_exactly_once(layout: Layout) -> None:
    assert V3 is not None
    found = shares(V3, layout)
    counts = Counter(name for share in found for name in share.published)
    assert counts == dict.fromkeys(published_index(V3), 1)
    assert check_union(found, V3) == 91_991
    assert sum(name.endswith("_scale_inv") for name in counts) == sum(
        "float8" in str(s.dtype) for s in published_index(V3).values()
    )
    # A rank holds its stage's dense tensors and its own experts, whoever hands them out.
    for share in found:
        assert set(share.published) <= share.held.keys()
        experts = {stored.expert for stored in share.held.values()} - {None}
        each = 256 // layout.expert_parallel
        assert experts == set(range(share.part * each, (share.part + 1) * each))


@pytest.mark.slow
@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda layout: f"{layout.ranks} {layout}")
def test_a_rehearsal_lists_every_rank(layout: Layout) -> None:
    assert V3 is not None
    found = rehearse(V3, layout, kind="deepspeed", dtype="bf16")
    assert [share.rank for share in found.ranks] == list(range(layout.ranks))
    assert all((share.stage, share.replica, share.part) == layout.coordinates(share.rank) for share in found.ranks)
    assert sum(share.published for share in found.ranks) == found.nbytes == 688_574_839_360
    # ZeRO deals each number of the optimiser once: 12 bytes for each of all parameters.
    parameters = 671_026_404_352 + 11_610_067_968
    assert sum(share.optimiser for share in found.ranks) == 12 * parameters
    orthogonal = sum(stored.numel for stored in published_index(V3).values() if stored.matrix)
    found = rehearse(V3, layout, kind="deepspeed", dtype="bf16", optimizer="muon")
    assert sum(share.optimiser for share in found.ranks) == 12 * parameters - 4 * orthogonal


@pytest.mark.parametrize("config", [BASE, replace(BASE, num_hidden_layers=9, num_nextn_predict_layers=1)])
@pytest.mark.parametrize("stages", [1, 2])
@pytest.mark.parametrize("parts", [1, 2, 4])
def test_counts_by_stage_are_those_of_the_shares(config: DeepseekV3Config, stages: int, parts: int) -> None:
    if 2 * stages > config.num_hidden_layers:
        config = replace(config, num_hidden_layers=4)
    layout = Layout(ranks=stages * parts, expert_parallel=parts, pipeline_stages=stages)
    held = held_by_stage(config, layout)
    for share in shares(config, layout):
        assert (share.dense, share.experts) == (held[share.stage].dense, held[share.stage].experts)
    total = sum(parameter.numel() for parameter in DeepseekV3(config).parameters())
    assert sum(one.dense + parts * one.experts for one in held) == total


@pytest.mark.parametrize("config", [BASE, replace(BASE, num_nextn_predict_layers=1, q_lora_rank=24)])
def test_the_matrices_are_those_that_muon_trains(config: DeepseekV3Config) -> None:
    model = DeepseekV3(config)
    trained = sum(parameter.numel() for parameter in matrix_shapes(model))
    assert sum(stored.numel for stored in published_index(config).values() if stored.matrix) == trained
    for layout in (Layout(ranks=1), Layout(ranks=4, expert_parallel=4)):
        for share in shares(config, layout):
            (held,) = held_by_stage(config, layout)
            part = DeepseekV3(config, ExpertShare(rank=share.part, size=layout.expert_parallel))
            shapes = matrix_shapes(part)
            assert held.matrices + held.experts == sum(parameter.numel() for parameter in shapes)
            assert held.matrices == share.matrices
            assert held.matrix == max(rows * columns for rows, columns in shapes.values())


def test_a_union_with_a_hole_or_a_double_is_refused() -> None:
    whole = shares(BASE, Layout(ranks=2, expert_parallel=2))
    assert check_union(whole, BASE) == len(published_index(BASE))
    first, second = whole
    lost = replace(second, published=second.published[1:])
    with pytest.raises(ValueError, match=f"1 tensors are missing: {second.published[0]}"):
        check_union([first, lost], BASE)
    double = replace(second, published=[*second.published, first.published[0]])
    with pytest.raises(ValueError, match=f"1 tensors are more than once: {first.published[0]}"):
        check_union([first, double], BASE)
    foreign = replace(second, published=[*second.published, "model.extra"])
    with pytest.raises(ValueError, match=r"1 tensors are not of this model: model\.extra"):
        check_union([first, foreign], BASE)


@pytest.mark.slow
@pytest.mark.parametrize("ahead", [0, 2])
@pytest.mark.parametrize(("layers", "stages"), [(4, 2), (5, 2), (9, 4), (61, 16)])
def test_a_stage_holds_what_the_trainer_builds_there(layers: int, stages: int, ahead: int) -> None:
    """Name by name what a rank's model publishes, with the experts in two parts."""
    config = replace(BASE, num_hidden_layers=layers, num_nextn_predict_layers=ahead)
    layout = Layout(ranks=2 * stages, expert_parallel=2, pipeline_stages=stages)
    for share in shares(config, layout, "bf16"):
        with torch.device("meta"):
            part, stage = ExpertShare(rank=share.part, size=2), Stage(rank=share.stage, size=stages)
            model = DeepseekV3(config, part, stage)
        assert share.held.keys() == model.published().keys()
        assert share.dense + share.experts == sum(parameter.numel() for parameter in model.parameters())


def test_the_stages_of_deepseek_v3() -> None:
    """61 layers in 32 pieces; the first stage has both ends, the last layers and the module that predicts further."""
    assert V3 is not None
    dealt = stage_layers(V3, TRAINED)
    assert dealt[0] == [0, 59, 60, 61]
    assert {len(layers) for layers in dealt[1:]} == {2, 4}
    assert sorted(layer for layers in dealt for layer in layers) == list(range(62))


@pytest.mark.parametrize(("numbers", "ranks"), [(10, 3), (9, 3), (2, 4), (0, 2), (10**12 + 1, 2048)])
def test_a_flat_buffer_is_dealt_without_holes(numbers: int, ranks: int) -> None:
    dealt = deal_flat(numbers, ranks)
    assert len(dealt) == ranks
    assert dealt[0].start == 0 and dealt[-1].stop == numbers
    assert all(one.stop == next_one.start for one, next_one in pairwise(dealt))
