"""The fullest rank, the layouts that are worth a look, and the fewest nodes, by hand on small hardware."""

from __future__ import annotations

from dataclasses import replace

import pytest

from rlkit.model import DeepseekV3, DeepseekV3Config
from rlkit.model.experts import ExpertShare
from rlkit.model.matrices import matrix_shapes
from rlkit.plan.counts import held_by_stage, layer_counts
from rlkit.plan.hardware import KNOWN, Hardware
from rlkit.plan.layout import Layout, divisors
from rlkit.plan.ranks import (
    Demand,
    fit,
    layouts,
    options,
    rank_bytes,
    room,
    smallest,
    smallest_engine,
    stage_bytes,
)
from tests.model.tiny import BASE

CONFIG = replace(BASE, num_hidden_layers=8)
DEMAND = Demand(
    config=CONFIG,
    parameters=sum(count.dense + count.experts for count in layer_counts(CONFIG)),
    adapters=0,
    orthogonal=0,
    vocab_size=CONFIG.vocab_size,
    kind="deepspeed",
    dtype="bf16",
    reference=False,
    max_tokens=16,
    sample=16,
)


def small(memory: int, host_memory: int = 10**15) -> Hardware:
    """Nodes of 2 devices with so much memory."""
    return replace(KNOWN["h100"], memory=memory, host_memory=host_memory, per_node=2)


@pytest.mark.parametrize("parts", [1, 2, 4, 8])
@pytest.mark.parametrize("config", [BASE, replace(BASE, num_nextn_predict_layers=1, q_lora_rank=24)])
def test_a_rank_holds_what_its_model_has(config: DeepseekV3Config, parts: int) -> None:
    """The model that a rank builds with its share of the experts, parameter by parameter."""
    (held,) = held_by_stage(config, Layout(ranks=parts, expert_parallel=parts))
    for part in range(parts):
        model = DeepseekV3(config, ExpertShare(rank=part, size=parts))
        sizes = {name: parameter.numel() for name, parameter in model.named_parameters()}
        assert held.total == sum(sizes.values())
        assert held.experts == sum(size for name, size in sizes.items() if ".experts." in name)
        assert held.largest == max(sizes.values())
        blocks = [sum(parameter.numel() for parameter in layer.parameters()) for layer in model.model.layers]
        ends = sum(sizes.values()) - sum(blocks)
        assert held.block == max(*blocks, ends)


def test_layers_are_counted_as_they_are_built() -> None:
    counts, model = layer_counts(CONFIG), DeepseekV3(CONFIG)
    assert len(counts) == CONFIG.num_hidden_layers + 1
    for count, layer in zip(counts, model.model.layers, strict=False):
        assert count.dense + count.experts == sum(parameter.numel() for parameter in layer.parameters())
    assert counts[0].experts == 0 and counts[1].experts > 0  # the first layer is dense
    assert counts[-1].dense == 2 * 96 * 64 + 64  # embedding, head, last norm


def test_the_fullest_rank_is_that_of_the_fullest_stage() -> None:
    layout = Layout(ranks=4, pipeline_stages=4)
    stages = stage_bytes(DEMAND, layout, KNOWN["h100"])
    assert len(stages) == 4
    assert rank_bytes(DEMAND, layout, KNOWN["h100"]) == max(stages, key=lambda needs: needs.peak)
    assert stages[0].logits > 0 and all(needs.logits == 0 for needs in stages[1:])
    held = sum(needs.weights for needs in stages)
    assert held == 2 * DEMAND.parameters


def test_a_model_of_transformers_is_counted_whole() -> None:
    demand = replace(DEMAND, config=None, parameters=1000)
    needs = rank_bytes(demand, Layout(ranks=4, zero_stage=2), KNOWN["h100"])
    assert (needs.weights, needs.gradients, needs.optimiser) == (2000, 1000, 3000)
    assert needs.activations == 0
    assert {
        (layout.expert_parallel, layout.pipeline_stages)
        for layout in layouts(demand, 4, recompute=True, offload="none")
    } == {(1, 1)}


