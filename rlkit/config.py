"""Every knob of a run, checked before anything starts.

The YAML files in `configs/` hold the values, `rlkit.compose` puts them together with the command line, and the frozen
dataclasses here say which keys there are and what each may be.
"""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rlkit.algo.advantages import SCALES
from rlkit.algo.losses import GrpoLoss
from rlkit.algo.packing import AGGREGATES
from rlkit.algo.schedule import Schedule
from rlkit.model.config import DeepseekV3Config
from rlkit.types import Sampling


def _one_of(key: str, value: str, choices: Sequence[str]) -> None:
    if value not in choices:
        raise ValueError(f"{key}={value!r} is unknown; use {' or '.join(choices)}{suggestion(value, choices)}")


def _at_least(key: str, value: float, least: float) -> None:
    if value < least:
        raise ValueError(f"{key}={value} must be at least {least}")


def suggestion(word: str, known: Sequence[str]) -> str:
    """The known word nearest to a misspelt one, as the end of an error message; "" if none is near."""
    near = difflib.get_close_matches(word, known, n=1)
    return f" (did you mean {near[0]!r}?)" if near else ""


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """The policy: a checkpoint, or a new model with random weights and a tokenizer trained on the task's text."""

    path: str
    """Folder of a DeepSeek-V3 checkpoint with its tokenizer; "" = new random weights."""
    architecture: DeepseekV3Config
    """Shape of a new model; its vocab_size bounds the tokenizer that is trained. Not read when `path` is given."""


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Where questions, answers and worked solutions come from."""

    source: str
    """"reasoning_gym", "gsm8k", "math", a .json/.jsonl/.parquet file, or a hub id "owner/name"."""
    eval_source: str
    """Where held-out rows come from; "" = the source's own test split, or rows cut from the source."""
    train_size: int
    """Rows for training; -1 = all there are."""
    eval_size: int
    tasks: dict[str, Any]
    """reasoning_gym only: {task: its parameters}; sizes are split evenly over the tasks."""
    prompt_column: str
    """A column, or a template of several: "{text} Tests: {test_list}"."""
    answer_column: str
    solution_column: str
    """Worked solution, shown inside <think> in SFT; "" = there is none."""
    instruction: str
    """Text put before every question."""
    seed: int

    def __post_init__(self) -> None:
        """Refuse sizes that leave nothing to train or test on."""
        if self.train_size != -1:
            _at_least("data.train_size", self.train_size, 1)
        _at_least("data.eval_size", self.eval_size, 1)


@dataclass(frozen=True, kw_only=True)
class RewardConfig:
    """The function that judges a completion."""

    fn: str
    """A name ("number"), "package.module:function" or "file.py:function"."""
    kwargs: dict[str, Any]
    workers: int
    """Processes that judge, on the driver's machine."""
    timeout: float
    """Seconds for one completion (a function called on a batch gets that of all its samples); then it has no verdict,
    reason "timeout", and the process is killed and replaced."""

    def __post_init__(self) -> None:
        """Refuse a pool without processes and a deadline that has passed before it starts."""
        _at_least("reward.workers", self.workers, 1)
        if self.timeout <= 0:
            raise ValueError(f"reward.timeout={self.timeout} must be above 0 seconds; 20 is usual")


