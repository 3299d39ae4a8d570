"""Which stages a pipeline has, with which recipe, and what each takes from which; held by hand."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType

import pytest

from recipes import distill, r1, r1_zero, v3_post
from rlkit.multistage.stage import Links, Made, Recipe, recipe_name

STORIES: dict[str, tuple[ModuleType, dict[str, tuple[str, dict[str, str]]]]] = {
    "r1_zero": (
        r1_zero,
        {
            "base": ("sft", {}),
            "rl": ("grpo", {"model.path": "base/model"}),
        },
    ),
    "r1": (
        r1,
        {
            "base": ("sft", {}),
            "cold_start": ("sft", {"model.path": "base/model"}),
            "reasoning_rl": ("grpo", {"model.path": "cold_start/model"}),
            "rejection_sampling": ("distill_generate", {"model.path": "reasoning_rl/model"}),
            "sft_again": ("sft", {"model.path": "base/model", "kept": "rejection_sampling/dataset"}),
            "preferences": ("distill_generate", {"model.path": "sft_again/model"}),
            "reward_model": (
                "reward_model",
                {"model.path": "sft_again/model", "data.source": "preferences/preferences"},
            ),
            "all_scenarios_rl": ("grpo", {"model.path": "sft_again/model", "scorer": "reward_model/model"}),
        },
    ),
    "v3_post": (
        v3_post,
        {
            "base": ("sft", {}),
            "expert_sft": ("sft", {"model.path": "base/model"}),
            "expert_rl": ("grpo", {"model.path": "expert_sft/model"}),
            "rejection_sampling": ("distill_generate", {"model.path": "expert_rl/model"}),
            "general_sft": ("sft", {"model.path": "base/model", "kept": "rejection_sampling/dataset"}),
            "preferences": ("distill_generate", {"model.path": "general_sft/model"}),
            "reward_model": (
                "reward_model",
                {"model.path": "general_sft/model", "data.source": "preferences/preferences"},
            ),
            "rl": ("grpo", {"model.path": "general_sft/model", "scorer": "reward_model/model"}),
        },
    ),
    "distill": (
        distill,
        {
            "base": ("sft", {}),
            "generate": ("distill_generate", {"model.path": "base/model"}),
            "student": ("sft", {"kept": "generate/dataset"}),
        },
    ),
}


class Written:
    """Writes the stages down."""

    def __init__(self) -> None:
        self.stages: dict[str, tuple[str, dict[str, str]]] = {}

    def base(self, recipe: Recipe) -> Made:
        return self.run("base", recipe, {})

    def run(self, name: str, recipe: Recipe, links: Links) -> Made:
        self.stages[name] = (recipe_name(recipe), {link: str(path) for link, path in links.items()})
        return Made(folder=Path(name))


@pytest.mark.parametrize("pipeline", STORIES)
def test_what_every_stage_starts_from(pipeline: str) -> None:
    module, stages = STORIES[pipeline]
    written = Written()
    module.story(written)
    assert list(written.stages.items()) == list(stages.items())
