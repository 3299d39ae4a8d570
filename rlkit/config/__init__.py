"""Every knob of a run, checked before anything starts.

The YAML files in `configs/` hold the values, `compose` puts them together with the command line, and the frozen
dataclasses say which keys there are and what each may be.
"""

from __future__ import annotations

from rlkit.config.demonstrations import PartConfig, SftDataConfig
from rlkit.config.distill import CleaningConfig, DistillRun, SelectionConfig, TeacherConfig
from rlkit.config.engine import EngineConfig
from rlkit.config.evaluation import EvalRun, SamplingChoice, SuiteConfig
from rlkit.config.groups import (
    CheckpointConfig,
    ClusterConfig,
    DataConfig,
    LoggingConfig,
    ModelConfig,
    ParityConfig,
    RewardConfig,
)
from rlkit.config.on_policy import LogprobTeacherConfig, OnPolicyConfig, OnPolicyDistillRun, TeacherRun
from rlkit.config.reward_model import RewardModelConfig, RewardModelRun
from rlkit.config.runs import (
    BaseRun,
    EngineRun,
    ExtendContextRun,
    GrpoRun,
    LearningRun,
    RowsRun,
    RunConfig,
    SftRun,
    SftThenGrpoRun,
    TrainingRun,
)
from rlkit.config.stages import AlgoConfig, EvaluationConfig, SamplingConfig, SftConfig
from rlkit.config.trainer import LoraConfig, TrainerConfig

__all__ = [
    "AlgoConfig",
    "BaseRun",
    "CheckpointConfig",
    "CleaningConfig",
    "ClusterConfig",
    "DataConfig",
    "DistillRun",
    "EngineConfig",
    "EngineRun",
    "EvalRun",
    "EvaluationConfig",
    "ExtendContextRun",
    "GrpoRun",
    "LearningRun",
    "LoggingConfig",
    "LogprobTeacherConfig",
    "LoraConfig",
    "ModelConfig",
    "OnPolicyConfig",
    "OnPolicyDistillRun",
    "ParityConfig",
    "PartConfig",
    "RewardConfig",
    "RewardModelConfig",
    "RewardModelRun",
    "RowsRun",
    "RunConfig",
    "SamplingChoice",
    "SamplingConfig",
    "SelectionConfig",
    "SftConfig",
    "SftDataConfig",
    "SftRun",
    "SftThenGrpoRun",
    "SuiteConfig",
    "TeacherConfig",
    "TeacherRun",
    "TrainerConfig",
    "TrainingRun",
]
