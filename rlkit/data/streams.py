"""Rows one at a time, in the order of their source: for jobs whose data need not fit into memory.

Lines of JSON and parquet files are read piece by piece. Other sources are read whole first, as training runs read them.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Iterator
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rlkit.data.reading import line_rows, open_text, parquet_rows
from rlkit.data.rows import Row, held_out_split, row_of, train_split
from rlkit.data.sources import NAMED, Source, files_of, open_source
from rlkit.errors import UserError

if TYPE_CHECKING:
    from rlkit.config import DataConfig


def stream_rows(cfg: DataConfig) -> Iterator[Row]:
    """Yields the first `data.train_size` rows of `data.source`, or all, with repeated questions among them.

    Raises UserError naming the key, the value and the fix, as `read_rows` does; for a row, when it is reached.
    """
    source = _open(cfg.source, cfg, "data.source")
    if source.endless and cfg.train_size < 0:
        raise UserError(f"data.train_size={cfg.train_size}: reasoning_gym has no end; give a number of rows")
    split = train_split(source, cfg.source, "data.source")
    records = source.splits[split]
    yield from (
        row_of(id, record, source) for id, record in islice(records, None if cfg.train_size < 0 else cfg.train_size)
    )


def stream_questions(source: str, cfg: DataConfig, column: str, key: str) -> Iterator[tuple[str, str]]:
    """Yields (id, question) of a test set: its own test split, else all of it; `column` is that of a file or hub id."""
    opened = _open(source, replace(cfg, prompt_column=column, answer_column="", solution_column=""), key)
    if opened.endless:
        raise UserError(f"{key}={source!r} has no end, and is no test set; name another one, or take it out")
    plain = replace(opened, answer="", solution="")
    split = held_out_split(opened) or train_split(opened, source, key)
    for id, record in opened.splits[split]:
        yield id, row_of(id, record, plain).question


def _open(source: str, cfg: DataConfig, key: str) -> Source:
    files = [] if source in NAMED else files_of(source)
    if not files or not all(_is_lines(file) or file.suffix == ".parquet" for file in files):
        return open_source(source, cfg, key)
    name = Path(source).name.split(".")[0]
    records = ((f"{name}/train/{index}", record) for index, record in enumerate(_records(files, key)))
    return Source(
        splits={"train": records}, question=cfg.prompt_column, answer=cfg.answer_column, solution=cfg.solution_column
    )


def _is_lines(file: Path) -> bool:
    """Says whether a file has a JSON object in each line; a list, whatever the file's ending says, has not."""
    if not file.name.removesuffix(".gz").endswith((".jsonl", ".json")):
        return False
    try:
        with open_text(file) as stream:
            line = next((line for line in stream if line.strip()), "")
        return isinstance(json.loads(line), dict)
    except (OSError, EOFError, zlib.error, ValueError):
        return False


def _records(files: list[Path], key: str) -> Iterator[dict[str, Any]]:
    for file in files:
        try:
            if file.suffix == ".parquet":
                yield from parquet_rows(file)
            else:
                with open_text(file) as lines:
                    yield from line_rows(lines)
        except (OSError, EOFError, zlib.error, ValueError) as error:
            if isinstance(error, UserError):
                raise
            raise UserError(f"{key}={str(file)!r} cannot be read: {error}; repair or replace the file") from error
