"""One adapter beside vLLM's own weights, which stay those of the base; every sync replaces it, in memory.

Of vLLM's CPU build, two kernels are not used: that of the head fails on the log-probs of a prompt, and that of linear
layers copies A and B for every token, which takes 13 times as long and a GiB for 4,096 tokens of an ordinary layer.
What is not covered: models with routed experts, for whose kernels with adapters the CPU build lacks Triton.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from importlib import import_module
from typing import Any

from torch import Tensor

from rlkit.config import LoraConfig
from rlkit.config.trainer import SERVED_RANKS
from rlkit.errors import UserError

NUMBER = 1
"""By which vLLM knows the adapter; there is one, and the next one takes its place."""


def adapter_arguments(lora: LoraConfig) -> dict[str, Any]:
    """Returns the engine arguments that make room for one adapter on the layers that `lora.targets` names."""
    rank = next(rank for rank in SERVED_RANKS if rank >= lora.rank)
    return {"enable_lora": True, "max_loras": 1, "max_lora_rank": rank, "lora_target_modules": list(lora.targets)}


def adapter_request() -> Any:
    """Returns what a request names the adapter by; vLLM reads no file, because it holds an adapter of this number."""
    return import_module("vllm.lora.request").LoRARequest("policy", NUMBER, "in memory")


def replace_adapter(worker: Any, tensors: Iterable[tuple[str, Tensor]], lora: LoraConfig) -> None:
    """Puts A and B, under peft's keys, in place of the ones before; it runs in vLLM's worker.

    Raises UserError for layers that vLLM would leave without their adapter, silently.
    """
    settings = import_module("vllm.lora.peft_helper").PEFTHelper
    adapter_class = import_module("vllm.lora.lora_model").LoRAModel
    loader: Any = worker.model_runner.lora_manager
    slots: Any = loader._adapter_manager
    mapper: Any = getattr(slots.model, "hf_to_vllm_mapper", None)
    adapter = adapter_class.from_lora_tensors(
        NUMBER,
        {name: tensor.detach().clone() for name, tensor in tensors},  # vLLM multiplies B by alpha / r where it lies
        settings(r=lora.rank, lora_alpha=lora.alpha, target_modules=list(lora.targets)),
        device="cpu",
        dtype=loader.lora_config.lora_dtype,
        weights_mapper=mapper and mapper.get_rename_mapper(),
    )
    loader.remove_all_adapters()
    slots.add_adapter(adapter)
    if lost := sorted(adapter.loras.keys() - slots.modules.keys()):
        raise UserError(
            f"trainer.lora.served=adapter: vLLM has no place for an adapter on {lost[0]}; leave "
            f"{lost[0].rpartition('.')[2]} out of trainer.lora.targets, or set trainer.lora.served=merged"
        )
    slots.activate_adapter(NUMBER)


def add_adapter(
    _kernels: Any,
    y_TO: Tensor,
    x_TI: Tensor,
    a_stacked: Sequence[Tensor],
    b_stacked: Sequence[Tensor],
    scale: float,
    widths: Sequence[int],
    **_: Any,
) -> None:
    """Does what `PunicaWrapperCPU.add_lora_linear` does, for one adapter: y += scale B A x, layer by layer of a stack.

    A x is taken in fp32 and the rest in y's dtype, as there. Every request has the adapter, so every token gets it.
    """
    start = 0
    for a, b, width in zip(a_stacked, b_stacked, widths, strict=True):
        low_TR = scale * (x_TI.float() @ a[0, 0].float().T)
        y_TO[:, start : start + width] += low_TR.to(y_TO.dtype) @ b[0, 0].to(y_TO.dtype).T
        start += width