@dataclass(frozen=True, kw_only=True)
class EngineConfig:
    """The sampler."""

    kind: str
    num_engines: int
    dtype: str
    threads: int
    """CPU threads of each engine; 0 = all cores, shared among the engines."""
    max_model_len: int
    """Longest prompt + completion, in tokens."""
    max_num_seqs: int
    """Sequences decoded together."""
    memory: float
    """Of the KV cache: GiB on a CPU; share of the device's memory (0 to 1) on a GPU."""

    def __post_init__(self) -> None:
        """Refuse unknown kinds and empty pools."""
        _one_of("engine.kind", self.kind, ("vllm", "torch"))
        _one_of("engine.dtype", self.dtype, ("fp32", "bf16"))
        _at_least("engine.num_engines", self.num_engines, 1)
        _at_least("engine.max_num_seqs", self.max_num_seqs, 1)
        _at_least("engine.max_model_len", self.max_model_len, 2)
        _at_least("engine.threads", self.threads, 0)
        if self.memory <= 0:
            raise ValueError(
                f"engine.memory={self.memory} must be above 0: GiB on a CPU, a share of the device on a GPU"
            )
        if self.kind == "torch" and self.dtype != "fp32":
            raise ValueError(f"engine.dtype={self.dtype} needs engine=vllm; engine=torch samples in fp32")


@dataclass(frozen=True, kw_only=True)
class TrainerConfig:
    """The learner and its AdamW."""

    kind: str
    num_ranks: int
    zero_stage: int
    dtype: str
    threads: int
    """CPU threads of each rank; 0 = all cores, shared among the ranks."""
    max_tokens: int
    """Tokens of a pack: bounds the memory of one forward and backward."""
    weight_decay: float
    beta2: float
    grad_clip: float

    def __post_init__(self) -> None:
        """Refuse unknown kinds and ZeRO stages."""
        _one_of("trainer.kind", self.kind, ("deepspeed", "torch"))
        _one_of("trainer.dtype", self.dtype, ("fp32", "bf16"))
        _at_least("trainer.num_ranks", self.num_ranks, 1)
        _at_least("trainer.max_tokens", self.max_tokens, 1)
        _at_least("trainer.threads", self.threads, 0)
        _at_least("trainer.weight_decay", self.weight_decay, 0)
        if self.grad_clip <= 0:
            raise ValueError(f"trainer.grad_clip={self.grad_clip} must be above 0; 1.0 is usual, 1e9 clips nothing")
        if not 0 < self.beta2 < 1:
            raise ValueError(f"trainer.beta2={self.beta2} must lie between 0 and 1; 0.95 is usual")
        if self.kind == "torch" and self.dtype != "fp32":
            raise ValueError(
                f"trainer.dtype={self.dtype} needs trainer=deepspeed, which keeps fp32 master weights; without them "
                "small steps round to nothing"
            )
        if self.zero_stage not in (1, 2):
            raise ValueError(f"trainer.zero_stage={self.zero_stage} is not supported; use 1 or 2")
        if self.kind == "torch" and self.num_ranks > 1:
            raise ValueError(f"trainer.num_ranks={self.num_ranks} needs trainer=deepspeed; trainer=torch has one rank")


@dataclass(frozen=True, kw_only=True)
class ClusterConfig:
    """Where the parts run."""

    kind: str
    """"ray" = engines and ranks are actors; "local" = everything in this process, without Ray."""
    address: str
    """Of a running Ray cluster; "" = start one on this machine for the length of the run."""

    def __post_init__(self) -> None:
        """Refuse unknown kinds."""
        _one_of("cluster.kind", self.kind, ("local", "ray"))


@dataclass(frozen=True, kw_only=True)
class SftConfig:
    """Supervised fine-tuning on demonstrations."""

    steps: int
    batch_size: int
    """Demonstrations per optimiser step."""
    think_share: float
    """Share of demonstrations that show the worked solution; the others think nothing and answer at once."""
    schedule: Schedule

    def __post_init__(self) -> None:
        """Refuse empty stages and impossible shares."""
        _at_least("sft.steps", self.steps, 0)
        _at_least("sft.batch_size", self.batch_size, 1)
        if not 0 <= self.think_share <= 1:
            raise ValueError(f"sft.think_share={self.think_share} must lie between 0 and 1")


