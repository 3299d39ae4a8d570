"""Rewards: plain functions that judge a completion, found by name, import path or file. Standard library only."""

from __future__ import annotations

from rewards.base import Reward, RewardError, RewardFunction, Sample
from rewards.registry import load, names

__all__ = ["Reward", "RewardError", "RewardFunction", "Sample", "load", "names"]
