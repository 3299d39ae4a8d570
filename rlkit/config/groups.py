"""The groups of settings of a run: model, data, reward, engine, trainer, cluster, and what is written down."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from rlkit.checks import number, one_of, seed, whole
from rlkit.errors import UserError
from rlkit.model.config import DeepseekV3Config
from rlkit.model.load import KINDS

MAX_SPECULATIVE_TOKENS = 8
"""Even at V3's acceptance of 0.9 a ninth token counts in 0.9^9 = 39 % of the passes, and is computed in all of them."""
MAX_PROCESSES = 4096
"""No run has more engines, ranks or reward processes, nor threads in one of them: a larger number is a slip."""
MAX_TIMEOUT_S = 1_000_000
"""Eleven days; the operating system counts a wait in milliseconds, in 31 bits."""
OBJECT_STORE_BYTES = 2**29
"""The room for batches and rollouts in Ray's object store, beside that for weights."""
MAX_MEMORY_GIB = 1_000_000
"""No machine has more memory than a pebibyte."""
SERVED_RANKS = (8, 16, 32, 64, 128, 256, 320, 512)
"""vLLM makes room for an adapter of one of these ranks; one in between gets the next."""
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

    def __post_init__(self) -> None:
        """Refuses an unknown kind, and a model that has neither a folder nor a shape to be made in."""
        one_of("model.kind", self.kind, KINDS)
        if self.kind == "hf" and not self.path:
            raise UserError(
                "model.path='' but model=hf starts from a checkpoint; set model.path=FOLDER, one that save_pretrained "
                "or a download made"
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
        """Refuses sizes that leave nothing to train or test on, and an instruction that no tokenizer takes."""
        if self.train_size != -1:
            whole("data.train_size", self.train_size, least=1, fix="-1 takes all rows")
        whole("data.eval_size", self.eval_size, least=1)
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
    """A name ("number"), "package.module:function" or "file.py:function"."""
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


@dataclass(frozen=True, kw_only=True)
class EngineConfig:
    """What samples completions."""

    kind: str
    num_engines: int
    dtype: str
    threads: int
    """How many CPU threads each engine has; 0 shares all cores among the engines."""
    max_model_len: int
    """The most tokens that a prompt and its completion may have together."""
    max_num_seqs: int
    """How many sequences are decoded together."""
    memory: float
    """The size of the KV cache: in GiB on a CPU, as a share of the device's memory (0 to 1) on a GPU."""
    speculative_tokens: int
    """How many tokens the model's first MTP module drafts for each pass of the model, which checks them all; 0 drafts
    none."""

    def __post_init__(self) -> None:
        """Refuses unknown kinds and empty pools."""
        one_of("engine.kind", self.kind, ("vllm", "torch"))
        one_of("engine.dtype", self.dtype, ("fp32", "bf16"))
        whole("engine.num_engines", self.num_engines, least=1, most=MAX_PROCESSES)
        whole("engine.max_num_seqs", self.max_num_seqs, least=1)
        whole("engine.max_model_len", self.max_model_len, least=2)
        whole("engine.threads", self.threads, most=MAX_PROCESSES, fix="0 shares all cores among the engines")
        fix = "0 turns drafts off, 1 is what DeepSeek-V3 uses, and each further one is accepted less often"
        whole("engine.speculative_tokens", self.speculative_tokens, most=MAX_SPECULATIVE_TOKENS, fix=fix)
        fix = "it is in GiB on a CPU, and a share of the device's memory on a GPU"
        number("engine.memory", self.memory, above=0, most=MAX_MEMORY_GIB, fix=fix)
        if self.kind == "torch" and self.dtype != "fp32":
            raise UserError(f"engine.dtype={self.dtype} needs engine=vllm; engine=torch samples in fp32")


@dataclass(frozen=True, kw_only=True)
class LoraConfig:
    """Low-rank adapters instead of all weights, as peft has them."""

    rank: int = 16
    alpha: float = 32
    """The product of the two matrices is scaled by alpha / rank."""
    targets: str | tuple[str, ...] = "all-linear"
    """The names of linear layers, such as [q_proj, v_proj]; "all-linear" takes all but head, router and experts."""
    served: str = "merged"
    """What engines get at every sync: "merged", all weights with the adapter added to them, or "adapter", its matrices
    alone, which vLLM keeps beside the base's weights."""

    def __post_init__(self) -> None:
        """Refuses adapters that do nothing."""
        whole("trainer.lora.rank", self.rank, least=1)
        number("trainer.lora.alpha", self.alpha, above=0, fix="twice the rank is usual")
        one_of("trainer.lora.served", self.served, ("merged", "adapter"))
        if self.served == "adapter" and self.rank > SERVED_RANKS[-1]:
            raise UserError(
                f"trainer.lora.rank={self.rank}: vLLM takes an adapter of rank {SERVED_RANKS[-1]} at most; lower it, "
                "or set trainer.lora.served=merged"
            )


@dataclass(frozen=True, kw_only=True)
class TrainerConfig:
    """What learns, and its AdamW."""

    kind: str
    num_ranks: int
    zero_stage: int
    dtype: str
    threads: int
    """How many CPU threads each rank has; 0 shares all cores among the ranks."""
    max_tokens: int
    """How many tokens a pack may have, which bounds the memory of one forward and backward."""
    weight_decay: float
    """AdamW's weight decay; it works on matrices alone, not on norms, biases and embeddings."""
    beta2: float
    grad_clip: float
    bias_update_speed: float
    """How far every expert's bias moves against its load after a step (V3 in pre-training: 0.001); 0 freezes it."""
    balance_coef: float
    """The weight of the sequence-wise balance loss (V3 in pre-training: 1e-4); 0 leaves it out."""
    lora: LoraConfig | None = None
    """null trains all weights."""

    def __post_init__(self) -> None:
        """Refuses unknown kinds and ZeRO stages."""
        one_of("trainer.kind", self.kind, ("deepspeed", "torch"))
        one_of("trainer.dtype", self.dtype, ("fp32", "bf16"))
        whole("trainer.num_ranks", self.num_ranks, least=1, most=MAX_PROCESSES)
        whole("trainer.zero_stage", self.zero_stage)
        whole("trainer.max_tokens", self.max_tokens, least=1)
        whole("trainer.threads", self.threads, most=MAX_PROCESSES, fix="0 shares all cores among the ranks")
        number("trainer.weight_decay", self.weight_decay, least=0, most=100, fix="0.1 is usual, 0 decays nothing")
        number("trainer.beta2", self.beta2, above=0, below=1, fix="0.95 is usual")
        number("trainer.grad_clip", self.grad_clip, above=0, fix="1.0 is usual, 1e9 clips nothing")
        fix = "V3's pre-training has 0.001, 0 leaves the biases as they are"
        number("trainer.bias_update_speed", self.bias_update_speed, least=0, most=1, fix=fix)
        number("trainer.balance_coef", self.balance_coef, least=0, fix="V3's pre-training has 1e-4, 0 turns it off")
        if self.kind == "torch" and self.dtype != "fp32":
            raise UserError(
                f"trainer.dtype={self.dtype} needs trainer=deepspeed, which keeps fp32 master weights; without them "
                "small steps round to nothing"
            )
        if self.zero_stage not in (1, 2):
            raise UserError(f"trainer.zero_stage={self.zero_stage} is not supported; use 1 or 2")
        if self.kind == "torch" and self.num_ranks > 1:
            raise UserError(f"trainer.num_ranks={self.num_ranks} needs trainer=deepspeed; trainer=torch has one rank")
        if self.bias_update_speed and self.lora is not None:
            raise UserError(
                f"trainer.bias_update_speed={self.bias_update_speed} moves what an adapter cannot hold, so that the "
                "base with the adapter would be another model; set it to 0, or trainer.lora to null"
            )


@dataclass(frozen=True, kw_only=True)
class ClusterConfig:
    """Where the parts run."""

    kind: str
    """"ray" runs engines and ranks as actors; "local" runs everything in this process, without Ray."""
    address: str
    """The address of a running Ray cluster; "" starts one on this machine for the length of the run."""

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
