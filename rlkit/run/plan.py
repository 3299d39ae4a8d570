"""What a configuration amounts to, in numbers, before anything starts."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from rlkit.config import TrainingRun
from rlkit.config.compose import to_yaml
from rlkit.model import DeepseekV3, DeepseekV3Config
from rlkit.model.files.hf_folder import HfArchitecture
from rlkit.model.load import Architecture, empty_model, read_architecture
from rlkit.model.lora import choose_targets, count_parameters
from rlkit.model.meta import on_meta
from rlkit.model.moe import Experts
from rlkit.run.prepare import Task, prepare

BYTES = {"fp32": 4, "bf16": 2}
GIB = 2**30


def show(cfg: TrainingRun, *, print_only: bool) -> Task | None:
    """Read and check what the run needs; for `--cfg job` and `dry_run=true` print the plan instead and return None.

    `--cfg job` prints without reading the data; `dry_run=true` reads and checks everything first.
    """
    task = None if print_only else prepare(cfg)
    if task is not None and not cfg.dry_run:
        return task
    print(to_yaml(cfg))
    width = max(len(label) for label, _ in derived(cfg, task))
    for label, value in derived(cfg, task):
        print(f"{label:<{width}}  {value}")
    print("\nnothing was started" + ("" if task is None else "; the data, the model and the reward are in order"))
    return None


def derived(cfg: TrainingRun, task: Task | None) -> list[tuple[str, str]]:
    """Labels and values of everything that follows from the configuration."""
    if task is not None:
        architecture = task.architecture
    elif cfg.model.path:
        architecture = read_architecture(Path(cfg.model.path), cfg.model.kind)
    else:
        assert cfg.model.architecture is not None, "ModelConfig refuses this"
        architecture = cfg.model.architecture
    total, active = parameters(architecture)
    extra = mtp_parameters(architecture)
    numbers = cache_numbers(architecture)
    size = architecture.num_hidden_layers * numbers * BYTES[cfg.engine.dtype]
    rows = [
        (
            "parameters",
            f"{total:,}, of which {active:,} work on each token" + (f"; plus {extra:,} in MTP" if extra else ""),
        ),
        (
            cache_name(architecture),
            f"{numbers} numbers per token and layer, {size:,} bytes per token in {cfg.engine.dtype}",
        ),
    ]
    trained = lora_parameters(cfg, architecture)
    if trained != 0:
        rows.append(("LoRA", f"{trained:,} parameters are trained, {trained / total:.2%} as many as there are"))
    rows += cfg.amounts(len(task.prompts) if task else None, len(task.demonstrations) if task else None)
    if task is not None:
        longest = max(len(prompt.tokens) for prompt in (*task.prompts, *task.held_out))
        rows.append(
            ("prompts", f"{len(task.prompts):,} to train on, {len(task.held_out):,} held out; longest {longest}")
        )
    return rows + _memory(cfg, architecture, total + extra, trained or total + extra)


def parameters(architecture: Architecture) -> tuple[int, int]:
    """All parameters, and those that one token passes through: its experts, its own row of the embedding, all else.

    Modules for multi-token prediction are not in either, as in the paper; see `mtp_parameters`.
    """
    if isinstance(architecture, HfArchitecture):
        return architecture.num_parameters, architecture.active_parameters()
    with on_meta():
        model = DeepseekV3(replace(architecture, num_nextn_predict_layers=0))
    total = sum(parameter.numel() for parameter in model.parameters())
    idle = 1 - architecture.num_experts_per_tok / architecture.n_routed_experts
    experts = [module for module in model.modules() if isinstance(module, Experts)]
    routed = sum(parameter.numel() for module in experts for parameter in module.parameters())
    table = 0 if architecture.tie_word_embeddings else model.model.embed_tokens.weight[1:].numel()
    return total, round(total - idle * routed) - table


def mtp_parameters(architecture: Architecture) -> int:
    """Parameters of the modules for multi-token prediction, without embedding and head, which are the main model's."""
    modules = empty_model(architecture).mtp_modules() if isinstance(architecture, DeepseekV3Config) else ()
    return sum(parameter.numel() for module in modules for parameter in module.parameters())


def lora_parameters(cfg: TrainingRun, architecture: Architecture) -> int:
    """Parameters of all adapters; 0 without LoRA. ValueError for a target that is not there."""
    if cfg.trainer.lora is None:
        return 0
    model = empty_model(architecture)
    return count_parameters(model, cfg.trainer.lora.rank, choose_targets(model, cfg.trainer.lora.targets))


def cache_name(architecture: Architecture) -> str:
    """What the cache of a model holds, in words."""
    return "KV cache" if isinstance(architecture, HfArchitecture) else "latent cache"


def cache_numbers(architecture: Architecture) -> int:
    """What decoding keeps of each token in each layer: its latent and its rotary key (arXiv:2412.19437, 2.1.1).

    Of models with plain attention: keys and values of all their heads.
    """
    if isinstance(architecture, HfArchitecture):
        return architecture.cache_numbers()
    return architecture.kv_lora_rank + architecture.qk_rope_head_dim


def _memory(cfg: TrainingRun, architecture: Architecture, total: int, trained: int) -> list[tuple[str, str]]:
    """Bytes that can be computed: weights, gradients, AdamW, KV cache. Activations and the runtimes are not in it."""
    trainer, engine, ranks = BYTES[cfg.trainer.dtype], BYTES[cfg.engine.dtype], cfg.trainer.num_ranks
    reference = trainer if cfg.needs_reference else 0
    # ZeRO shards fp32 master weights and both moments over the ranks; weights and fp32 gradients are whole.
    # Below LoRA the weights are frozen, and the reference has its own adapters only.
    copies = trained if cfg.trainer.lora else total
    per_rank = total * trainer + copies * reference + trained * (4 + 12 / ranks)
    per_token = architecture.num_hidden_layers * cache_numbers(architecture) * engine
    cache = per_token * cfg.engine.max_model_len * cfg.engine.max_num_seqs
    return [
        ("trainer memory", f"{per_rank / GIB:.3f} GiB a rank for weights, gradients, AdamW and reference"),
        (
            "engine memory",
            f"{total * engine / GIB:.3f} GiB of weights; full {cache_name(architecture)} {cache / GIB:.3f} GiB",
        ),
    ]
