"""Says what a configuration amounts to, in numbers, before anything starts."""

from __future__ import annotations

import sys
from pathlib import Path

from rlkit.config import TrainingRun
from rlkit.config.compose import to_yaml
from rlkit.model.architecture import Architecture
from rlkit.model.deepseek_architecture import DeepseekArchitecture
from rlkit.model.load import read_architecture
from rlkit.model.lora import choose_targets, count_parameters
from rlkit.model.size import Size
from rlkit.quant.fp8 import FLOAT8
from rlkit.run.folder import CHECKPOINTS, newest_checkpoint
from rlkit.run.inputs import check_same
from rlkit.run.lock import check_free
from rlkit.run.machine import check_machine
from rlkit.run.prepare import Task, prepare
from rlkit.watch.stream import Lasting

BYTES = {"fp32": 4, "bf16": 2, "fp8": 2, "fp8_weights": 2}
"""Of a parameter of the trainer, by the words of `trainer.dtype`, and of a number of the engine."""
GIB = 2**30


def show(cfg: TrainingRun, *, print_only: bool) -> Task | None:
    """Reads and checks what the run needs; for `--cfg job` and `dry_run=true` it prints the plan and returns None.

    `--cfg job` prints without reading the data; `dry_run=true` reads and checks everything first.
    """
    task = None if print_only else prepare(cfg)
    if task is not None:
        size = task.architecture.size()
        total = size.parameters + size.mtp_parameters
        check_machine(cfg, weights=total, trained=lora_parameters(cfg, task.architecture) or total)
        if not cfg.dry_run:
            return task
        # A run that starts does these when it opens its folder.
        check_free(cfg.output_dir)
        check_same(cfg)
        newest_checkpoint(cfg.output_dir / CHECKPOINTS)
    screen = Lasting(sys.stdout)
    print(to_yaml(cfg), file=screen)
    width = max(len(label) for label, _ in derived(cfg, task))
    for label, value in derived(cfg, task):
        print(f"{label:<{width}}  {value}", file=screen)
    end = "" if task is None else "; the data, the model and the reward are in order"
    print(f"\nnothing was started{end}", file=screen, flush=True)
    return None


def derived(cfg: TrainingRun, task: Task | None) -> list[tuple[str, str]]:
    """Returns labels and values of everything that follows from the configuration."""
    if task is not None:
        architecture = task.architecture
    elif cfg.model.path:
        architecture = read_architecture(Path(cfg.model.path), cfg.model.kind)
    else:
        assert cfg.model.architecture is not None, "ModelConfig refuses this"
        architecture = DeepseekArchitecture(config=cfg.model.architecture)
    size = architecture.size()
    total, extra = size.parameters, size.mtp_parameters
    per_token = architecture.num_hidden_layers * size.cache_numbers * BYTES[cfg.engine.dtype]
    rows = [
        (
            "parameters",
            f"{total:,}, of which {size.active_parameters:,} work on each token"
            + (f"; plus {extra:,} in MTP" if extra else ""),
        ),
        (
            size.cache_name,
            f"{size.cache_numbers} numbers per token and layer, {per_token:,} bytes per token in {cfg.engine.dtype}",
        ),
    ]
    trained = lora_parameters(cfg, architecture)
    if trained != 0:
        rows.append(("LoRA", f"{trained:,} parameters are trained, {trained / total:.2%} as many as there are"))
    if cfg.trainer.dtype in FLOAT8:
        rows.append(("FP8", architecture.float8_summary()))
    rows += cfg.amounts(len(task.prompts) if task else None, len(task.demonstrations) if task else None)
    if task is not None:
        longest = max(len(prompt.tokens) for prompt in (*task.prompts, *task.held_out))
        counted = f"{len(task.prompts):,} to train on, {len(task.held_out):,} held out; longest {longest}"
        left_out = f"; {task.repeated:,} rows with a question of another row are left out" if task.repeated else ""
        rows.append(("prompts", counted + left_out))
    return rows + _memory(cfg, size, per_token, trained)


def lora_parameters(cfg: TrainingRun, architecture: Architecture) -> int:
    """Counts the parameters of all adapters, 0 without LoRA; raises UserError for a target that is not there."""
    if cfg.trainer.lora is None:
        return 0
    model = architecture.empty_model()
    return count_parameters(model, cfg.trainer.lora.rank, choose_targets(model, cfg.trainer.lora.targets))


def _memory(cfg: TrainingRun, size: Size, per_token: int, adapted: int) -> list[tuple[str, str]]:
    """Adds up the bytes that can be known: weights, gradients, AdamW, cache; not activations, not the runtimes.

    `per_token` is what the cache keeps of a token in bytes, `adapted` the parameters of LoRA, 0 without it.
    """
    trainer, engine, ranks = BYTES[cfg.trainer.dtype], BYTES[cfg.engine.dtype], cfg.trainer.num_ranks
    total = size.parameters + size.mtp_parameters
    trained = adapted or total
    reference = trainer if cfg.needs_reference else 0
    # ZeRO shards fp32 master weights and both moments over the ranks; weights and fp32 gradients are whole.
    # Below LoRA the weights are frozen, and the reference has its own adapters only.
    copies = trained if cfg.trainer.lora else total
    per_rank = total * trainer + copies * reference + trained * (4 + 12 / ranks)
    cache = per_token * cfg.engine.max_model_len * cfg.engine.max_num_seqs
    return [
        ("trainer memory", f"{per_rank / GIB:.3f} GiB a rank for weights, gradients, AdamW and reference"),
        (
            "engine memory",
            f"{total * engine / GIB:.3f} GiB of weights; full {size.cache_name} {cache / GIB:.3f} GiB",
        ),
    ]
