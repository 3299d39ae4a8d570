"""The run class of every recipe that rlkit has."""

from __future__ import annotations

from rlkit.config import ExtendContextRun, GrpoRun, RunConfig, SftRun, SftThenGrpoRun

RECIPES: dict[str, type[RunConfig]] = {
    "sft": SftRun,
    "grpo": GrpoRun,
    "sft_then_grpo": SftThenGrpoRun,
    "extend_context": ExtendContextRun,
}
