"""The comparison of precisions does the same steps in each, and its ratios are those of one turn."""

from __future__ import annotations

from dataclasses import replace

import pytest

from benchmarks import fp8
from tests.model.float8 import TILED
from tests.train.test_trainer import CFG


def test_ratios_are_taken_turn_by_turn() -> None:
    """The machine is twice as slow in the second turn; the ratios do not show it."""
    found = fp8.report({"bf16": [1.0, 2.0, 1.0], "fp8": [3.0, 6.0, 5.0]})
    assert found.splitlines()[2:] == [
        "| bf16 | 1.00 | **1.00** | 2.00 | 1.00 |",
        "| fp8 | 3.00 | **5.00** | 6.00 | 3.00 |",
    ]


def test_a_batch_is_one_pack() -> None:
    [pack] = fp8.batch_of(4, 10, 64).packs
    assert pack.lengths == (10,) * 4 and len(pack.tokens_T) == 40 and int((pack.weights_T > 0).sum()) == 20


@pytest.mark.slow
def test_a_small_comparison_runs() -> None:
    found = fp8.compare(replace(CFG, kind="deepspeed"), TILED, fp8.batch_of(2, 8, TILED.vocab_size), steps=2)
    assert tuple(found) == fp8.DTYPES and all(len(taken) == 2 and min(taken) > 0 for taken in found.values())
    assert fp8.report(found).count("\n") == 1 + len(fp8.DTYPES)
