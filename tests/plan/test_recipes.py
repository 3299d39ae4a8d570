"""Which recipe's plan stands for a recipe of the user's own."""

from __future__ import annotations

import pytest

from rlkit.plan.recipes import RECIPES, planned_as
from tests.config import recipes
from tests.config.variants import but, default


def test_every_recipe_that_trains_what_it_samples_can_be_planned() -> None:
    assert dict(RECIPES) == recipes.RECIPES


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_known_recipe_is_planned_as_itself(recipe: str) -> None:
    cfg = default(recipe)
    assert type(cfg) is RECIPES[recipe] and planned_as(cfg) == recipe


@pytest.mark.parametrize("recipe", RECIPES)
def test_ones_own_is_planned_as_that_which_has_its_keys(recipe: str) -> None:
    """A recipe of both SFT and GRPO has the keys of both, and one of several lengths those of SFT besides its own."""
    assert planned_as(but(default(recipe), {"recipe": "mine"})) == recipe


def test_a_name_wins_over_a_class() -> None:
    assert planned_as(but(default("sft_then_grpo"), {"recipe": "grpo"})) == "grpo"


def test_what_samples_nothing_has_no_plan() -> None:
    assert planned_as(default("reward_model")) is None
