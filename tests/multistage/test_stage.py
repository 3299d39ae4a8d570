"""Where a stage leaves what later stages start from."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType

import pytest

from recipes import grpo, sft
from rlkit.multistage.stage import Made, recipe_name


def test_what_a_stage_made_lies_in_its_folder() -> None:
    made = Made(folder=Path("out/2-cold_start"))
    assert made.model == Path("out/2-cold_start/model") and made.dataset == Path("out/2-cold_start/dataset")


def test_a_model_that_nobody_trains_stands_where_it_stood() -> None:
    made = Made(folder=Path("out"), origin=Path("models/base"))
    assert made.model == Path("models/base"), "no folder below it is meant"
    assert made.dataset == Path("out/dataset")


@pytest.mark.parametrize(
    ("module", "name"), [("recipes.grpo", "grpo"), ("mine.recipes.own_rl", "own_rl"), ("alone", "alone")]
)
def test_a_recipe_is_called_by_the_last_part_of_its_module(module: str, name: str) -> None:
    assert recipe_name(ModuleType(module)) == name  # pyright: ignore[reportArgumentType]


def test_recipes_of_rlkit_are_called_as_the_command_line_has_them() -> None:
    assert [recipe_name(recipe) for recipe in (sft, grpo)] == ["sft", "grpo"]