@dataclass(frozen=True, kw_only=True)
class SamplingConfig:
    """How completions are drawn."""

    temperature: float
    top_p: float
    max_new_tokens: int

    def __post_init__(self) -> None:
        """Refuse what no sampler can do."""
        _at_least("temperature", self.temperature, 0)
        _at_least("max_new_tokens", self.max_new_tokens, 1)
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p={self.top_p} must lie in (0, 1]")

    def seeded(self, seed: int) -> Sampling:
        """The same, with a seed to derive each rollout's own from."""
        return Sampling(temperature=self.temperature, top_p=self.top_p, max_new_tokens=self.max_new_tokens, seed=seed)


@dataclass(frozen=True, kw_only=True)
class AlgoConfig:
    """GRPO."""

    steps: int
    prompts_per_step: int
    group_size: int
    """Rollouts of each prompt."""
    minibatches: int
    """Optimiser steps that the rollouts of one step are dealt to; 1 keeps every update on-policy."""
    scale: str
    aggregate: str
    refresh_reference_every: int
    """Steps after which the policy becomes the reference (R1: 400); 0 = never."""
    sampling: SamplingConfig
    loss: GrpoLoss
    schedule: Schedule

    def __post_init__(self) -> None:
        """Refuse groups that cannot be compared and batches that do not divide."""
        _at_least("algo.steps", self.steps, 0)
        _at_least("algo.prompts_per_step", self.prompts_per_step, 1)
        _at_least("algo.group_size", self.group_size, 2)
        _at_least("algo.minibatches", self.minibatches, 1)
        _one_of("algo.scale", self.scale, SCALES)
        _one_of("algo.aggregate", self.aggregate, AGGREGATES)
        num_rollouts = self.prompts_per_step * self.group_size
        if num_rollouts % self.minibatches:
            raise ValueError(
                f"algo.minibatches={self.minibatches} does not divide algo.prompts_per_step x algo.group_size = "
                f"{self.prompts_per_step} x {self.group_size} = {num_rollouts}; change one of the three"
            )
        if self.sampling.temperature == 0:
            raise ValueError("algo.sampling.temperature=0 makes all rollouts of a group equal; use 1.0")
        if self.sampling.top_p < 1:
            raise ValueError(
                f"algo.sampling.top_p={self.sampling.top_p} cuts tokens whose probability the ratio needs; use 1.0"
            )


@dataclass(frozen=True, kw_only=True)
class EvaluationConfig:
    """Held-out accuracy."""

    every: int
    """GRPO steps between evaluations; 0 = only before and after each stage."""
    sampling: SamplingConfig


@dataclass(frozen=True, kw_only=True)
class ParityConfig:
    """The gate after load and after every sync."""

    tolerance: float
    """Largest log-prob gap between engine and trainer in fp32, in nats; with bf16 the gap is only reported."""

    def __post_init__(self) -> None:
        """Refuse a gate that lets nothing pass."""
        if self.tolerance <= 0:
            raise ValueError(f"parity.tolerance={self.tolerance} must be above 0; 1e-4 is the limit in fp32")


@dataclass(frozen=True, kw_only=True)
class LoggingConfig:
    """Where numbers go besides the console and metrics.jsonl."""

    tensorboard: bool
    wandb_project: str
    """"" = no Weights & Biases."""


@dataclass(frozen=True, kw_only=True)
class CheckpointConfig:
    """How often a run can be picked up."""

    every: int
    """Steps between checkpoints; 0 = only at the end of a stage."""
    keep: int
    """Newest checkpoints kept."""

    def __post_init__(self) -> None:
        """Refuse to keep none."""
        _at_least("checkpoint.every", self.every, 0)
        _at_least("checkpoint.keep", self.keep, 1)


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
        _one_of("resume", self.resume, ("auto", "never"))
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


@dataclass(frozen=True, kw_only=True)
class SftThenGrpoRun(SftRun, GrpoRun):
    """`recipes.sft_then_grpo`."""

    def __post_init__(self) -> None:
        """Check both stages."""
        SftRun.__post_init__(self)
        GrpoRun.__post_init__(self)
