"""DeepSeek-V3, one idea per file."""

from __future__ import annotations

from rlkit.model.config import DeepseekV3Config
from rlkit.model.deepseek import DeepseekV3

__all__ = ["DeepseekV3", "DeepseekV3Config"]
