"""A recipe's whole configuration, and the checks that need more than one part of it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, Self

from rlkit.algo.losses import UserLoss
from rlkit.checks import number, one_of, seed, whole
from rlkit.config.demonstrations import SftDataConfig
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
from rlkit.config.placement import Demand
from rlkit.config.stages import AlgoConfig, EvaluationConfig, SamplingConfig, SftConfig
from rlkit.config.trainer import LoraConfig, TrainerConfig
from rlkit.errors import UserError
from rlkit.quant.fp8 import FLOAT8


@dataclass(frozen=True, kw_only=True)
class BaseRun:
    """What everything needs that runs: a model, a place for it, and a folder to write to."""

    recipe: str
    output_dir: Path
    seed: int
    dry_run: bool
    model: ModelConfig
    cluster: ClusterConfig

    def __post_init__(self) -> None:
        """Refuses a seed that is none."""
        seed("seed", self.seed)

    @property
    def demand(self) -> Demand:
        """Returns how many processes compute, each of which wants a CPU and a GPU."""
        return Demand(engines=0, workers=1, ranks=0)


@dataclass(frozen=True, kw_only=True)
class RowsRun(BaseRun):
    """What every recipe needs that works through rows: where they come from, and how it goes on."""

    resume: str
    """"auto" goes on with what is in `output_dir`; "never" refuses a folder with a run."""
    data: DataConfig

    def __post_init__(self) -> None:
        """Refuses a way to resume that there is not."""
        one_of("resume", self.resume, ("auto", "never"))
        super().__post_init__()


@dataclass(frozen=True, kw_only=True)
class EngineRun(BaseRun):
    """What everything needs that samples: engines."""

    engine: EngineConfig
    engine_name: ClassVar[str] = "engine"
    """What messages call an engine of this run."""

    def __post_init__(self) -> None:
        """Refuses engines that the place cannot hold."""
        super().__post_init__()
        if self.cluster.kind == "local" and self.engine.num_engines > 1:
            raise UserError(
                f"cluster=local is one process, but engine.num_engines={self.engine.num_engines}; set it to 1 or use "
                "cluster=ray"
            )
        if self.cluster.kind == "local" and self.engine.kind == "vllm":
            raise UserError("engine=vllm needs a process of its own; use cluster=ray, or engine=torch")

    @property
    def demand(self) -> Demand:
        """Returns how many processes compute, each of which wants a CPU and a GPU."""
        return replace(super().demand, engines=self.engine.num_engines, workers=self.engine.tensor_parallel)

    @property
    def served_adapter(self) -> LoraConfig | None:
        """Returns the adapter that engines keep beside the weights; None where they get weights alone."""
        return None


@dataclass(frozen=True, kw_only=True)
class LearningRun(RowsRun):
    """What every recipe needs that learns, whether it samples or not."""

    trainer: TrainerConfig
    checkpoint: CheckpointConfig
    logging: LoggingConfig

    def __post_init__(self) -> None:
        """Checks what all recipes need, then that there is a process for every rank."""
        super().__post_init__()
        if self.cluster.kind == "local" and self.trainer.num_ranks > 1:
            raise UserError(
                f"cluster=local is one process, but trainer.num_ranks={self.trainer.num_ranks}; set it to 1 or use "
                "cluster=ray"
            )

    @property
    def demand(self) -> Demand:
        """Returns how many processes compute, each of which wants a CPU and a GPU."""
        return replace(super().demand, ranks=self.trainer.num_ranks)

    @property
    def needs_reference(self) -> bool:
        """Says whether any stage compares the policy with a frozen copy of itself."""
        return False


@dataclass(frozen=True, kw_only=True)
class RunConfig(EngineRun, RowsRun):
    """What every recipe needs that samples from rows and judges: engines, rows, and a reward."""

    reward: RewardConfig

    def _check_room(self, group: str, sampling: SamplingConfig) -> None:
        """Refuses completions that would fill the whole context."""
        if sampling.max_new_tokens >= self.engine.max_model_len:
            key = f"{group}.sampling" if group else "sampling"
            raise UserError(
                f"{key}.max_new_tokens={sampling.max_new_tokens} leaves no room for a prompt in "
                f"engine.max_model_len={self.engine.max_model_len}; lower the first or raise the second"
            )

    @property
    def demand(self) -> Demand:
        """Returns how many processes compute, each of which wants a CPU and a GPU."""
        return replace(super().demand, judges=sum(asked.actors for asked in self.reward.models))

    def counted(self, num_demonstrations: int | None) -> Self:
        """Returns the same run with what the data decides filled in: the steps of so many epochs."""
        return self

    def check_files(self) -> None:
        """Raises UserError for a file of the user's own that cannot be found or imported."""

    def amounts(self, num_prompts: int | None, num_demonstrations: int | None) -> list[tuple[str, str]]:
        """Says in labels and words how much each stage does; a number that is not known yet is None."""
        return []


