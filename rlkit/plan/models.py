"""Which models a plan can cut: ours, whose tensors it knows by name."""

from __future__ import annotations

from rlkit.model.architecture import Architecture
from rlkit.model.config import DeepseekV3Config
from rlkit.model.deepseek_architecture import DeepseekArchitecture


def config_of(architecture: Architecture) -> DeepseekV3Config | None:
    """Returns the config of a DeepSeek of our own class; None for a model of transformers."""
    return architecture.config if isinstance(architecture, DeepseekArchitecture) else None
