"""Block FP8 in vLLM's CPU build: where it runs, and how it is told to.

It computes W8A16: codes and 128 x 128 scales are multiplied out to bf16 inside the product, activations stay bf16. The
kernels need bf16 products in the CPU, which AMX has, and AVX-512 has them too. vLLM asks for AMX alone and refuses FP8
without it, although the same kernels run on AVX-512 BF16 (AMD since Zen 4) and give the same results there
(tests/parity/test_vllm_fp8.py), so the question is put again. On GPUs vLLM chooses its own kernels, which are W8A8.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

import torch


def fp8_problem() -> str | None:
    """Says why vLLM cannot compute in FP8 on this machine; None where it can."""
    if torch.cuda.is_available() or _has_bf16_products():
        return None
    return (
        "vLLM's FP8 on the CPU needs products in bf16 (AMX, or AVX-512 with BF16), which this CPU does not have; use "
        "engine.dtype=bf16"
    )


def allow_fp8() -> None:
    """Lets vLLM's own W8A16 kernels for linear layers and experts be chosen on every CPU that can run them."""
    linear: Any = import_module("vllm.model_executor.kernels.linear.scaled_mm.cpu")
    experts: Any = import_module("vllm.model_executor.layers.fused_moe.experts.cpu_moe")
    linear.CPUFp8BlockScaledMMKernel.is_supported = classmethod(lambda _cls, _capability=None: _supported())
    experts.CPUExpertsFp8._supports_current_device = staticmethod(lambda: _supported()[0])


def _supported() -> tuple[bool, str | None]:
    operators: Any = torch.ops._C
    if not hasattr(operators, "fp8_scaled_mm_cpu"):
        return False, "this build has no fp8_scaled_mm_cpu"
    return _has_bf16_products(), fp8_problem()


def _has_bf16_products() -> bool:
    return torch.cpu._is_amx_tile_supported() or torch.cpu._is_avx512_bf16_supported()
