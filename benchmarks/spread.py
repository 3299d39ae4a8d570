"""The reward of the benchmarks, for rlkit and for TRL alike: it differs between almost any two completions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


def spread(prompts: Sequence[str], completions: Sequence[str], **columns: Any) -> list[float]:
    """Sum of the completion's bytes, modulo 97, as a number in [0, 1): no group of a random model is flat."""
    return [sum(completion.encode()) % 97 / 97 for completion in completions]