@dataclass(frozen=True, kw_only=True)
class TrainingRun(RunConfig, LearningRun):
    """What every recipe needs that trains what an engine samples from."""

    evaluation: EvaluationConfig
    parity: ParityConfig

    def __post_init__(self) -> None:
        """Checks what samples and what learns, then that the two go together and that there is room to evaluate."""
        super().__post_init__()
        whole("data.eval_size", self.data.eval_size, least=1)
        self._check_room("evaluation", self.evaluation.sampling)
        if self.engine.dtype == "fp8" and self.trainer.dtype not in FLOAT8:
            raise UserError(
                f"engine.dtype=fp8 samples from weights in FP8, and trainer.dtype={self.trainer.dtype} computes with "
                "others, so that the policy ratio is wrong by what FP8 rounds away; set trainer.dtype=fp8_weights, or "
                "engine.dtype=bf16"
            )
        if self.served_adapter is not None and self.engine.kind != "vllm":
            raise UserError(
                f"trainer.lora.served=adapter needs engine=vllm; engine={self.engine.kind} takes merged weights; "
                "set trainer.lora.served=merged"
            )
        if self.served_adapter is not None and self.engine.tensor_parallel > 1:
            raise UserError(
                f"trainer.lora.served=adapter needs engine.tensor_parallel=1, not {self.engine.tensor_parallel}; set "
                "trainer.lora.served=merged, or engine.tensor_parallel=1"
            )

    @property
    def served_adapter(self) -> LoraConfig | None:
        """Returns the adapter that engines keep beside the weights; None where they get weights alone."""
        lora = self.trainer.lora
        return lora if lora is not None and lora.served == "adapter" else None

    @property
    def longest_completion(self) -> int:
        """Returns the most tokens that any stage samples after a prompt."""
        return self.evaluation.sampling.max_new_tokens


