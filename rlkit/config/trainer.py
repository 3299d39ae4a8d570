"""What learns: the settings of the trainer, its optimiser and its adapters."""

from __future__ import annotations

from dataclasses import dataclass

from rlkit.checks import MAX_PROCESSES, number, one_of, whole
from rlkit.errors import UserError
from rlkit.quant.fp8 import FLOAT8

SERVED_RANKS = (8, 16, 32, 64, 128, 256, 320, 512)
"""vLLM makes room for an adapter of one of these ranks; one in between gets the next."""


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
    """What learns, and its optimiser."""

    kind: str
    num_ranks: int
    expert_parallel: int
    """How many ranks share out the routed experts of every layer; of each expert there are num_ranks / E copies."""
    pipeline: int
    """How many ranks share out the layers, by DeepSpeed's DualPipeV; of each layer there are num_ranks / P copies."""
    zero_stage: int
    """What the ranks share out besides: 1 the optimiser's state, 2 the gradients too, 3 the weights too."""
    offload: str
    """What lies in the CPU's memory while it is not needed: "none", "optimizer", or "all", the weights too."""
    recompute: bool
    """Whether backward computes every block again instead of keeping what is inside it; the same bits, less memory."""
    dtype: str
    """"fp32", "bf16", "fp8" (V3's recipe: weights, activations and gradients in FP8), or "fp8_weights" (weights in FP8
    with power-of-two scales, the rest in bf16, as vLLM's engine on the CPU); FP8 has bf16 parameters, and all but fp32
    have fp32 master weights."""
    optimizer: str
    """What turns gradients into steps: "adamw", or "muon", which is for matrices and leaves the rest to AdamW."""
    threads: int
    """How many CPU threads each rank has; 0 shares all cores among the ranks."""
    max_tokens: int
    """How many tokens a pack may have, which bounds the memory of one forward and backward."""
    weight_decay: float
    """Decoupled, as in AdamW; it works on matrices alone, not on norms, biases and embeddings."""
    beta2: float
    """AdamW's; beta1 is 0.9, and Muon's momentum 0.95."""
    grad_clip: float
    max_skipped: int
    """How many steps in a row may be skipped because loss or gradient are no numbers; one more ends the run."""
    bias_update_speed: float
    """How far every expert's bias moves against its load after a step (V3 in pre-training: 0.001); 0 freezes it."""
    fp8_dispatch: bool
    """Whether rows travel to their experts in FP8, and so do gradients; what comes back is in bf16."""
    balance_coef: float
    """The weight of the sequence-wise balance loss (V3 in pre-training: 1e-4); 0 leaves it out."""
    lora: LoraConfig | None = None
    """null trains all weights."""

    def __post_init__(self) -> None:
        """Refuses unknown kinds and ZeRO stages."""
        one_of("trainer.kind", self.kind, ("deepspeed", "torch"))
        one_of("trainer.dtype", self.dtype, ("fp32", "bf16", *FLOAT8))
        one_of("trainer.optimizer", self.optimizer, ("adamw", "muon"))
        whole("trainer.num_ranks", self.num_ranks, least=1, most=MAX_PROCESSES)
        whole("trainer.expert_parallel", self.expert_parallel, least=1)
        whole("trainer.pipeline", self.pipeline, least=1)
        whole("trainer.zero_stage", self.zero_stage)
        one_of("trainer.offload", self.offload, ("none", "optimizer", "all"))
        whole("trainer.max_tokens", self.max_tokens, least=1)
        whole("trainer.threads", self.threads, most=MAX_PROCESSES, fix="0 shares all cores among the ranks")
        number("trainer.weight_decay", self.weight_decay, least=0, most=100, fix="0.1 is usual, 0 decays nothing")
        number("trainer.beta2", self.beta2, above=0, below=1, fix="0.95 is usual")
        number("trainer.grad_clip", self.grad_clip, above=0, fix="1.0 is usual, 1e9 clips nothing")
        whole("trainer.max_skipped", self.max_skipped, fix="3 is the default, 0 ends the run at the first")
        fix = "V3's pre-training has 0.001, 0 leaves the biases as they are"
        number("trainer.bias_update_speed", self.bias_update_speed, least=0, most=1, fix=fix)
        number("trainer.balance_coef", self.balance_coef, least=0, fix="V3's pre-training has 1e-4, 0 turns it off")
        if self.kind == "torch" and self.dtype != "fp32":
            raise UserError(
                f"trainer.dtype={self.dtype} needs trainer=deepspeed, which keeps fp32 master weights; without them "
                "small steps round to nothing"
            )
        self._check_layout()
        if self.fp8_dispatch and (self.dtype != "fp8" or self.expert_parallel == 1):
            raise UserError(
                f"trainer.fp8_dispatch=true sends rows between ranks as trainer.dtype=fp8 multiplies them, but dtype "
                f"is {self.dtype} and trainer.expert_parallel={self.expert_parallel}; set it to false, or "
                "trainer.dtype to fp8 and trainer.expert_parallel above 1"
            )
        if self.dtype in FLOAT8 and self.lora is not None:
            raise UserError(
                f"trainer.dtype={self.dtype} rounds W to FP8 and adds LoRA's B A to it in bf16, but exports round "
                "their sum, which is another model; set trainer.dtype=bf16, or trainer.lora to null"
            )
        if self.optimizer == "muon" and self.lora is not None:
            raise UserError(
                "trainer.optimizer=muon with trainer.lora: Muon makes the step of a whole matrix orthogonal, and an "
                "adapter is two factors of one; set trainer.optimizer=adamw, or trainer.lora to null"
            )
        if self.bias_update_speed and self.lora is not None:
            raise UserError(
                f"trainer.bias_update_speed={self.bias_update_speed} moves what an adapter cannot hold, so that the "
                "base with the adapter would be another model; set it to 0, or trainer.lora to null"
            )

    def _check_layout(self) -> None:
        """Refuses ways to share the model out that do not work, or that do not work together."""
        stage, spread, lora = self.zero_stage, self.expert_parallel, self.lora is not None
        if stage not in (1, 2, 3):
            why = "with 0 DeepSpeed clips by the wrong norm" if stage == 0 else "there is no such stage"
            raise UserError(f"trainer.zero_stage={stage} is not supported ({why}); use 1, 2 or 3")
        self._check_pipeline()
        if self.num_ranks // self.pipeline % spread:
            ranks, peers = f"trainer.num_ranks={self.num_ranks}", self.num_ranks // self.pipeline
            if self.pipeline > 1:
                ranks = f"the {peers} ranks of a stage ({ranks}, trainer.pipeline={self.pipeline})"
            raise UserError(
                f"trainer.expert_parallel={spread} does not divide {ranks}: every group of {spread} ranks holds all "
                "experts once; change one of them"
            )
        if self.kind == "torch":
            for key, value, only in (
                ("num_ranks", self.num_ranks, 1),
                ("offload", self.offload, "none"),
                ("zero_stage", stage, 1),
            ):
                if value != only:
                    raise UserError(f"trainer.{key}={value} needs trainer=deepspeed; trainer=torch has {only}")
        if self.offload == "all" and stage != 3:
            raise UserError(
                f"trainer.offload=all moves weights that trainer.zero_stage=3 has shared out, but it is {stage}; set "
                "it to 3, or trainer.offload=optimizer"
            )
        if lora and stage == 3:
            raise UserError(
                "trainer.zero_stage=3 with trainer.lora: the frozen weights, which the reference shares with the "
                "policy, would be in pieces when it needs them; set trainer.zero_stage=2"
            )

    @property
    def num_shares(self) -> int:
        """Returns how many parts a batch is dealt in: all ranks of a pipeline get the same one."""
        return self.num_ranks // self.pipeline

    @property
    def dealt_to(self) -> str:
        """Names what a batch is dealt to, for messages."""
        pipelines = f" / trainer.pipeline={self.pipeline} = {self.num_shares} pipelines" if self.pipeline > 1 else ""
        return f"trainer.num_ranks={self.num_ranks}{pipelines}"

    def _check_pipeline(self) -> None:
        """Refuses what does not go with DualPipeV."""
        stages = self.pipeline
        if self.num_ranks % stages:
            raise UserError(
                f"trainer.pipeline={stages} does not divide trainer.num_ranks={self.num_ranks}: {stages} ranks hold "
                "all layers once; change one of them"
            )
        if stages == 1:
            return
        for key, value, only, why in (
            (
                "zero_stage",
                self.zero_stage,
                1,
                "DualPipeV adds up a whole step before it reduces gradients",
            ),
            ("offload", self.offload, "none", "DualPipeV with offload was not tried"),
            ("optimizer", self.optimizer, "adamw", "DualPipeV with Muon was not tried"),
            ("lora", "null" if self.lora is None else "{...}", "null", "adapters are not spread over stages"),
        ):
            if value != only:
                raise UserError(
                    f"trainer.{key}={value} with trainer.pipeline={stages}: {why}; set trainer.{key}={only}, or "
                    "trainer.pipeline=1"
                )
