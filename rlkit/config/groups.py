"""The smaller groups of settings of a run: model, data, reward, cluster, and what is written down."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from rewards.model_score import Asked, asked_for
from rlkit.checks import MAX_PROCESSES, number, one_of, seed, whole
from rlkit.errors import UserError
from rlkit.model.config import DeepseekV3Config
from rlkit.model.load import KINDS

MAX_TIMEOUT_S = 1_000_000
"""Eleven days; the operating system counts a wait in milliseconds, in 31 bits."""
OBJECT_STORE_BYTES = 2**29
"""The room for batches and rollouts in Ray's object store, beside that for weights."""
MAX_TOLERANCE = 1.0
"""One nat, a factor of e in a probability: a gate that lets more pass compares nothing."""


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """The policy: a checkpoint, or a new model with random weights and a tokenizer trained on the task's text."""

    kind: str
    """"deepseek" is our own DeepSeek-V3; "hf" is any causal language model, run by its class in transformers."""
    path: str
    """The folder of a checkpoint with its tokenizer; "" starts from new random weights."""
    architecture: DeepseekV3Config | None
    """The shape of a new DeepSeek-V3; its vocab_size bounds the tokenizer that is trained. With a `path` the folder
    says the shape."""
    tokenizer: str = ""
    """The folder of the tokenizer that a new model gets, as that of its teacher; "" trains one on the task's text."""

    def __post_init__(self) -> None:
        """Refuses an unknown kind, and a model that has neither a folder nor a shape to be made in."""
        one_of("model.kind", self.kind, KINDS)
        if self.kind == "hf" and not self.path:
            raise UserError(
                "model.path='' but model=hf starts from a checkpoint; set model.path=FOLDER, one that save_pretrained "
                "or a download made"
            )
        if self.path and self.tokenizer:
            raise UserError(
                f"model.tokenizer={self.tokenizer} is for a new model, and that of model.path={self.path} has its own; "
                "leave one of them empty"
            )
        if self.kind == "hf" and self.architecture is not None:
            raise UserError("model.architecture: model=hf takes the model's sizes from its folder; set it to null")
        if self.architecture is None and not self.path:
            raise UserError(
                "model.architecture=null, but with model.path='' the model is new and needs its shape; give "
                "model=deepseek_v3_tiny or another one, or the folder of a checkpoint as model.path"
            )


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Where questions, answers and worked solutions come from."""

    source: str
    """"reasoning_gym", "gsm8k", "math", a .json/.jsonl/.parquet file, or a hub id "owner/name"."""
    eval_source: str
    """Where held-out rows come from; "" takes the source's own test split, or cuts rows from the source."""
    train_size: int
    """How many rows to train on; -1 takes all there are."""
    eval_size: int
    tasks: dict[str, Any]
    """For reasoning_gym: {task: its parameters}; the rows are split evenly over the tasks."""
    prompt_column: str
    """A column, or a template of several: "{text} Tests: {test_list}"."""
    answer_column: str
    solution_column: str
    """The column of worked solutions, which SFT shows inside <think>; "" says that there is none."""
    instruction: str
    """A text that is put before every question."""
    seed: int

    def __post_init__(self) -> None:
        """Refuses sizes that leave nothing to train on, and an instruction that no tokenizer takes."""
        if self.train_size != -1:
            whole("data.train_size", self.train_size, least=1, fix="-1 takes all rows")
        whole("data.eval_size", self.eval_size)
        seed("data.seed", self.seed)
        try:
            self.instruction.encode()
        except UnicodeEncodeError:
            raise UserError(
                f"data.instruction={self.instruction!r} is no text in UTF-8, which every tokenizer reads; write it anew"
            ) from None


@dataclass(frozen=True, kw_only=True)
class RewardConfig:
    """The function that judges a completion."""

    fn: str
    """A name ("number"), "package.module:function", "file.py:function", or "model:FOLDER" for a reward model."""
    kwargs: dict[str, Any]
    workers: int
    """How many processes judge, on the driver's machine."""
    timeout: float
    """How many seconds one completion may take; a function that is called on a batch has those of all its samples. A
    completion that takes longer has no verdict, its reason is "deadline", and the process is killed and replaced."""

    def __post_init__(self) -> None:
        """Refuses a pool without processes and a deadline that has passed before it starts."""
        whole("reward.workers", self.workers, least=1, most=MAX_PROCESSES)
        number("reward.timeout", self.timeout, above=0, most=MAX_TIMEOUT_S, fix="20 seconds are usual")
        asked_for(self.fn, self.kwargs)

    @property
    def models(self) -> list[Asked]:
        """Returns the reward models that the function asks for, itself or inside a composite."""
        return asked_for(self.fn, self.kwargs)


@dataclass(frozen=True, kw_only=True)
class ClusterConfig:
    """Where the parts run."""

    kind: str
    """"ray" runs engines and ranks as actors; "local" runs everything in this process, without Ray."""
    address: str
    """The address of a running Ray cluster; "" starts one on this machine for the length of the run."""
    share_gpus: bool
    """Whether several processes may get one GPU, where there are fewer than processes; false refuses such a run."""

    @staticmethod
    def object_store_bytes(weight_bytes: int) -> int:
        """Returns the size of Ray's object store: batches and rollouts, and the weights of two syncs in fp32.

        `weight_bytes` is the size of the model's weight files, which may be in bf16.
        """
        return OBJECT_STORE_BYTES + 4 * weight_bytes

    def __post_init__(self) -> None:
        """Refuses unknown kinds."""
        one_of("cluster.kind", self.kind, ("local", "ray"))


@dataclass(frozen=True, kw_only=True)
class ParityConfig:
    """The gate that compares engine and trainer after loading and after every sync."""

    tolerance: float
    """A log-prob gap between engine and trainer up to this one passes, in nats; a larger one must be explained by what
    rounding changes in the model itself (`rlkit.parity`), which is measured then, and in bf16 always."""

    def __post_init__(self) -> None:
        """Refuses a gate that lets nothing pass, or everything."""
        number("parity.tolerance", self.tolerance, above=0, most=MAX_TOLERANCE, fix="1e-4 is the limit in fp32")


@dataclass(frozen=True, kw_only=True)
class LoggingConfig:
    """Where numbers go besides the console and metrics.jsonl."""

    tensorboard: bool
    wandb_project: str
    """"" leaves Weights & Biases out."""


@dataclass(frozen=True, kw_only=True)
class CheckpointConfig:
    """How often a run can be picked up."""

    every: int
    """How many steps lie between checkpoints; 0 takes them only at the end of a stage."""
    keep: int
    """How many of the newest checkpoints are kept."""

    def __post_init__(self) -> None:
        """Refuses to keep none."""
        whole("checkpoint.every", self.every, fix="0 writes one at the end of each stage only")
        whole("checkpoint.keep", self.keep, least=1)
