"""The comparison of layouts gives each the same threads, and adds up."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from benchmarks import layouts
from rlkit.model import DeepseekV3


@pytest.mark.parametrize("layout", layouts.LAYOUTS)
@pytest.mark.parametrize("threads", [2, 8])
def test_every_layout_has_all_threads(layout: str, threads: int) -> None:
    cfg = layouts.trainer_config(layout, threads)
    assert cfg.threads * cfg.num_ranks == threads
    assert cfg.dtype == "fp32" and cfg.max_tokens == 2048


def test_the_table_compares_medians_with_one_process() -> None:
    table = layouts.report({"one process": [1.0, 2.0, 9.0], "EP=2, ZeRO-1": [3.0, 3.0, 3.5]})
    assert "| EP=2, ZeRO-1 | 3.00 | **3.00** | 3.50 | 1.50 |" in table.splitlines()


@pytest.mark.slow
def test_ranks_take_the_counted_steps(tmp_path: Path) -> None:
    torch.manual_seed(0)
    DeepseekV3(layouts.MODEL).save_checkpoint(tmp_path / "model", dtype="fp32")
    assert len(layouts.measure(tmp_path / "run", "EP=2, ZeRO-1", steps=2, threads=2)) == 2
