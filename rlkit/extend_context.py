"""Longer contexts by YaRN: each stage is an SFT run that starts from the last one's weights with stretched positions.

DeepSeek-V3 goes from 4K to 32K to 128K this way (arXiv:2412.19437, section 4.3).
"""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

from rlkit.config.runs import ExtendContextRun
from rlkit.errors import UserError
from rlkit.model import DeepseekV3Config
from rlkit.model.config import CONFIG, Yarn, read_config


def extended(config: DeepseekV3Config, factor: float) -> DeepseekV3Config:
    """The same model with its original context stretched by `factor`; what YaRN it has already is kept but for that.

    A model without YaRN gets V3's: mscale and mscale_all_dim 1, 32 turns and 1. UserError for a factor below 1.
    """
    yarn = config.rope_scaling
    if yarn is None:
        yarn = Yarn(
            factor=1, original_max_position_embeddings=config.max_position_embeddings, mscale=1.0, mscale_all_dim=1.0
        )
    yarn = replace(yarn, factor=factor)
    return replace(config, rope_scaling=yarn, max_position_embeddings=yarn.reach)


def write_extended(source: Path, target: Path, factor: float) -> None:
    """Makes `target` the checkpoint `source` with its context stretched: a config.json of its own, links to the rest.

    A target that is there already stays as it is. UserError if that was made from another source, or if the source is
    no checkpoint of ours.
    """
    config = DeepseekV3Config.from_folder(source)
    linked = {file.name: file.resolve() for file in source.iterdir() if file.is_file() and file.name != CONFIG}
    if target.exists():
        made_from = {file.name: file.resolve() for file in target.iterdir() if file.is_symlink()}
        if made_from != linked:
            old = next(iter(made_from.values()), target).parent
            raise UserError(f"{target} was made from {old}, and not from {source} as it is now; set another output_dir")
        return
    longer = extended(config, factor).to_hf()
    raw = read_config(source) | {
        key: longer[key] for key in ("max_position_embeddings", "rope_theta", "rope_scaling", "rope_parameters")
    }
    unfinished = target.with_suffix(".tmp")
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir(parents=True)
    for name, file in linked.items():
        (unfinished / name).symlink_to(file)
    (unfinished / CONFIG).write_text(json.dumps(raw, indent=2) + "\n")
    unfinished.rename(target)


def stage_run(cfg: ExtendContextRun, number: int, checkpoint: Path) -> ExtendContextRun:
    """The SFT run of one stage, from a checkpoint that `write_extended` made, in a folder of its own.

    UserError if the stage is longer than the checkpoint's context.
    """
    stage = cfg.stages[number]
    reach = DeepseekV3Config.from_folder(checkpoint).max_position_embeddings
    if stage.length > reach:
        raise UserError(
            f"stages[{number}].length={stage.length}: the original context times stages[{number}].factor="
            f"{stage.factor:g} is {reach} tokens; raise the factor or lower the length"
        )
    return replace(
        stage_sizes(cfg, number),
        output_dir=stage_folder(cfg, number),
        model=replace(cfg.model, path=str(checkpoint)),
        data=replace(cfg.data, source=stage.source or cfg.data.source, tasks=stage.tasks or cfg.data.tasks),
    )


def stage_sizes(cfg: ExtendContextRun, number: int) -> ExtendContextRun:
    """The same run with the lengths of one stage, and as many samples as make the tokens of a step."""
    stage = cfg.stages[number]
    return replace(
        cfg,
        stages=(stage,),
        engine=replace(cfg.engine, max_model_len=stage.length),
        trainer=replace(cfg.trainer, max_tokens=max(cfg.trainer.max_tokens, stage.length)),
        sft=replace(cfg.sft, batch_size=cfg.sft.batch_size * cfg.stages[0].length // stage.length),
    )


def stage_folder(cfg: ExtendContextRun, number: int) -> Path:
    """Where a stage runs: the number of the stage and its length, below the run's own folder."""
    return cfg.output_dir / f"{number + 1}-{cfg.stages[number].length}"
