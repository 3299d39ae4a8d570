"""Says what a configuration amounts to, in numbers, before anything starts."""

from __future__ import annotations

import sys
from pathlib import Path

from rlkit.config import TrainingRun
from rlkit.config.compose import to_yaml
from rlkit.data.mixture import Stream
from rlkit.model.architecture import Architecture
from rlkit.model.deepseek_architecture import DeepseekArchitecture
from rlkit.model.load import read_architecture
from rlkit.plan.adapters import adapter_parameters
from rlkit.plan.here import engine_here, trainer_here
from rlkit.plan.orthogonal import orthogonal_parameters
from rlkit.plan.trainer import WIDTH
from rlkit.quant.fp8 import FLOAT8
from rlkit.run.folder import CHECKPOINTS, newest_checkpoint
from rlkit.run.inputs import check_same
from rlkit.run.lock import check_free
from rlkit.run.machine import check_machine, check_memory
from rlkit.run.prepare import Task, prepare
from rlkit.watch.stream import Lasting

GIB = 2**30


def show(cfg: TrainingRun, *, print_only: bool) -> Task | None:
    """Reads and checks what the run needs; for `--cfg job` and `dry_run=true` it prints the plan and returns None.

    `--cfg job` prints without reading the data; `dry_run=true` reads and checks everything first.
    """
    task = None if print_only else prepare(cfg)
    if task is not None:
        cfg = cfg.counted(task.demonstrations.size)
        size = task.architecture.size()
        total = size.parameters + size.mtp_parameters
        trained = adapter_parameters(cfg, task.architecture) or total
        check_machine(cfg, weights=total, trained=trained, orthogonal=orthogonal_parameters(cfg, task.architecture))
        check_memory(cfg, task.architecture)
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
    per_token = architecture.num_hidden_layers * size.cache_numbers * WIDTH[cfg.engine.dtype]
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
    trained = adapter_parameters(cfg, architecture)
    if trained != 0:
        rows.append(("LoRA", f"{trained:,} parameters are trained, {trained / total:.2%} as many as there are"))
    if cfg.trainer.dtype in FLOAT8:
        rows.append(("FP8", architecture.float8_summary()))
    rows += cfg.amounts(len(task.prompts) if task else None, task.demonstrations.size if task else None)
    if task is not None:
        rows += _shown(task)
    if task is not None and task.held_out:
        longest = max(len(prompt.tokens) for prompt in (*task.prompts, *task.held_out))
        counted = f"{len(task.prompts):,} to train on, {len(task.held_out):,} held out; longest {longest}"
        left_out = f"; {task.repeated:,} rows with a question of another row are left out" if task.repeated else ""
        rows.append(("prompts", counted + left_out))
    return rows + _memory(cfg, architecture)


def _shown(task: Task) -> list[tuple[str, str]]:
    """Says what SFT shows of each data set, and what it leaves out."""
    mixture, rows = task.demonstrations, []
    is_mixed = len(mixture.parts) > 1
    for part, share in zip(mixture.parts, mixture.shares, strict=True):
        size = "streamed" if isinstance(part.shown, Stream) else f"{len(part.shown):,} demonstrations"
        words = [f"{part.name}: {size}", f"{share:.1%} of what is shown"] if is_mixed else []
        words += [f"{part.left_out:,} rows do not fit and are left out"] if part.left_out else []
        if part.repeated and (is_mixed or not task.prompts):  # else they are counted as questions, below
            words.append(f"{part.repeated:,} rows that come twice or are held out are left out")
        rows += [("shown", ", ".join(words))] if words else []
    if mixture.held_out:
        rows.append(("held out", f"{len(mixture.held_out):,} demonstrations, whose loss is measured"))
    return rows


def _memory(cfg: TrainingRun, architecture: Architecture) -> list[tuple[str, str]]:
    """Says what is known for certain: weights, gradients, AdamW, cache; `rlkit plan` adds activations and the rest."""
    needs, engine = trainer_here(cfg, architecture).resting, engine_here(cfg, architecture)
    name = architecture.size().cache_name
    return [
        ("trainer memory", f"{needs / GIB:.3f} GiB a rank for weights, gradients, AdamW and reference"),
        ("engine memory", f"{engine.weights / GIB:.3f} GiB of weights; full {name} {engine.cache / GIB:.3f} GiB"),
    ]
