"""Every knob of a run, checked before anything starts.

The YAML files in `configs/` hold the values, `compose` puts them together with the command line, and the frozen
dataclasses say which keys there are and what each may be.
"""

from __future__ import annotations

from rlkit.config.demonstrations import PartConfig, SftDataConfig
from rlkit.config.engine import EngineConfig
from rlkit.config.groups import (
    CheckpointConfig,
    ClusterConfig,
    DataConfig,
    LoggingConfig,
    ModelConfig,
    ParityConfig,
    RewardConfig,
)
from rlkit.config.runs import ExtendContextRun, GrpoRun, RunConfig, SftRun, SftThenGrpoRun, TrainingRun
from rlkit.config.stages import AlgoConfig, EvaluationConfig, SamplingConfig, SftConfig
from rlkit.config.trainer import LoraConfig, TrainerConfig

__all__ = [
    "AlgoConfig",
    "CheckpointConfig",
    "ClusterConfig",
    "DataConfig",
    "EngineConfig",
    "EvaluationConfig",
    "ExtendContextRun",
    "GrpoRun",
    "LoggingConfig",
    "LoraConfig",
    "ModelConfig",
    "ParityConfig",
    "PartConfig",
    "RewardConfig",
    "RunConfig",
    "SamplingConfig",
    "SftConfig",
    "SftDataConfig",
    "SftRun",
    "SftThenGrpoRun",
    "TrainerConfig",
    "TrainingRun",
]
