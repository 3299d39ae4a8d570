"""Arguments of vLLM's own that a run may add, and those that it may not because rlkit sets them."""

from __future__ import annotations

import ast
from collections.abc import Mapping
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any

from rlkit.checks import is_whole, shown, suggestion
from rlkit.errors import UserError

ALWAYS: dict[str, Any] = {
    "skip_tokenizer_init": True,
    "generation_config": "vllm",
    "logprobs_mode": "processed_logprobs",
    "enable_prefix_caching": False,
    "use_tqdm_on_load": False,
}
"""What every engine has: tokens in and out, log-probs of the distribution that was drawn from, bit for bit again."""

INSTEAD = {
    "model": "model.path",
    "model_weights": "model.path",
    "hf_config_path": "model.path",
    "hf_overrides": "model.path",
    "load_format": "model.path",
    "quantization": "engine.dtype",
    "dtype": "engine.dtype",
    "seed": "seed",
    "max_model_len": "engine.max_model_len",
    "max_num_seqs": "engine.max_num_seqs",
    "gpu_memory_utilization": "engine.memory",
    "kv_cache_memory_bytes": "engine.memory",
    "tensor_parallel_size": "engine.tensor_parallel",
    "distributed_executor_backend": "engine.tensor_parallel",
    "speculative_config": "engine.speculative_tokens",
    "spec_method": "engine.speculative_tokens",
    "spec_model": "engine.speculative_tokens",
    "spec_tokens": "engine.speculative_tokens",
    "enable_lora": "trainer.lora",
    "max_loras": "trainer.lora",
    "max_lora_rank": "trainer.lora.rank",
    "lora_target_modules": "trainer.lora.targets",
}
"""An argument of vLLM, and the key of rlkit that sets it."""
NO_KEY = {
    **{name: "rollouts would not be the same bits again" for name in ("enable_prefix_caching", "generation_config")},
    "logprobs_mode": "the trainer needs log-probs of the distribution that was drawn from",
    "skip_tokenizer_init": "an engine takes and gives tokens",
    "tokenizer": "an engine takes and gives tokens",
    "use_tqdm_on_load": "the run draws its own progress",
    "disable_log_stats": "it is on where tokens are drafted",
    "worker_cls": "workers are vLLM's own",
    "pipeline_parallel_size": "an engine is placed by engine.tensor_parallel alone",
    "nnodes": "an engine lives on one machine; use engine.num_engines",
}
"""An argument that rlkit sets, or leaves alone, for a reason that no key changes."""
NO_COPIES = (
    "vLLM runs copies of a model from its server alone, and hangs in a process like ours; use engine.num_engines"
)
"""Why no argument that begins with `data_parallel_` is taken."""
NO_EXPERT_PARALLEL = "vLLM's CPU build ends on its first step with it; leave it out, or run on GPUs"
ON_CPU = {
    "enable_expert_parallel": NO_EXPERT_PARALLEL,
    "enable_eplb": NO_EXPERT_PARALLEL,
    "enable_chunked_prefill": "vLLM's CPU build ends on a prompt cut in two whose request has a seed; leave it out",
    "enforce_eager": "vLLM's CPU build would compile for half a minute; leave it out",
    "compilation_config": "rlkit sets it, as the CPU build's own rotary embedding is wrong; leave it out",
    "block_size": "rlkit sets what the CPU build's attention takes; leave it out",
    "attention_backend": "rlkit sets it by VLLM_MLA_DISABLE; leave it out",
}
"""An argument that the CPU build does not take, and why."""


def check_options(options: Mapping[str, Any], *, cuda: bool, max_model_len: int) -> None:
    """Raises UserError, with what to do instead, for an argument that vLLM does not have or that rlkit sets itself."""
    for name, value in options.items():
        key = f"engine.options.{name}={shown(value)}"
        if name in INSTEAD:
            raise UserError(f"{key} is set by {INSTEAD[name]}; use that key, and leave it out here")
        if name in NO_KEY:
            raise UserError(f"{key} cannot be set: {NO_KEY[name]}; leave it out")
        if name.startswith("data_parallel"):
            raise UserError(f"{key} cannot be set: {NO_COPIES}")
        if not cuda and name in ON_CPU:
            raise UserError(f"{key} cannot be set on a CPU: {ON_CPU[name]}")
        if name == "max_num_batched_tokens" and not cuda and not (is_whole(value) and value >= max_model_len):
            raise UserError(
                f"{key} must be at least engine.max_model_len={max_model_len} on a CPU, where prompts are never cut; "
                "raise it or leave it out"
            )
        known = argument_names()
        if known and name not in known:
            raise UserError(f"engine.options.{name} is not an argument of vLLM{suggestion(name, sorted(known))}")


def engine_arguments(vllm: ModuleType, ours: Mapping[str, Any], options: Mapping[str, Any]) -> Any:
    """Makes vLLM's EngineArgs of our arguments and further ones; raises UserError where vLLM refuses the latter."""
    arguments = {**ours, **options}
    if not options:
        return vllm.EngineArgs(**arguments)
    try:
        made = vllm.EngineArgs(**arguments)
        made.create_engine_config()
    except (TypeError, ValueError, NotImplementedError, AssertionError) as error:
        why = " ".join(str(error).split())
        raise UserError(f"engine.options={shown(dict(options))}: vLLM refuses it ({why}); change it") from error
    return made


@cache
def argument_names() -> frozenset[str]:
    """Reads the names of vLLM's EngineArgs from its source; there are none where vLLM is not installed.

    To import vLLM takes seconds and changes the environment of this process.
    """
    spec = find_spec("vllm")
    for folder in (spec and spec.submodule_search_locations) or ():
        tree = ast.parse((Path(folder) / "engine" / "arg_utils.py").read_text())
        for node in tree.body:
            if isinstance(node, ast.ClassDef) and node.name == "EngineArgs":
                fields = (field.target for field in node.body if isinstance(field, ast.AnnAssign))
                names = (field.id for field in fields if isinstance(field, ast.Name))
                return frozenset(name for name in names if not name.startswith("_"))
    return frozenset()
