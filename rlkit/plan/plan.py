"""From a recipe's configuration and named hardware to a plan: bytes, layouts that fit, floors of seconds, cost."""

from __future__ import annotations

from dataclasses import dataclass, replace

from rlkit.config import GrpoRun, SftRun, TrainingRun
from rlkit.errors import UserError
from rlkit.model.architecture import Architecture
from rlkit.model.config import DeepseekV3Config
from rlkit.plan.adapters import adapter_parameters
from rlkit.plan.cost import Cost, Stage
from rlkit.plan.deployments import find_stages
from rlkit.plan.engine import EngineBytes, EngineLayout, engine_bytes, routed_bytes
from rlkit.plan.hardware import Hardware, find_hardware
from rlkit.plan.here import configured_layout
from rlkit.plan.layout import Layout
from rlkit.plan.models import config_of
from rlkit.plan.orthogonal import orthogonal_parameters
from rlkit.plan.phases import Engines, Phase, Trainers, Work, phases
from rlkit.plan.ranks import Demand, Fit, fit, options, rank_bytes, room, smallest, smallest_engine
from rlkit.plan.rehearse import Rehearsal, rehearse
from rlkit.plan.settings import PlanSettings
from rlkit.plan.shards import published_index
from rlkit.plan.sync import SyncBytes, planned_sync
from rlkit.plan.trainer import TrainerBytes

GIB = 2**30


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelFacts:
    """What follows from the model alone."""

    parameters: int
    active: int
    mtp: int
    experts: int
    """Routed experts of a layer; 0 without."""
    cache_name: str
    cache_numbers: int
    cache_bytes: int
    """Of one token in all layers, in the engine's dtype."""
    fp8_bytes: int | None
    """Of the published checkpoint in FP8, scales and MTP included; None for a model of transformers."""
    bf16_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class EnginePlan:
    """One engine and what its fullest device needs."""

    engines: int
    layout: EngineLayout
    dtype: str
    needs: EngineBytes
    fits: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Smallest:
    """The fewest nodes on which anything fits; None where nothing does within reach."""

    nodes: int | None
    trainer: Fit | None
    offload_nodes: int | None
    offload: Fit | None
    engine: EngineLayout | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """Everything that is shown."""

    recipe: str
    hardware: Hardware
    room: int
    """Bytes of a device that may be filled."""
    model: ModelFacts
    trainer: Fit
    whole: TrainerBytes
    """The same rank without recomputation, or with it: the other of the two."""
    engine: EnginePlan | None
    sync: SyncBytes | None
    """None where weights stay in one process, or an adapter is sent in their place."""
    on_this_cpu: int | None
    """Bytes of all parts together, where they share one memory, in training or in a sync."""
    options: tuple[Fit, ...]
    smallest: Smallest
    work: Work
    phases: tuple[Phase, ...]
    cost: Cost
    published_cost: Cost | None
    rehearsal: Rehearsal | None


def make_plan(cfg: TrainingRun, architecture: Architecture, settings: PlanSettings) -> Plan:
    """Plans a run on the hardware that `settings` name; raises UserError for layouts that do not divide."""
    hardware = find_hardware(settings.hardware)
    config = config_of(architecture)
    demand = _demand(cfg, architecture, config, settings)
    layout = _layout(cfg, hardware, settings)
    layout.check(config)
    chosen = fit(demand, layout, hardware)
    engine = _engine(cfg, config, hardware, settings)
    work = _work(cfg, settings)
    found = phases(work, architecture.size().active_parameters, config, hardware, *_parts(cfg, demand, layout, engine))
    seconds = sum(phase.seconds for phase in found)
    gpus = layout.ranks + (engine.engines * engine.layout.gpus if engine and work.samples_here else 0)
    step = Stage(
        name=f"{_steps(cfg):,} steps",
        hours=_steps(cfg) * seconds * gpus / 3600,
        reckoning=f"{seconds:.3g} s a step at least on {gpus:,} device{'s' * (gpus > 1)}, one phase after the other",
    )
    sync = planned_sync(
        cfg,
        architecture,
        config,
        layout,
        trainer_dtype=demand.dtype,
        engine_dtype=engine.dtype if engine else cfg.engine.dtype,
        workers=engine.layout.tensor_parallel if engine else cfg.engine.tensor_parallel,
    )
    return Plan(
        recipe=cfg.recipe,
        hardware=hardware,
        room=room(hardware),
        model=_facts(architecture, config, engine.dtype if engine else cfg.engine.dtype),
        trainer=chosen,
        whole=rank_bytes(demand, replace(layout, recompute=not layout.recompute), hardware),
        engine=engine,
        sync=sync,
        on_this_cpu=_together(layout.ranks, chosen.needs, engine, sync) if hardware.is_cpu else None,
        options=tuple(options(demand, layout.ranks, hardware, recompute=layout.recompute, offload=layout.offload)),
        smallest=_smallest(demand, config, hardware, cfg, engine),
        work=work,
        phases=tuple(found),
        cost=Cost(stages=(step,), price=settings.price),
        published_cost=Cost(stages=find_stages(settings.cost), price=settings.price) if settings.cost else None,
        rehearsal=_rehearsal(config, layout, demand) if settings.rehearse else None,
    )


