"""From the configuration to an engine or a trainer rank, built in the process that will use it."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import torch
from torch import distributed

from rlkit.config import EngineConfig, LoraConfig, TrainerConfig
from rlkit.data.tokenizer import read_decoder
from rlkit.engine.base import Engine
from rlkit.model.deepseek import DeepseekV3
from rlkit.model.experts import ExpertShare
from rlkit.model.files.end_tokens import end_tokens
from rlkit.model.files.folder import Checkpoint
from rlkit.model.files.names import published_names
from rlkit.model.files.sent import sent_table
from rlkit.model.load import load_model, read_architecture
from rlkit.model.lora import add_lora, choose_targets
from rlkit.model.precision import compute_in_float8
from rlkit.model.scorer import DeepseekScorer
from rlkit.model.stages import Stage
from rlkit.quant.fp8 import FLOAT8
from rlkit.train.pipeline import PipelineTrainer
from rlkit.train.policy import frozen_copy
from rlkit.train.relay import join_pipeline
from rlkit.train.reward_model import ScorerTrainer
from rlkit.train.steppers.base import Stepper
from rlkit.train.trainer import ModelTrainer
from rlkit.watch.progress import Progress, silent


def build_engine(
    cfg: EngineConfig, checkpoint: Path, kind: str, lora: LoraConfig | None = None, progress: Progress = silent
) -> Engine:
    """Builds the sampler that the configuration asks for, in this process; `kind` says which class runs the model.

    With `lora` it keeps an adapter beside the weights, which only vLLM can.
    """
    threads = cfg.threads or cores_per(cfg.num_engines)
    if lora is not None:
        targets = choose_targets(read_architecture(checkpoint, kind).empty_model(), lora.targets)
        lora = replace(lora, targets=tuple(targets))
    if cfg.dtype == "fp8":
        expected = sent_table(published_names(Checkpoint.open(checkpoint).config), "fp8")
    else:
        expected = read_architecture(checkpoint, kind).sent()
    if cfg.kind == "vllm":
        from rlkit.engine.vllm import VllmEngine  # vLLM takes seconds to import and is not needed everywhere

        return VllmEngine(
            checkpoint,
            dtype={"fp32": "float32", "bf16": "bfloat16", "fp8": "fp8"}[cfg.dtype],
            expected=None if lora else expected,  # an adapter's tensors have names of their own
            max_model_len=cfg.max_model_len,
            max_num_seqs=cfg.max_num_seqs,
            kv_cache_gib=cfg.memory,
            gpu_memory_utilization=cfg.memory,
            threads=threads,
            speculative_tokens=cfg.speculative_tokens,
            lora=lora,
            tensor_parallel=cfg.tensor_parallel,
            options=cfg.options,
            progress=progress,
        )
    from rlkit.engine.local import TorchEngine

    torch.set_num_threads(threads)
    return TorchEngine(
        load_model(checkpoint, torch.float32, kind),
        end_tokens(checkpoint),
        read_decoder(checkpoint),
        cfg.max_num_seqs,
        cfg.speculative_tokens,
        expected=expected,
        progress=progress,
    )


def build_trainer(
    cfg: TrainerConfig,
    checkpoint: Path,
    kind: str,
    *,
    keep_reference: bool,
    seed: int,
    store: distributed.Store,
    rank: int,
) -> ModelTrainer:
    """Builds one rank of the trainer, in this process; the ranks meet in `store`, and LoRA starts from `seed`."""
    dtype = torch.float32 if cfg.dtype == "fp32" else torch.bfloat16
    torch.set_num_threads(cfg.threads or cores_per(cfg.num_ranks))
    share = ExpertShare(rank=rank % cfg.expert_parallel, size=cfg.expert_parallel)
    stage = Stage(rank=rank * cfg.pipeline // cfg.num_ranks, size=cfg.pipeline)
    model = load_model(checkpoint, dtype, kind, share, stage)
    if cfg.dtype in FLOAT8:
        compute_in_float8(model, cfg.dtype, dispatched=cfg.fp8_dispatch)
    if cfg.lora is not None:
        add_lora(model, rank=cfg.lora.rank, alpha=cfg.lora.alpha, targets=cfg.lora.targets, seed=seed)
    if cfg.recompute:
        model.recompute()
    if cfg.pipeline > 1:
        assert isinstance(model, DeepseekV3)
        return _build_pipeline(cfg, model, keep_reference=keep_reference, store=store, rank=rank)
    if cfg.kind == "torch":
        from rlkit.train.steppers.torch import TorchStepper

        reference = frozen_copy(model) if keep_reference else None
        stepper: Stepper = TorchStepper(model, cfg)
    else:
        from rlkit.train.steppers.deepspeed import DeepSpeedStepper, join_experts, join_ranks  # takes seconds to import

        join_ranks(store, rank, cfg.num_ranks)
        join_experts(model, cfg.expert_parallel, in_float8=cfg.fp8_dispatch)
        # Before the stepper takes the model: ZeRO-3 cuts its weights into pieces.
        reference = frozen_copy(model) if keep_reference else None
        stepper = DeepSpeedStepper(model, cfg)
    trainer = ScorerTrainer if isinstance(model, DeepseekScorer) else ModelTrainer
    return trainer(
        model,
        stepper,
        reference=reference,
        bias_update_speed=cfg.bias_update_speed,
        balance_coef=cfg.balance_coef,
    )


def _build_pipeline(
    cfg: TrainerConfig, model: DeepseekV3, *, keep_reference: bool, store: distributed.Store, rank: int
) -> PipelineTrainer:
    from rlkit.train.steppers.deepspeed import join_experts, join_ranks
    from rlkit.train.steppers.deepspeed_pipeline import DualPipeVStepper

    join_ranks(store, rank, cfg.num_ranks)
    join_experts(model, cfg.expert_parallel, cfg.pipeline, in_float8=cfg.fp8_dispatch)
    pipeline = join_pipeline(cfg.pipeline)
    reference = frozen_copy(model) if keep_reference else None
    return PipelineTrainer(
        model,
        DualPipeVStepper(model, cfg, pipeline),
        pipeline,
        reference=reference,
        bias_update_speed=cfg.bias_update_speed,
        balance_coef=cfg.balance_coef,
    )


def cores_per(num_processes: int) -> int:
    """Shares out the CPU cores of this machine among several processes."""
    return max(1, len(os.sched_getaffinity(0)) // num_processes)
