"""Rewards: functions that judge a completion, found by name, import path or file. Standard library only."""

from __future__ import annotations

from rewards.base import Reward, RewardError, Sample
from rewards.function import RewardFunction
from rewards.registry import from_openrlhf, from_trl, from_verl, load, names

__all__ = [
    "Reward",
    "RewardError",
    "RewardFunction",
    "Sample",
    "from_openrlhf",
    "from_trl",
    "from_verl",
    "load",
    "names",
]
