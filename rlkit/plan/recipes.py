"""Which recipes can be planned, and as which of them a recipe of the user's own can."""

from __future__ import annotations

from collections.abc import Mapping

from rlkit.config import ExtendContextRun, GrpoRun, LearningRun, SftRun, SftThenGrpoRun, TrainingRun

RECIPES: Mapping[str, type[TrainingRun]] = {
    "sft": SftRun,
    "grpo": GrpoRun,
    "sft_then_grpo": SftThenGrpoRun,
    "extend_context": ExtendContextRun,
}


def planned_as(cfg: LearningRun) -> str | None:
    """Returns the recipe that has the keys of this one; None where none has."""
    if cfg.recipe in RECIPES:
        return cfg.recipe
    if isinstance(cfg, ExtendContextRun):
        return "extend_context"
    if isinstance(cfg, GrpoRun):
        return "sft_then_grpo" if isinstance(cfg, SftRun) else "grpo"
    return "sft" if isinstance(cfg, SftRun) else None
