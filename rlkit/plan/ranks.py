"""The fullest rank of a trainer, the layouts that fit a number of GPUs, and the smallest number of nodes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from rlkit.errors import UserError
from rlkit.model.config import DeepseekV3Config
from rlkit.plan.activations import activation_bytes, logit_bytes
from rlkit.plan.counts import held_by_stage, stage_layers
from rlkit.plan.engine import EngineLayout, engine_bytes
from rlkit.plan.hardware import Hardware
from rlkit.plan.layout import ZERO_STAGES, Layout, divisors
from rlkit.plan.trainer import WIDTH, Held, TrainerBytes, trainer_bytes

SHARE_FOR_LIBRARIES = 0.1
"""Of a GPU's memory: CUDA, NCCL, cuBLAS, and what fragmentation costs. A CPU needs none of them."""
STAGES = (1, 2, 4, 8, 16)
"""Numbers of pipeline stages that the search tries."""
MOST_NODES = 512


@dataclass(frozen=True, slots=True, kw_only=True)
class Demand:
    """What a trainer is asked to do, whatever its layout."""

    config: DeepseekV3Config | None
    """None for a model of transformers, whose activations are not predicted."""
    parameters: int
    """All of them, modules for multi-token prediction included."""
    adapters: int
    orthogonal: int
    """Those that Muon trains; 0 with AdamW."""
    vocab_size: int
    kind: str
    dtype: str
    reference: bool
    max_tokens: int
    sample: int
    """Tokens of the longest sample."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Fit:
    """A layout, what its fullest rank needs, and whether the hardware has it."""

    layout: Layout
    needs: TrainerBytes
    fits: bool


def rank_bytes(demand: Demand, layout: Layout, hardware: Hardware) -> TrainerBytes:
    """Returns the bytes of the fullest rank."""
    return max(stage_bytes(demand, layout, hardware), key=lambda needs: (needs.peak, needs.host))


def stage_bytes(demand: Demand, layout: Layout, hardware: Hardware) -> list[TrainerBytes]:
    """Returns the bytes of a rank of each stage."""
    values = {"kind": demand.kind, "dtype": demand.dtype, "reference": demand.reference, "on_cpu": hardware.is_cpu}
    values |= {"optimizer": "muon" if demand.orthogonal else "adamw"}
    logits = logit_bytes(demand.vocab_size, demand.max_tokens)
    config = demand.config
    if config is None:
        held = Held(dense=demand.parameters, adapters=demand.adapters, matrices=demand.orthogonal)
        return [trainer_bytes(held, layout, logits=logits, **values)]
    found = []
    every = zip(held_by_stage(config, layout, demand.adapters), stage_layers(config, layout), strict=True)
    for stage, (held, layers) in enumerate(every):
        kept = activation_bytes(
            config,
            layout,
            layers,
            tokens=demand.max_tokens,
            sample=demand.sample,
            width=WIDTH[demand.dtype],
            on_cpu=hardware.is_cpu,
        )
        found.append(trainer_bytes(held, layout, activations=kept, logits=logits if stage == 0 else 0, **values))
    return found


def room(hardware: Hardware) -> int:
    """Returns the bytes of a device that a part of a run may fill."""
    return hardware.memory if hardware.is_cpu else round(hardware.memory * (1 - SHARE_FOR_LIBRARIES))


def fit(demand: Demand, layout: Layout, hardware: Hardware) -> Fit:
    """Says whether the fullest rank of a layout fits its device, and what is offloaded its node."""
    needs = rank_bytes(demand, layout, hardware)
    at_home = min(layout.ranks, hardware.per_node) * needs.host
    fits = needs.peak <= room(hardware) and at_home <= hardware.host_memory * (1 - SHARE_FOR_LIBRARIES)
    return Fit(layout=layout, needs=needs, fits=fits)


def layouts(demand: Demand, ranks: int, *, recompute: bool, offload: str) -> Iterator[Layout]:
    """Yields the legal layouts of so many ranks that are worth a look: for every PP and ZeRO stage the largest EP."""
    for stages in STAGES:
        experts = 1 if demand.config is None else demand.config.n_routed_experts
        replicas = ranks // stages
        parts = [value for value in divisors(replicas or 1) if experts % value == 0]
        for zero in ZERO_STAGES:
            layout = Layout(
                ranks=ranks,
                expert_parallel=parts[-1],
                pipeline_stages=stages,
                zero_stage=zero,
                recompute=recompute,
                offload=offload,
            )
            try:
                layout.check(demand.config)
            except UserError:  # it does not divide this model, or the library cannot do both
                if layout.expert_parallel > 1:
                    continue
                layout = replace(layout, expert_parallel=1)
                try:
                    layout.check(demand.config)
                except UserError:
                    continue
            yield layout


def options(demand: Demand, ranks: int, hardware: Hardware, *, recompute: bool, offload: str) -> list[Fit]:
    """Returns these layouts with what they need, the leanest first."""
    tried = layouts(demand, ranks, recompute=recompute, offload=offload)
    return sorted((fit(demand, layout, hardware) for layout in tried), key=lambda found: found.needs.peak)


def smallest(demand: Demand, hardware: Hardware, *, offload: str) -> tuple[int, Fit] | None:
    """Returns the least number of nodes on which some layout fits, with recomputation, and the leanest such layout."""
    for nodes in range(1, MOST_NODES + 1):
        found = options(demand, nodes * hardware.per_node, hardware, recompute=True, offload=offload)
        fitting = [option for option in found if option.fits]
        if fitting:
            return nodes, fitting[0]
    return None


def smallest_engine(
    config: DeepseekV3Config, hardware: Hardware, *, kind: str, dtype: str, sequences: int, length: int
) -> EngineLayout | None:
    """Returns the engine of the fewest devices that holds the weights and these sequences.

    Inside a node TP divides all; beyond, whole experts are dealt over all devices, and TP, inside a node, the rest.
    """
    for gpus in (count for nodes in range(1, 65) for count in _counts(hardware, nodes)):
        beyond = gpus > hardware.per_node
        for ways in reversed(divisors(hardware.per_node)) if beyond else (gpus,):
            layout = EngineLayout(
                gpus=gpus,
                tensor_parallel=ways,
                expert_parallel=beyond,
                redundant_experts=-config.n_routed_experts % gpus if beyond else 0,
            )
            if config.num_attention_heads % ways:
                continue
            needs = engine_bytes(config, layout, kind=kind, dtype=dtype, sequences=sequences, length=length)
            if needs.peak <= room(hardware):
                return layout
    return None


def _counts(hardware: Hardware, nodes: int) -> list[int]:
    """GPUs to try: divisors of a node, then whole nodes."""
    return divisors(hardware.per_node) if nodes == 1 else [nodes * hardware.per_node]
