"""The table of the stages: what stands in a cell, and that cells stand below each other."""

from __future__ import annotations

from typing import Any

import pytest

from rlkit.multistage.table import HEAD, cells_of, table
from tests.multistage.written import row

NUM_TIME = HEAD.index("time")


@pytest.mark.parametrize(
    ("values", "cells"),
    [
        ({}, ("rl", "grpo", "", "", "", "0", "0:00")),
        ({"before": 0.25, "after": 0.5}, ("rl", "grpo", "25.0%", "-> 50.0%", "", "0", "0:00")),
        ({"before": 0.0, "after": 0.0}, ("rl", "grpo", "0.0%", "-> 0.0%", "", "0", "0:00")),
        ({"after": 1.0}, ("rl", "grpo", "", "100.0%", "", "0", "0:00")),
        ({"rows": 0}, ("rl", "grpo", "", "", "0", "0", "0:00")),
        ({"rows": 600_000, "tokens": 12_345_678}, ("rl", "grpo", "", "", "600,000", "12,345,678", "0:00")),
    ],
)
def test_numbers_as_people_read_them(values: dict[str, Any], cells: tuple[str, ...]) -> None:
    """Nought is a number, and what was not measured is empty."""
    assert cells_of(row(**values)) == cells and len(cells) == len(HEAD)


@pytest.mark.parametrize(
    ("seconds", "time"),
    [
        (0.4, "0:00"),
        (59.4, "0:59"),
        (59.6, "1:00"),
        (61, "1:01"),
        (3599.4, "59:59"),
        (3599.7, "1:00:00"),
        (3661, "1:01:01"),
        (360_000, "100:00:00"),
    ],
)
def test_times(seconds: float, time: str) -> None:
    assert cells_of(row(seconds=seconds))[NUM_TIME] == time


def test_the_whole_table() -> None:
    """276,000 + 1,000,000 tokens; 61 + 3,600 seconds are 1:01:01."""
    rows = [
        row(stage="cold_start", recipe="sft", after=0.525, tokens=276_000, seconds=61.0),
        row(stage="data", recipe="distill_generate", rows=800),
        row(stage="rl", before=0.525, after=0.75, tokens=1_000_000, seconds=3600.0),
    ]
    head, *body = table(rows).splitlines()
    assert head.split() == ["stage", "recipe", "accuracy", "rows", "tokens", "time"]
    assert [line.split() for line in body] == [
        ["cold_start", "sft", "52.5%", "276,000", "1:01"],
        ["data", "distill_generate", "800", "0", "0:00"],
        ["rl", "grpo", "52.5%", "->", "75.0%", "1,000,000", "1:00:00"],
        ["all", "1,276,000", "1:01:01"],
    ]
    assert len({len(line) for line in (head, *body)}) == 1, "the last column ends at one place"
    ends = {name: head.index(name) + len(name) for name in ("rows", "tokens", "accuracy")}
    assert body[1][: ends["rows"]].endswith(" 800") and body[2][: ends["tokens"]].endswith(" 1,000,000")
    assert body[2][: ends["accuracy"]].endswith(" 52.5%")
    start = head.index("recipe")
    assert [line[start - 1 : start + 3] for line in body] == [" sft", " dis", " grp", "    "]


def test_a_table_of_one_stage_has_its_sum() -> None:
    lines = table([row(tokens=5, seconds=1.0)]).splitlines()
    assert len(lines) == 3 and lines[-1].split() == ["all", "5", "0:01"]
