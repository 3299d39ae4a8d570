from __future__ import annotations

from dataclasses import fields
from pathlib import Path

import pytest
import yaml

from rlkit.config import DataConfig
from rlkit.data.rows import read_rows

FILES = sorted((Path(__file__).parents[2] / "configs" / "data").glob("*.yaml"))


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_every_file_sets_every_key_and_no_other(path: Path) -> None:
    assert list(yaml.safe_load(path.read_text())) == [field.name for field in fields(DataConfig)]


@pytest.mark.slow
@pytest.mark.parametrize(("name", "sizes"), [("chain_sum", (20_000, 256)), ("gsm8k", (7473, 1319))])
def test_what_needs_no_network_reads_as_shipped(name: str, sizes: tuple[int, int]) -> None:
    [path] = [path for path in FILES if path.stem == name]
    split = read_rows(DataConfig(**yaml.safe_load(path.read_text())))
    assert (len(split.train), len(split.held_out)) == sizes
    assert all(row.solution and row.answer for row in split.train)
