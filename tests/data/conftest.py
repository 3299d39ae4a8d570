from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from rlkit.config import DataConfig

SHARED = Path(__file__).resolve().parents[3] / "shared" / "data"
TINY_SUMS = {"chain_sum": {"min_terms": 3, "max_terms": 4, "min_digits": 1, "max_digits": 2, "bare": True}}


@pytest.fixture
def config() -> Callable[..., DataConfig]:
    """A DataConfig of 40 + 8 bare sums; keyword arguments replace its fields."""

    def make(**fields: object) -> DataConfig:
        defaults = {
            "source": "reasoning_gym",
            "eval_source": "",
            "train_size": 40,
            "eval_size": 8,
            "tasks": TINY_SUMS,
            "prompt_column": "question",
            "answer_column": "answer",
            "solution_column": "",
            "instruction": "",
            "seed": 0,
        }
        return DataConfig(**(defaults | fields))  # pyright: ignore[reportArgumentType]

    return make


@pytest.fixture
def shared() -> Path:
    """Folder of public data sets that stands beside the checkout on some machines."""
    if not SHARED.is_dir():
        pytest.skip(f"no folder of data sets at {SHARED}")
    return SHARED
