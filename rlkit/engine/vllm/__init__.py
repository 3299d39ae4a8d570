"""vLLM behind the Engine protocol; the only package that imports vllm."""

from __future__ import annotations

from rlkit.engine.vllm.engine import VllmEngine
from rlkit.engine.vllm.start import import_vllm

__all__ = ["VllmEngine", "import_vllm"]