def _together(ranks: int, trainer: TrainerBytes, engine: EnginePlan | None, sync: SyncBytes | None) -> int:
    """Returns the larger of two moments where all parts share one memory: training, and a sync, without activations."""
    engines, syncing = engine.engines if engine else 0, ranks * trainer.states
    if sync is not None:
        syncing += sync.published + ranks * sync.piece + max(engines, 1) * (sync.engine + sync.workers)
    return (engines * engine.needs.peak if engine else 0) + max(ranks * trainer.peak, syncing)


def _demand(
    cfg: TrainingRun, architecture: Architecture, config: DeepseekV3Config | None, settings: PlanSettings
) -> Demand:
    size = architecture.size()
    return Demand(
        config=config,
        parameters=size.parameters + size.mtp_parameters,
        adapters=adapter_parameters(cfg, architecture),
        orthogonal=orthogonal_parameters(cfg, architecture),
        vocab_size=architecture.vocab_size,
        kind=cfg.trainer.kind,
        dtype=settings.trainer_dtype or cfg.trainer.dtype,
        reference=cfg.needs_reference,
        max_tokens=cfg.trainer.max_tokens,
        sample=min(cfg.engine.max_model_len, cfg.trainer.max_tokens),
    )


def _layout(cfg: TrainingRun, hardware: Hardware, settings: PlanSettings) -> Layout:
    """What is not given comes from the configuration."""
    configured = configured_layout(cfg)
    nodes = None if settings.nodes is None else settings.nodes * hardware.per_node
    given = {
        "ranks": settings.gpus or nodes,
        "expert_parallel": settings.expert_parallel,
        "pipeline_stages": settings.pipeline_stages,
        "zero_stage": settings.zero_stage,
        "offload": settings.offload,
        "recompute": settings.recompute,
    }
    return replace(configured, **{key: value for key, value in given.items() if value is not None})


def _engine(
    cfg: TrainingRun, config: DeepseekV3Config | None, hardware: Hardware, settings: PlanSettings
) -> EnginePlan | None:
    if config is None:
        return None
    ways = settings.tensor_parallel or _int(getattr(cfg.engine, "tensor_parallel", 1))
    layout = EngineLayout(
        gpus=settings.engine_gpus or ways,
        tensor_parallel=ways,
        expert_parallel=settings.engine_experts,
        redundant_experts=settings.redundant_experts,
        shared_is_routed=settings.shared_is_routed,
    )
    layout.check(config)
    dtype = settings.engine_dtype or cfg.engine.dtype
    needs = engine_bytes(
        config,
        layout,
        kind=cfg.engine.kind,
        dtype=dtype,
        sequences=cfg.engine.max_num_seqs,
        length=cfg.engine.max_model_len,
    )
    if hardware.is_cpu and cfg.engine.kind == "vllm":  # it sets aside what it is told to, whatever the sequences take
        needs = replace(needs, cache=round(cfg.engine.memory * GIB))
    fits = needs.peak <= room(hardware)
    return EnginePlan(engines=cfg.engine.num_engines, layout=layout, dtype=dtype, needs=needs, fits=fits)


