"""What samples: the settings of the engines."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from rlkit.checks import MAX_PROCESSES, number, one_of, whole
from rlkit.errors import UserError

MAX_SPECULATIVE_TOKENS = 8
"""Even at V3's acceptance of 0.9 a ninth token counts in 0.9^9 = 39 % of the passes, and is computed in all of them."""
MAX_MEMORY_GIB = 1_000_000
"""No machine has more memory than a pebibyte."""


@dataclass(frozen=True, kw_only=True)
class EngineConfig:
    """What samples completions."""

    kind: str
    num_engines: int
    dtype: str
    """"fp32", "bf16", or "fp8": block FP8 for the matrices of attention, MLPs and experts, the rest in bf16."""
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
    tensor_parallel: int
    """How many processes hold a slice of every layer each and compute every step together, on one machine; 1 computes
    in the engine's own process."""
    options: dict[str, Any]
    """Further arguments of vLLM, under their names in its EngineArgs; those that rlkit sets itself are refused."""

    def __post_init__(self) -> None:
        """Refuses unknown kinds and empty pools."""
        one_of("engine.kind", self.kind, ("vllm", "torch"))
        one_of("engine.dtype", self.dtype, ("fp32", "bf16", "fp8"))
        whole("engine.num_engines", self.num_engines, least=1, most=MAX_PROCESSES)
        whole("engine.max_num_seqs", self.max_num_seqs, least=1)
        whole("engine.max_model_len", self.max_model_len, least=2)
        whole("engine.threads", self.threads, most=MAX_PROCESSES, fix="0 shares all cores among the engines")
        fix = "0 turns drafts off, 1 is what DeepSeek-V3 uses, and each further one is accepted less often"
        whole("engine.speculative_tokens", self.speculative_tokens, most=MAX_SPECULATIVE_TOKENS, fix=fix)
        fix = "it is in GiB on a CPU, and a share of the device's memory on a GPU"
        number("engine.memory", self.memory, above=0, most=MAX_MEMORY_GIB, fix=fix)
        whole("engine.tensor_parallel", self.tensor_parallel, least=1, most=MAX_PROCESSES)
        if self.kind == "torch" and (self.tensor_parallel > 1 or self.options):
            name = "tensor_parallel" if self.tensor_parallel > 1 else "options"
            given, none = (self.tensor_parallel, "1") if self.tensor_parallel > 1 else (self.options, "{}")
            raise UserError(f"engine.{name}={given} needs engine=vllm; set it to {none}, or use engine=vllm")
        if self.tensor_parallel > 1 and self.speculative_tokens:
            raise UserError(
                f"engine.tensor_parallel={self.tensor_parallel} does not draft: engine.speculative_tokens="
                f"{self.speculative_tokens}; set one of them to 0 or 1, speculative_tokens to 0 or tensor_parallel to 1"
            )
        if self.tensor_parallel > 1 and self.dtype == "fp8":
            raise UserError(
                f"engine.tensor_parallel={self.tensor_parallel}: the gate of engine.dtype=fp8 audits whole tensors, "
                "not slices; set engine.tensor_parallel=1, or engine.dtype=bf16"
            )
        if self.kind == "torch" and self.dtype != "fp32":
            raise UserError(f"engine.dtype={self.dtype} needs engine=vllm; engine=torch samples in fp32")
