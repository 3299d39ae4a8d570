"""Parameters by layer, and what a rank of a layout holds of them before ZeRO deals it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

from rlkit.model.config import DeepseekV3Config
from rlkit.model.stages import Stage
from rlkit.plan.layout import Layout
from rlkit.plan.shards import published_index
from rlkit.plan.trainer import Held


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerCount:
    """Parameters of one layer, or of what stands at the two ends of the model."""

    dense: int
    experts: int
    largest: int
    """Of the largest matrix outside the experts."""
    matrices: int
    """Of the dense ones those that are matrices of a hidden layer."""
    matrix: int
    """The largest of these, or one of an expert."""


@cache
def layer_counts(config: DeepseekV3Config) -> tuple[LayerCount, ...]:
    """Returns the counts of every layer, modules for multi-token prediction last, and then of the two ends together."""
    num = config.num_hidden_layers + config.num_nextn_predict_layers
    dense, experts, largest, matrices, matrix = ([0] * (num + 1) for _ in range(5))
    for stored in published_index(config, "bf16").values():
        place = num if stored.layer is None else stored.layer
        if stored.expert is None:
            dense[place] += stored.numel
            largest[place] = max(largest[place], stored.numel)
            matrices[place] += stored.numel if stored.matrix else 0
        else:
            experts[place] += stored.numel
        matrix[place] = max(matrix[place], stored.numel if stored.matrix else 0)
    return tuple(
        LayerCount(dense=d, experts=e, largest=m, matrices=h, matrix=o)
        for d, e, m, h, o in zip(dense, experts, largest, matrices, matrix, strict=True)
    )


def stage_layers(config: DeepseekV3Config, layout: Layout) -> Sequence[Sequence[int]]:
    """Returns the layers of every stage, those of multi-token prediction in the first."""
    return _stage_layers(config, layout.pipeline_stages)


def held_by_stage(config: DeepseekV3Config, layout: Layout, adapters: int = 0) -> Sequence[Held]:
    """Returns what a rank of each stage holds; LoRA's `adapters` are counted where there is one stage."""
    return _held_by_stage(config, layout.pipeline_stages, layout.expert_parallel, adapters)


# A search for the smallest cluster tries thousands of layouts, which differ in what does not matter here.
@cache
def _stage_layers(config: DeepseekV3Config, stages: int) -> Sequence[Sequence[int]]:
    found: list[list[int]] = [[] for _ in range(stages)]
    for layer in range(config.num_hidden_layers + config.num_nextn_predict_layers):
        found[Stage(rank=0, size=stages).of(layer, config.num_hidden_layers)].append(layer)
    return found


@cache
def _held_by_stage(config: DeepseekV3Config, stages: int, parts: int, adapters: int) -> Sequence[Held]:
    counts = layer_counts(config)
    return [
        _held(config, [counts[layer] for layer in layers] + ([counts[-1]] if stage == 0 else []), parts, adapters)
        for stage, layers in enumerate(_stage_layers(config, stages))
    ]


def _held(config: DeepseekV3Config, counts: Sequence[LayerCount], parts: int, adapters: int) -> Held:
    stacked = 2 * config.moe_intermediate_size * config.hidden_size * config.n_routed_experts // parts
    largest = max(count.largest for count in counts)
    return Held(
        dense=sum(count.dense for count in counts),
        experts=sum(count.experts for count in counts) // parts,
        adapters=adapters,
        largest=max(largest, stacked if any(count.experts for count in counts) else 0),
        block=max(count.dense + count.experts // parts for count in counts),
        matrices=sum(count.matrices for count in counts),
        matrix=max(count.matrix for count in counts),
    )
