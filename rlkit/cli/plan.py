"""`rlkit plan RECIPE key=value ... [--json]`: what a run would need. Nothing is started or written."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from rlkit.checks import suggestion
from rlkit.config import ExtendContextRun, TrainingRun
from rlkit.config.compose import load_config
from rlkit.errors import UserError
from rlkit.extend_context import stage_sizes
from rlkit.model.architecture import Architecture
from rlkit.model.deepseek_architecture import DeepseekArchitecture
from rlkit.model.load import read_architecture
from rlkit.plan.numbers import as_values
from rlkit.plan.plan import make_plan
from rlkit.plan.recipes import RECIPES
from rlkit.plan.settings import read_settings
from rlkit.plan.table import lines

USAGE = """usage: rlkit plan RECIPE [key=value ...] [--json]

  RECIPE      sft, grpo, sft_then_grpo, extend_context (its longest stage); a recipe of your own is planned as the one
              of these that has its stages, with its settings as key=value
  key=value   any key of the recipe's configuration, and of the plan:
                hardware=h100|h800|h200|h20|b200|this   gpus=N or nodes=N   price=2
                expert_parallel=E  pipeline_stages=P  zero_stage=1|2|3  offload=optimizer|all  recompute=true
                trainer_dtype=fp8  engine_dtype=fp8
                engine_gpus=N  tensor_parallel=K
                engine_experts=true  redundant_experts=R  shared_is_routed=true
                prompt_tokens=N  completion_tokens=N   (averages)
                deployment=v3_prefill|v3_decode|v3_training   cost=v3|r1   rehearse=true
  --json      the same numbers for programs; bytes and seconds, every rank of a rehearsal"""


def main(argv: Sequence[str]) -> None:
    """Prints the plan; raises UserError for unknown names and for layouts that do not divide."""
    if not argv or argv[0] in ("-h", "--help") or "--help" in argv:
        print(USAGE)
        return
    recipe, *words = argv
    if recipe not in RECIPES:
        known = ", ".join(RECIPES)
        raise UserError(f"recipe {recipe!r} cannot be planned{suggestion(recipe, list(RECIPES))}; use one of {known}")
    flags = [word for word in words if word.startswith("--")]
    if odd := [flag for flag in flags if flag != "--json"]:
        raise UserError(f"{odd[0]} is no flag of 'rlkit plan'; there are --json and --help\n\n{USAGE}")
    settings, overrides = read_settings([word for word in words if word not in flags])
    cfg = load_config(recipe, RECIPES[recipe], overrides)
    if isinstance(cfg, ExtendContextRun):
        cfg = stage_sizes(cfg, len(cfg.stages) - 1)
    plan = make_plan(cfg, _architecture(cfg), settings)
    print(json.dumps(as_values(plan), indent=1) if flags else "\n".join(lines(plan)))


def _architecture(cfg: TrainingRun) -> Architecture:
    if cfg.model.path:
        return read_architecture(Path(cfg.model.path), cfg.model.kind)
    assert cfg.model.architecture is not None, "ModelConfig refuses this"
    return DeepseekArchitecture(config=cfg.model.architecture)