def test_muon_has_one_moment_of_matrices_and_two_of_the_rest() -> None:
    """As the optimiser of one process has them after a step, number by number."""
    model = DeepseekV3(CONFIG)
    shapes = matrix_shapes(model)
    kept = 4 * sum(p.numel() * (1 if p in shapes else 2) for p in model.parameters())
    demand = replace(DEMAND, kind="torch", dtype="fp32", orthogonal=sum(p.numel() for p in shapes))
    assert rank_bytes(demand, Layout(ranks=1), KNOWN["h100"]).optimiser == kept
    transformers = replace(demand, config=None)
    assert rank_bytes(transformers, Layout(ranks=1), KNOWN["h100"]).optimiser == kept
    dealt = replace(demand, kind="deepspeed")
    assert rank_bytes(dealt, Layout(ranks=2), KNOWN["h100"]).optimiser == kept / 2 + 4 * DEMAND.parameters / 2


def test_a_device_keeps_a_tenth_for_libraries_and_a_cpu_does_not() -> None:
    assert room(KNOWN["h100"]) == 72 * 10**9
    assert room(replace(KNOWN["h100"], is_cpu=True)) == 80 * 10**9


def test_every_layout_that_is_tried_is_legal_and_has_the_largest_ep() -> None:
    tried = list(layouts(DEMAND, 8, recompute=False, offload="none"))
    assert {(layout.pipeline_stages, layout.expert_parallel, layout.zero_stage) for layout in tried} == {
        (1, 8, 1),
        (1, 8, 2),
        (1, 8, 3),
        (2, 4, 1),  # the pipeline has ZeRO-1 alone
        (4, 2, 1),
    }
    for layout in tried:
        layout.check(CONFIG)
    assert all(layout.zero_stage == 3 for layout in layouts(DEMAND, 8, recompute=False, offload="all"))


def test_options_are_sorted_by_what_they_need() -> None:
    found = options(DEMAND, 8, KNOWN["h100"], recompute=True, offload="none")
    peaks = [option.needs.peak for option in found]
    assert peaks == sorted(peaks) and len(peaks) == 5
    assert all(option.fits for option in found)


def test_what_fits_is_decided_on_the_device_and_in_the_node() -> None:
    layout = Layout(ranks=2, zero_stage=3, offload="optimizer")
    needs = rank_bytes(DEMAND, layout, KNOWN["h100"])
    exact = -(-needs.peak * 10 // 9)
    assert fit(DEMAND, layout, small(exact)).fits
    assert not fit(DEMAND, layout, small(needs.peak)).fits
    at_home = -(-2 * needs.host * 10 // 9)  # both ranks of the node
    assert fit(DEMAND, layout, small(exact, at_home)).fits
    assert not fit(DEMAND, layout, small(exact, needs.host)).fits


def test_the_fewest_nodes_are_the_first_that_fit() -> None:
    """A node less, and no layout that is tried fits any more."""
    # DeepSpeed's bucket is set aside whatever the model is, so the memory is counted from there.
    three = min(option.needs.peak for option in options(DEMAND, 6, small(1), recompute=True, offload="none"))
    hardware = small(-(-three * 10 // 9))
    found = smallest(DEMAND, hardware, offload="none")
    assert found is not None
    nodes, chosen = found
    assert nodes <= 3 and chosen.fits and chosen.layout.ranks == 2 * nodes
    for fewer in range(1, nodes):
        tried = options(DEMAND, 2 * fewer, hardware, recompute=True, offload="none")
        assert not any(option.fits for option in tried)


def test_nothing_fits_into_nothing() -> None:
    assert smallest(DEMAND, small(1000), offload="none") is None
    values = {"kind": "vllm", "dtype": "bf16", "sequences": 1, "length": 2}
    assert smallest_engine(CONFIG, small(1000), **values) is None


def test_the_smallest_engine_grows_from_a_device_to_nodes() -> None:
    values = {"kind": "vllm", "dtype": "bf16", "sequences": 4, "length": 8}
    one = smallest_engine(CONFIG, small(10**9), **values)
    assert one is not None and (one.gpus, one.tensor_parallel, one.expert_parallel) == (1, 1, False)
    v3 = smallest_engine(DeepseekV3Config(), KNOWN["h200"], **(values | {"dtype": "fp8"}))
    assert v3 is not None and (v3.gpus, v3.tensor_parallel, v3.expert_parallel) == (8, 8, False)
    wide = smallest_engine(DeepseekV3Config(), KNOWN["h100"], **values)
    assert wide is not None and wide.expert_parallel and wide.gpus % 8 == 0
    assert (256 + wide.redundant_experts) % wide.gpus == 0


def test_divisors() -> None:
    assert divisors(12) == [1, 2, 3, 4, 6, 12]
    assert divisors(1) == [1]