@dataclass(frozen=True, kw_only=True)
class GrpoRun(TrainingRun):
    """`recipes.grpo`."""

    algo: AlgoConfig

    def __post_init__(self) -> None:
        """Checks what all recipes need, then that the rollouts can be dealt to engines and ranks, and fit."""
        super().__post_init__()
        algo = self.algo
        if algo.prompts_per_step % self.engine.num_engines:
            raise UserError(
                f"algo.prompts_per_step={algo.prompts_per_step} cannot be dealt evenly to engine.num_engines="
                f"{self.engine.num_engines}; use a multiple of it"
            )
        num_rollouts = algo.prompts_per_step * algo.group_size
        if (num_rollouts // algo.minibatches) % self.trainer.num_shares:
            raise UserError(
                f"algo.prompts_per_step x algo.group_size / algo.minibatches = {num_rollouts // algo.minibatches} "
                f"rollouts cannot be dealt evenly to {self.trainer.dealt_to}; change one of them"
            )
        self._check_room("algo", algo.sampling)
        if algo.mtp_weight and self.trainer.lora is not None:
            raise UserError(
                f"algo.mtp_weight={algo.mtp_weight} trains MTP modules, which trainer.lora leaves as they are; set it "
                "to 0, or trainer.lora to null"
            )

    @property
    def needs_reference(self) -> bool:
        """Says whether there is a KL penalty, which compares with the reference; without it nobody keeps one."""
        return self.algo.loss.kl_coef > 0

    @property
    def longest_completion(self) -> int:
        """Returns the most tokens that any stage samples after a prompt."""
        return max(super().longest_completion, self.algo.sampling.max_new_tokens)

    def check_files(self) -> None:
        """Imports the user's loss, if there is one."""
        super().check_files()
        if isinstance(self.algo.objective, UserLoss):
            self.algo.objective.check()

    def amounts(self, num_prompts: int | None, num_demonstrations: int | None) -> list[tuple[str, str]]:
        """Adds what GRPO samples and learns from."""
        algo, rollouts = self.algo, self.algo.prompts_per_step * self.algo.group_size
        new = rollouts * algo.sampling.max_new_tokens
        longest = algo.sampling.max_new_tokens
        steps = f"{algo.steps} steps x {algo.prompts_per_step} groups x {algo.group_size} rollouts = {rollouts} a step"
        rows = [
            ("GRPO", steps),
            ("tokens per step", f"at most {new:,} sampled, in rollouts of up to {longest}"),
            ("optimiser steps", f"{algo.minibatches} a step on {rollouts // algo.minibatches} rollouts each"),
        ]
        if num_prompts is not None:
            rows.append(
                ("epochs", f"{algo.steps * algo.prompts_per_step / num_prompts:.2f} of {num_prompts:,} prompts")
            )
        return super().amounts(num_prompts, num_demonstrations) + rows


@dataclass(frozen=True, kw_only=True)
class SftRun(TrainingRun):
    """`recipes.sft`."""

    data: SftDataConfig
    sft: SftConfig

    def __post_init__(self) -> None:
        """Checks what all recipes need, then that the batch can be dealt to the ranks."""
        super().__post_init__()
        if self.sft.batch_size % self.trainer.num_shares:
            raise UserError(
                f"sft.batch_size={self.sft.batch_size} cannot be dealt evenly to {self.trainer.dealt_to}; use a "
                "multiple of it"
            )

    def counted(self, num_demonstrations: int | None) -> Self:
        """Returns the same run with the steps of so many epochs."""
        return replace(self, sft=self.sft.counted(num_demonstrations))

    def amounts(self, num_prompts: int | None, num_demonstrations: int | None) -> list[tuple[str, str]]:
        """Says how often SFT shows how many demonstrations, before what other stages do."""
        sft, per_rank = self.sft, self.sft.batch_size // self.trainer.num_shares
        size = self.data.train_size if num_demonstrations is None and not self.data.mixture else num_demonstrations or 0
        if sft.epochs:
            return [("SFT", f"{sft.epochs:g} epochs"), *super().amounts(num_prompts, num_demonstrations)]
        epochs = f", {sft.steps * sft.batch_size / size:.2f} epochs of {size:,}" if size > 0 else ""
        row = ("SFT", f"{sft.steps} steps x {sft.batch_size} demonstrations{epochs}; {per_rank} per rank")
        return [row, *super().amounts(num_prompts, num_demonstrations)]


@dataclass(frozen=True, kw_only=True)
class SftThenGrpoRun(SftRun, GrpoRun):
    """`recipes.sft_then_grpo`: what SFT needs and what GRPO needs."""

    def __post_init__(self) -> None:
        """Checks what both need, then that there is something to ask."""
        super().__post_init__()
        if not self.data.source:
            raise UserError("data.source='' asks nothing, and GRPO needs questions; set it to rows with questions")


@dataclass(frozen=True, kw_only=True)
class ContextStage:
    """One step up in length."""

    length: int
    """The length of the longest sample of the stage, in tokens."""
    factor: float
    """The factor of YaRN over the context that the model had before any; V3 takes the last one, 40, in every stage."""
    source: str
    """The samples of this stage, as for data.source; "" takes those of `data`."""
    tasks: dict[str, Any]
    """For reasoning_gym: the tasks of this stage; {} takes data.tasks."""

    def __post_init__(self) -> None:
        """Refuses lengths and factors that stretch nothing."""
        whole("length", self.length, least=2)
        number("factor", self.factor, least=1, fix="DeepSeek-V3 takes 40")


@dataclass(frozen=True, kw_only=True)
class ExtendContextRun(SftRun):
    """`recipes.extend_context`; `sft.steps` and the tokens of a step are the same in every stage."""

    stages: tuple[ContextStage, ...]

    def __post_init__(self) -> None:
        """Checks what all SFT runs need, then that the lengths rise and that the batches divide."""
        super().__post_init__()
        for key, value, fix in (
            ("sft.epochs", self.sft.epochs, "sft.steps, which is the same in every stage"),
            ("data.mixture", len(self.data.mixture), "stages[].source, the samples of each stage"),
        ):
            if value:
                raise UserError(f"{key} does not go with recipe extend_context; leave it out, and set {fix}")
        lengths = [stage.length for stage in self.stages]
        if not lengths or lengths != sorted(set(lengths)):
            raise UserError(f"stages: lengths {lengths} must rise from stage to stage; reorder them or drop some")
        if self.trainer.dtype in FLOAT8 and len(lengths) > 1:
            raise UserError(
                f"trainer.dtype={self.trainer.dtype}: a stage starts from the export of the one before, which would be "
                "in FP8; set trainer.dtype=bf16, or run one stage at a time on converted checkpoints"
            )
        for place, stage in enumerate(self.stages):
            if self.sft.batch_size * lengths[0] % stage.length:
                raise UserError(
                    f"stages[{place}].length={stage.length}: sft.batch_size={self.sft.batch_size} samples of "
                    f"{lengths[0]} tokens are no whole number of samples of this length; change one of the three"
                )
