"""A recipe's configuration with some keys changed, without composing its files again: that takes a second."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import cache
from typing import Any, TypeVar

from rlkit.config import BaseRun, DistillRun, EvalRun, OnPolicyDistillRun
from rlkit.config.compose import load_config
from rlkit.config.reward_model import RewardModelRun
from tests.config.recipes import RECIPES

CLASSES: dict[str, type[BaseRun]] = RECIPES | {
    "distill_generate": DistillRun,
    "eval": EvalRun,
    "reward_model": RewardModelRun,
    "on_policy_distill": OnPolicyDistillRun,
}
NEEDED = {
    "distill_generate": ["model.path=teacher"],
    "eval": ["model.path=somewhere", "suite=gsm8k"],
    "reward_model": ["model.path=somewhere"],
    "on_policy_distill": ["model.path=somewhere", "teacher.path=somewhere"],
}
T = TypeVar("T")


@cache
def default(recipe: str) -> Any:
    """What the files say."""
    return load_config(recipe, CLASSES[recipe], NEEDED.get(recipe, []))


def but(part: T, changes: Mapping[str, Any]) -> T:
    """The same with other values under some dotted keys; all keys of a group change together."""
    own = {key: value for key, value in changes.items() if "." not in key}
    for group in {key.partition(".")[0] for key in changes if "." in key}:
        inner = {key.partition(".")[2]: value for key, value in changes.items() if key.startswith(f"{group}.")}
        own[group] = but(own.get(group, getattr(part, group)), inner)
    return replace(part, **own)  # pyright: ignore[reportArgumentType, reportCallIssue, reportReturnType]
