"""Do model, engine and trainer fit together? What would fail deep inside one of them is said here in words."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import torch

from rlkit.config import BaseRun, EngineRun, LearningRun, TrainingRun
from rlkit.engine.vllm.fp8 import fp8_problem
from rlkit.engine.vllm.options import check_options
from rlkit.errors import UserError
from rlkit.model.architecture import Architecture
from rlkit.model.config import read_json
from rlkit.model.lora import choose_targets
from rlkit.model.matrices import unknown_stacks
from rlkit.overrides import read_override
from rlkit.quant.fp8 import FLOAT8

SHAPE = "model.architecture."
"""What the keys of a new model's shape begin with."""


def check_fit(cfg: TrainingRun, architecture: Architecture) -> None:
    """Raises UserError, naming key, value and fix, where the engine or the trainer cannot work with the model."""
    _check_engine(cfg, architecture)
    if cfg.served_adapter is not None:
        _refuse(architecture.vllm_adapter_problem(), "trainer.lora.served=adapter: ")
    check_trainer(cfg, architecture)
    _check_engine_float8(cfg, architecture)


def check_trainer(cfg: LearningRun, architecture: Architecture) -> None:
    """Raises UserError, naming key, value and fix, where the trainer cannot work with the model."""
    _check_balance(cfg, architecture)
    _check_layout(cfg, architecture)
    if cfg.trainer.dtype in FLOAT8:
        _refuse(architecture.float8_problem(), f"trainer.dtype={cfg.trainer.dtype}: ")
    if cfg.trainer.optimizer == "muon" and (stacks := unknown_stacks(architecture.empty_model())):
        raise UserError(
            f"trainer.optimizer=muon: {_where(cfg)} has stacks of matrices in an order that rlkit does not know "
            f"({stacks[0]}), and Muon needs each matrix on its own; set trainer.optimizer=adamw"
        )
    if cfg.trainer.lora is not None:
        choose_targets(architecture.empty_model(), cfg.trainer.lora.targets)


def check_engine_fit(cfg: EngineRun, architecture: Architecture) -> None:
    """Raises UserError, naming key, value and fix, where the engine cannot work with the model."""
    _check_engine(cfg, architecture)
    _check_engine_float8(cfg, architecture)


def _check_engine(cfg: EngineRun, architecture: Architecture) -> None:
    if cfg.engine.kind == "vllm":
        _refuse(architecture.vllm_problem(on_gpu=torch.cuda.is_available()))
    _check_workers(cfg, architecture)
    _check_drafts(cfg, architecture)
    _check_length(cfg, architecture)


def _check_engine_float8(cfg: EngineRun, architecture: Architecture) -> None:
    if cfg.engine.dtype == "fp8":
        _refuse(architecture.vllm_fp8_problem(), "engine.dtype=fp8: ")  # on any machine; then what this one cannot do
        _refuse(fp8_problem(), "engine.dtype=fp8: ")


def check_shape(cfg: BaseRun, overrides: Sequence[str]) -> None:
    """Raises UserError where the command line asks for another shape than that of the checkpoint in `model.path`.

    The checkpoint decides: a key below `model.architecture` describes a new model.
    """
    given = {read_override(word).key for word in overrides}
    keys = sorted(key for key in given if key.startswith(SHAPE) and key != f"{SHAPE}vocab_size")
    if not cfg.model.path or not keys:
        return
    raw = read_json(Path(cfg.model.path))
    for key in keys:
        name = key.removeprefix(SHAPE)
        asked = getattr(cfg.model.architecture, name, None)
        if name in raw and asked != raw[name]:
            raise UserError(
                f"{key}={asked}, but the checkpoint in model.path={cfg.model.path} has {raw[name]}, which a run cannot "
                f"change; leave {key} out, or model.path for a new model"
            )


def _refuse(problem: str | None, key: str = "") -> None:
    if problem is not None:
        raise UserError(f"{key}{problem}")


def _check_workers(cfg: EngineRun, architecture: Architecture) -> None:
    """Refuses a number of workers that does not divide the model, and arguments that vLLM does not know or rlkit sets.

    Both before vLLM is imported, which takes seconds.
    """
    workers, cuda = cfg.engine.tensor_parallel, torch.cuda.is_available()
    if cfg.engine.options:
        check_options(cfg.engine.options, cuda=cuda, max_model_len=cfg.engine.max_model_len)
    if workers == 1:
        return
    _refuse(architecture.vllm_split_problem(workers, on_gpu=cuda), f"engine.tensor_parallel={workers}: ")
    if not cuda and os.environ.get("VLLM_MLA_DISABLE") == "0":
        raise UserError(
            f"engine.tensor_parallel={workers} needs the expanded attention of vLLM's CPU build; take "
            "VLLM_MLA_DISABLE=0 out of the environment, or set engine.tensor_parallel to 1"
        )


def _check_drafts(cfg: EngineRun, architecture: Architecture) -> None:
    drafted = cfg.engine.speculative_tokens
    if not drafted:
        return
    if not architecture.num_mtp_modules:
        raise UserError(
            f"engine.speculative_tokens={drafted}: the model has no module that could draft them "
            "(num_nextn_predict_layers=0); set it to 0, or for a new model "
            "model.architecture.num_nextn_predict_layers to 1"
        )
    if cfg.engine.kind == "vllm":
        _refuse(architecture.vllm_draft_problem(drafted), f"engine.speculative_tokens={drafted}: ")


def _check_length(cfg: EngineRun, architecture: Architecture) -> None:
    """Refuses samples that are longer than the model can place, or than it places alike in every batch."""
    length, reach, exact = cfg.engine.max_model_len, architecture.max_position_embeddings, architecture.exact_positions
    if length > reach:
        raise UserError(
            f"engine.max_model_len={length} is more than the model's max_position_embeddings={reach}; lower the first"
        )
    if length > exact:
        raise UserError(
            f"engine.max_model_len={length}: the RoPE of this model changes for a whole batch when one sample in it is "
            f"longer than {exact} tokens; set engine.max_model_len to that"
        )


def _check_layout(cfg: LearningRun, architecture: Architecture) -> None:
    """Refuses to share out what cannot be shared out."""
    trainer, where = cfg.trainer, _where(cfg)
    if trainer.expert_parallel > 1:
        problem = architecture.sharing_problem(trainer.expert_parallel)
        _refuse(problem, f"trainer.expert_parallel={trainer.expert_parallel}: {where} ")
    if trainer.pipeline > 1:
        _refuse(architecture.stages_problem(trainer.pipeline), f"trainer.pipeline={trainer.pipeline}: {where} ")
    if trainer.zero_stage == 3:
        _refuse(architecture.pieces_problem(), f"trainer.zero_stage=3: {where} ")


def _where(cfg: LearningRun) -> str:
    """Says where the model's shape comes from."""
    return f"model.path={cfg.model.path}" if cfg.model.path else "model.architecture"


def _check_balance(cfg: LearningRun, architecture: Architecture) -> None:
    """Refuses to balance what is not there."""
    trainer, where = cfg.trainer, _where(cfg)
    for key in ("bias_update_speed", "balance_coef"):
        if value := getattr(trainer, key):
            _refuse(architecture.balance_problem(), f"trainer.{key}={value}: {where} ")
    if speed := trainer.bias_update_speed:
        _refuse(architecture.bias_problem(), f"trainer.bias_update_speed={speed}: {where} ")
