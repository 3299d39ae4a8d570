"""Starts vLLM in this process: its environment, its arguments for this machine, and what has to be mended in it.

Defects of the CPU build of vLLM 0.32.0, the first, the third and the last silent, and the way round each:
    rotary_embedding   the C++ op corrupts the queries of MLA           -> custom_ops "none": the torch version
    CPU_MLA            decode kernel is slow, for latent width 576 only -> VLLM_MLA_DISABLE=1, which expands keys and
                       values, unless the environment says 0
    reload_weights     a second load skips the packing of the experts   -> forget the MoE kernel before each load
    torch.compile      routing and log-probs need a C compiler, 30 s    -> TORCHDYNAMO_DISABLE while it is imported
    chunked prefill    a prompt cut in two whose request has a seed ends the engine -> prompts are never cut
    drafts             their check divides by memory that nobody wrote, not by the temperature -> `_per_token`
    AMX                bf16 attention with heads of 64 or 128 numbers uses the tiles of CPUs that have them without
                       asking the kernel for them: SIGILL -> `torch.cpu._init_amx()` asks
    FP8                refused without AMX, although the kernels run without it -> `rlkit.engine.vllm.fp8`
"""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from rlkit.engine.vllm.adapter import add_adapter
from rlkit.engine.vllm.fp8 import allow_fp8

_ONLY_WHILE_STARTING = ("LD_PRELOAD", "LOCAL_WORLD_SIZE", "OMP_NUM_THREADS", "PYTHONWARNINGS", "TORCHDYNAMO_DISABLE")
"""Variables of the environment that are set while an engine starts, and then put back."""
_NO_NEWS = tuple(f"`torch.distributed.{name}` is deprecated" for name in ("reduce_op", "all_gather_into_tensor"))
"""How the FutureWarnings begin that vLLM's own code causes, the second on some CPUs only."""


def import_vllm() -> ModuleType:
    """Imports vllm, or raises RuntimeError saying how to get it or do without."""
    try:
        return import_module("vllm")
    except ImportError as error:
        raise RuntimeError(
            f"engine=vllm needs vllm, which does not import here ({error}): install requirements/cpu.txt or "
            "requirements/cuda.txt with --no-deps, or choose engine=torch"
        ) from error


def mend(*, drafts: bool, adapter: bool, fp8: bool = False) -> None:
    """Replaces functions of the CPU build by those that do what they should."""
    if fp8:
        allow_fp8()
    if drafts:
        sampler: Any = import_module("vllm.v1.sample.rejection_sampler")
        sampler.expand_batch_to_tokens = _per_token
    if adapter:
        kernels: Any = import_module("vllm.lora.punica_wrapper.punica_cpu")
        kernels.PunicaWrapperCPU.add_lora_linear = add_adapter


def draft_arguments(tokens: int) -> dict[str, Any] | None:
    """Returns what makes vLLM draft with the checkpoint's own MTP modules."""
    return {"method": "mtp", "num_speculative_tokens": tokens} if tokens else None


def platform_arguments(
    cuda: bool, max_model_len: int, kv_cache_gib: float, gpu_memory_utilization: float
) -> dict[str, Any]:
    """Returns the engine arguments that differ between CUDA and the CPU."""
    if cuda:
        return {"gpu_memory_utilization": gpu_memory_utilization}
    expanded = os.environ["VLLM_MLA_DISABLE"] == "1"
    # Attention on the CPU reads whole blocks of the cache, full or not: these are the smallest that each kernel takes.
    cache = {"block_size": 32} if expanded else {"block_size": 16, "attention_backend": "CPU_MLA"}  # AMX_MLA: no fp32
    return {
        **cache,
        "kv_cache_memory_bytes": int(kv_cache_gib * 2**30),
        "enforce_eager": True,
        "enable_chunked_prefill": False,
        "max_num_batched_tokens": max(max_model_len, 4096),
        "compilation_config": {"custom_ops": ["none"]},
    }


@contextmanager
def use_threads(threads: int) -> Iterator[None]:
    """Runs the block with `threads` OpenMP threads, a setting of the calling thread that vLLM's kernels follow."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def mend_process() -> None:
    """Replaces and asks for what every process needs that computes with the CPU build, before its model is made."""
    # Ties all memory to one NUMA node although no thread is tied to it, and says so on stderr.
    operators: Any = torch.ops._C
    operators.init_cpu_memory_env = lambda nodes: None
    torch.cpu._init_amx()  # False, and nothing happens, where the CPU has no tiles


@contextmanager
def start_up(cuda: bool, worker_threads: int) -> Iterator[None]:
    """Sets what vLLM reads while it is imported and started, and takes back what would outlive the engine.

    Worker processes, if there are any, inherit it, and compute with `worker_threads` OpenMP threads each.
    """
    os.environ.update(VLLM_ENABLE_V1_MULTIPROCESSING="0", VLLM_ALLOW_INSECURE_SERIALIZATION="1")
    os.environ.update(VLLM_NO_USAGE_STATS="1", VLLM_DO_NOT_TRACK="1")
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
    kept = {name: os.environ.get(name) for name in _ONLY_WHILE_STARTING}
    # New processes read these two; this one has set its number of threads, and its filters below.
    os.environ["OMP_NUM_THREADS"] = str(worker_threads)
    silent = [f"ignore:{news}:FutureWarning" for news in _NO_NEWS]
    os.environ["PYTHONWARNINGS"] = ",".join(filter(None, (kept["PYTHONWARNINGS"], *silent)))
    if not cuda:
        os.environ.setdefault("VLLM_MLA_DISABLE", "1")  # who sets 0 wants the latent cache, and has width 576
        os.environ.update(VLLM_CPU_OMP_THREADS_BIND="nobind", TORCHDYNAMO_DISABLE="1")
        os.environ.pop("VLLM_CPU_KVCACHE_SPACE", None)  # it would overrule kv_cache_gib
        mend_process()
    set_num_threads = torch.set_num_threads
    logging.getLogger("vllm").setLevel(os.environ["VLLM_LOGGING_LEVEL"])  # vLLM sets it after its first messages
    try:
        with warnings.catch_warnings():
            for news in _NO_NEWS:
                warnings.filterwarnings("ignore", news, FutureWarning)
            yield
    finally:
        torch.set_num_threads = set_num_threads
        for name, value in kept.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def _per_token(x_B: Tensor, ends_B: Tensor, num_tokens: int, replace_from: float = 0, replace_to: float = 0) -> Tensor:
    """Does what vLLM's `expand_batch_to_tokens` should: it repeats the value of each request for each of its tokens."""
    x_B = torch.where(x_B == replace_from, replace_to, x_B).to(x_B.dtype)
    return x_B.repeat_interleave(ends_B.diff(prepend=ends_B.new_zeros(1)), output_size=num_tokens)
