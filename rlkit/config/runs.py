"""A recipe's whole configuration, and the checks that need more than one part of it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rlkit.config.checks import one_of
from rlkit.config.groups import (
    CheckpointConfig,
    ClusterConfig,
    DataConfig,
    EngineConfig,
    LoggingConfig,
    ModelConfig,
    ParityConfig,
    RewardConfig,
    TrainerConfig,
)
from rlkit.config.stages import AlgoConfig, EvaluationConfig, SftConfig


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """What every recipe needs."""

    recipe: str
    output_dir: Path
    seed: int
    resume: str
    """"auto" = continue from the newest complete checkpoint in `output_dir`; "never" = refuse a folder with a run."""
    dry_run: bool
    model: ModelConfig
    data: DataConfig
    reward: RewardConfig
    engine: EngineConfig
    trainer: TrainerConfig
    cluster: ClusterConfig
    evaluation: EvaluationConfig
    parity: ParityConfig
    logging: LoggingConfig
    checkpoint: CheckpointConfig

    def __post_init__(self) -> None:
        """Refuse parts that do not go together."""
        one_of("resume", self.resume, ("auto", "never"))
        if self.cluster.kind == "local":
            if self.engine.num_engines > 1 or self.trainer.num_ranks > 1:
                raise ValueError(
                    f"cluster=local is one process, but engine.num_engines={self.engine.num_engines} and "
                    f"trainer.num_ranks={self.trainer.num_ranks}; set both to 1 or use cluster=ray"
                )
            if self.engine.kind == "vllm":
                raise ValueError("engine=vllm needs a process of its own; use cluster=ray, or engine=torch")
        if self.evaluation.sampling.max_new_tokens >= self.engine.max_model_len:
            raise ValueError(
                f"evaluation.sampling.max_new_tokens={self.evaluation.sampling.max_new_tokens} leaves no room for a "
                f"prompt in engine.max_model_len={self.engine.max_model_len}; lower the first or raise the second"
            )


@dataclass(frozen=True, kw_only=True)
class SftRun(RunConfig):
    """`recipes.sft`."""

    sft: SftConfig

    def __post_init__(self) -> None:
        """Check what all recipes need, then that the batch can be dealt to the ranks."""
        RunConfig.__post_init__(self)
        if self.sft.batch_size % self.trainer.num_ranks:
            raise ValueError(
                f"sft.batch_size={self.sft.batch_size} cannot be dealt evenly to trainer.num_ranks="
                f"{self.trainer.num_ranks}; use a multiple of it"
            )


@dataclass(frozen=True, kw_only=True)
class GrpoRun(RunConfig):
    """`recipes.grpo`."""

    algo: AlgoConfig

    def __post_init__(self) -> None:
        """Check what all recipes need, then that the rollouts can be dealt to engines and ranks, and fit."""
        RunConfig.__post_init__(self)
        algo = self.algo
        if algo.prompts_per_step % self.engine.num_engines:
            raise ValueError(
                f"algo.prompts_per_step={algo.prompts_per_step} cannot be dealt evenly to engine.num_engines="
                f"{self.engine.num_engines}; use a multiple of it"
            )
        num_rollouts = algo.prompts_per_step * algo.group_size
        if (num_rollouts // algo.minibatches) % self.trainer.num_ranks:
            raise ValueError(
                f"algo.prompts_per_step x algo.group_size / algo.minibatches = {num_rollouts // algo.minibatches} "
                f"rollouts cannot be dealt evenly to trainer.num_ranks={self.trainer.num_ranks}; change one of them"
            )
        if algo.sampling.max_new_tokens >= self.engine.max_model_len:
            raise ValueError(
                f"algo.sampling.max_new_tokens={algo.sampling.max_new_tokens} leaves no room for a prompt in "
                f"engine.max_model_len={self.engine.max_model_len}; lower the first or raise the second"
            )
        if algo.mtp_weight and self.trainer.lora is not None:
            raise ValueError(
                f"algo.mtp_weight={algo.mtp_weight} trains MTP modules, which trainer.lora leaves as they are; set it "
                "to 0, or trainer.lora to null"
            )


@dataclass(frozen=True, kw_only=True)
class SftThenGrpoRun(SftRun, GrpoRun):
    """`recipes.sft_then_grpo`."""

    def __post_init__(self) -> None:
        """Check both stages."""
        SftRun.__post_init__(self)
        GrpoRun.__post_init__(self)


@dataclass(frozen=True, kw_only=True)
class ContextStage:
    """One step up in length."""

    length: int
    """Longest sample of the stage, in tokens."""
    factor: float
    """Of YaRN, over the context that the model had before any; V3 takes the final one, 40, in every stage."""
    source: str
    """Samples of this stage, as for data.source; "" = those of `data`."""
    tasks: dict[str, Any]
    """reasoning_gym only: the tasks of this stage; {} = data.tasks."""


@dataclass(frozen=True, kw_only=True)
class ExtendContextRun(SftRun):
    """`recipes.extend_context`; `sft.steps` and the tokens of a step are the same in every stage."""

    stages: tuple[ContextStage, ...]

    def __post_init__(self) -> None:
        """Check what all SFT runs need, then that the lengths rise and that the batches divide."""
        SftRun.__post_init__(self)
        lengths = [stage.length for stage in self.stages]
        if not lengths or lengths != sorted(set(lengths)):
            raise ValueError(f"stages: lengths {lengths} must rise from stage to stage; reorder them or drop some")
        for number, stage in enumerate(self.stages):
            if self.sft.batch_size * lengths[0] % stage.length:
                raise ValueError(
                    f"stages[{number}].length={stage.length}: sft.batch_size={self.sft.batch_size} samples of "
                    f"{lengths[0]} tokens are no whole number of samples of this length; change one of the three"
                )