def _work(cfg: TrainingRun, settings: PlanSettings) -> Work:
    """GRPO where the recipe has it: it is what the hardware is for, and the longer stage."""
    completion = cfg.longest_completion
    if isinstance(cfg, GrpoRun):
        completion = cfg.algo.sampling.max_new_tokens
    completion = completion if settings.completion_tokens is None else settings.completion_tokens
    prompt = max(cfg.engine.max_model_len - completion, 0)
    prompt = prompt if settings.prompt_tokens is None else settings.prompt_tokens
    if prompt + completion > cfg.engine.max_model_len:
        raise UserError(
            f"prompt_tokens={prompt} and completion_tokens={completion} are more than engine.max_model_len="
            f"{cfg.engine.max_model_len}; raise the last, or lower one of the others"
        )
    if isinstance(cfg, GrpoRun):
        return Work(
            sequences=cfg.algo.prompts_per_step * cfg.algo.group_size,
            prompt_tokens=prompt,
            completion_tokens=completion,
            samples_here=True,
            group_size=cfg.algo.group_size,
            reference=cfg.needs_reference,
        )
    assert isinstance(cfg, SftRun), "a run that learns does one or the other"
    return Work(sequences=cfg.sft.batch_size, prompt_tokens=prompt, completion_tokens=completion, samples_here=False)


def _steps(cfg: TrainingRun) -> int:
    return cfg.algo.steps if isinstance(cfg, GrpoRun) else cfg.sft.steps if isinstance(cfg, SftRun) else 0


def _parts(
    cfg: TrainingRun, demand: Demand, layout: Layout, engine: EnginePlan | None
) -> tuple[Trainers, Engines | None]:
    trainers = Trainers(gpus=layout.ranks, dtype=demand.dtype, recompute=layout.recompute)
    if engine is None or demand.config is None:
        return trainers, None
    return trainers, Engines(
        engines=engine.engines,
        gpus=engine.layout.gpus,
        dtype=engine.dtype,
        max_num_seqs=cfg.engine.max_num_seqs,
        weights=engine.needs.weights,
        routed=routed_bytes(demand.config, engine.layout, engine.dtype),
    )


def _facts(architecture: Architecture, config: DeepseekV3Config | None, dtype: str) -> ModelFacts:
    size = architecture.size()
    width = 4 if dtype == "fp32" else 2

    def stored(kind: str) -> int:
        assert config is not None
        return sum(tensor.nbytes for tensor in published_index(config, kind).values())

    return ModelFacts(
        parameters=size.parameters,
        active=size.active_parameters,
        mtp=size.mtp_parameters,
        experts=config.n_routed_experts if config is not None and config.has_experts else 0,
        cache_name=size.cache_name,
        cache_numbers=size.cache_numbers,
        cache_bytes=architecture.num_hidden_layers * size.cache_numbers * width,
        fp8_bytes=None if config is None else stored("fp8"),
        bf16_bytes=2 * (size.parameters + size.mtp_parameters) if config is None else stored("bf16"),
    )


def _smallest(
    demand: Demand, config: DeepseekV3Config | None, hardware: Hardware, cfg: TrainingRun, engine: EnginePlan | None
) -> Smallest:
    here, there = (smallest(demand, hardware, offload=offload) for offload in ("none", "optimizer"))
    served = None
    if config is not None and engine is not None:
        served = smallest_engine(
            config,
            hardware,
            kind=cfg.engine.kind,
            dtype=engine.dtype,
            sequences=cfg.engine.max_num_seqs,
            length=cfg.engine.max_model_len,
        )
    return Smallest(
        nodes=here[0] if here else None,
        trainer=here[1] if here else None,
        offload_nodes=there[0] if there else None,
        offload=there[1] if there else None,
        engine=served,
    )


def _rehearsal(config: DeepseekV3Config | None, layout: Layout, demand: Demand) -> Rehearsal:
    if config is None:
        raise UserError("rehearse=true: a model of transformers has no published index of ours; leave it out")
    optimizer = "muon" if demand.orthogonal else "adamw"
    return rehearse(config, layout, kind=demand.kind, dtype=demand.dtype, optimizer=optimizer)


def _int(value: object) -> int:
    assert isinstance(value, int)
    return value
