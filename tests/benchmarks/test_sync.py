"""The meter of a sync sees memory, and no process of a sync takes much of it."""

from __future__ import annotations

import os
from pathlib import Path
from time import monotonic

import pytest
import torch

from benchmarks import sync

SECONDS = ((0.1, 0.5, 9), (0.3, 0.4, 0.3), (0.2, 0.6, 0.35))


def test_the_meter_sees_what_a_process_takes_and_gives_back_at_once() -> None:
    with sync.watched({"this": os.getpid()}) as growth:
        taken = torch.ones(2**25)  # 128 MiB
        end = monotonic() + 60
        while growth["this"] < 2**27 and monotonic() < end:
            del taken
            taken = torch.ones(2**25)
    assert 2**27 <= growth["this"] < 2**28


def test_the_meter_does_not_count_what_all_processes_share(tmp_path: Path) -> None:
    with sync.watched({"this": os.getpid()}) as growth:
        shared = torch.from_file(str(tmp_path / "memory"), shared=True, size=2**27, dtype=torch.uint8).fill_(1)
    assert growth["this"] < 2**26 and int(shared.sum(dtype=torch.int64)) == 2**27


def test_a_report_has_one_row_with_all_numbers() -> None:
    found = sync.Found(
        num_bytes=2_000_000,
        syncs=tuple(
            sync.Sync(publish=p, load=s, cpu=c) for p, s, c in ((0.1, 0.5, 9), (0.3, 0.4, 0.3), (0.2, 0.6, 0.35))
        ),
        growth={"driver": 0, "rank 0": 1_500_000},
    )
    heads, _, row = sync.report("tiny", "torch", found).splitlines()
    assert heads.count("|") == row.count("|") and "| driver + MB | rank 0 + MB |" in heads
    assert row == "| tiny | torch | 2.0 | 0.200 | 0.500 | 0.350 | 0.600 | **0.700** | 0.800 | 0.0 | 1.5 |"


@pytest.mark.slow
def test_no_process_grows_by_a_quarter_of_the_model(tmp_path: Path) -> None:
    """Of 200 MB, which are four buckets: a copy of one bucket would be seen in a rank and in the engine."""
    found = sync.measure("200 MB", "torch", 2, tmp_path)
    assert found.num_bytes > 200e6
    assert found.growth.keys() == {"driver", "rank 0", "rank 1", "engine"}
    assert all(growth < found.num_bytes / 4 for growth in found.growth.values()), found.growth
