"""The bytes that a run's own parts take for certain, whatever is sampled and trained: for checks before it starts."""

from __future__ import annotations

from rlkit.config import EngineRun, LearningRun
from rlkit.model.architecture import Architecture
from rlkit.plan.adapters import adapter_parameters
from rlkit.plan.counts import Held, held_by_stage
from rlkit.plan.engine import EngineBytes
from rlkit.plan.layout import Layout
from rlkit.plan.models import config_of
from rlkit.plan.orthogonal import orthogonal_parameters
from rlkit.plan.trainer import WIDTH, TrainerBytes, trainer_bytes


def configured_layout(cfg: LearningRun) -> Layout:
    """Returns the layout that the configuration asks for."""
    trainer = cfg.trainer
    return Layout(
        ranks=trainer.num_ranks,
        expert_parallel=trainer.expert_parallel,
        pipeline_stages=trainer.pipeline,
        zero_stage=trainer.zero_stage,
        offload=trainer.offload,
        recompute=trainer.recompute,
    )


def trainer_here(cfg: LearningRun, architecture: Architecture) -> TrainerBytes:
    """Returns the bytes of a rank's weights, gradients, optimiser and reference; nothing of activations."""
    layout, adapters, size = configured_layout(cfg), adapter_parameters(cfg, architecture), architecture.size()
    config = config_of(architecture)
    orthogonal = orthogonal_parameters(cfg, architecture)
    held = Held(dense=size.parameters + size.mtp_parameters, adapters=adapters, matrices=orthogonal)
    if config is not None:
        held = max(held_by_stage(config, layout, adapters), key=lambda stage: stage.total)
    return trainer_bytes(
        held,
        layout,
        kind=cfg.trainer.kind,
        dtype=cfg.trainer.dtype,
        reference=cfg.needs_reference,
        on_cpu=False,
        optimizer=cfg.trainer.optimizer,
    )


def engine_here(cfg: EngineRun, architecture: Architecture) -> EngineBytes:
    """Returns the bytes of an engine's weights, all of them, and of the cache of all its sequences at full length."""
    size, width = architecture.size(), WIDTH[cfg.engine.dtype]
    numbers = architecture.num_hidden_layers * size.cache_numbers
    return EngineBytes(
        weights=width * (size.parameters + size.mtp_parameters),
        cache=width * numbers * cfg.engine.max_model_len * cfg.engine.max_num_seqs,
        logits=0,
    )
