"""Rows of a file, one at a time and from a place on: lines of JSON, and parquet."""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import IO, Any

import numpy as np

Fields = dict[str, Any]
"""A row of a file: its columns by name."""

BATCH = 1000
"""Rows of a parquet file that are in memory at a time."""


def open_text(file: Path) -> IO[str]:
    """Opens a text of UTF-8, also a packed one (.gz)."""
    # newline="\n": JSON text may hold other characters that Python takes for line ends.
    opened = gzip.open if file.suffix == ".gz" else open
    return opened(file, "rt", encoding="utf-8-sig", newline="\n")


def line_rows(lines: Iterable[str], first: int = 0) -> Iterator[Fields]:
    """Yields the objects in lines of JSON from number `first` on; what is before it is not parsed.

    Raises ValueError naming a line that holds something else.
    """
    # A byte order mark stands in mid-file where files were joined.
    texts = ((number, line.removeprefix("\ufeff").strip()) for number, line in enumerate(lines, start=1))
    for number, text in islice(((number, text) for number, text in texts if text), first, None):
        try:
            row = json.loads(text)
        except ValueError as error:
            raise ValueError(f"line {number} is not JSON ({error})") from error
        yield checked_row(row, f"line {number}")


def checked_row(row: Any, where: str) -> Fields:
    """Returns a row that is an object; raises ValueError for another one."""
    if not isinstance(row, dict):
        raise ValueError(f'{where} is not an object such as {{"question": "...", "answer": "..."}}')
    return row


def parquet_rows(file: Path | IO[bytes], first: int = 0) -> Iterator[Fields]:
    """Yields the rows of a parquet file from number `first` on, reading `BATCH` of them at a time.

    Groups of rows that lie before it are not read. Raises ValueError for a file that is torn.
    """
    import pyarrow
    import pyarrow.parquet

    try:
        with pyarrow.parquet.ParquetFile(file) as opened:
            groups = list(range(opened.num_row_groups))
            while groups and (size := opened.metadata.row_group(groups[0]).num_rows) <= first:
                first -= size
                del groups[0]
            for batch in opened.iter_batches(BATCH, row_groups=groups):
                yield from narrow_floats(batch.slice(first).to_pylist(), batch.schema)
                first = max(0, first - batch.num_rows)
    except pyarrow.ArrowException as error:
        raise ValueError(str(error)) from error


def narrow_floats(rows: Iterable[Fields], schema: Any) -> Iterator[Fields]:
    """Writes the float32 cells of parquet rows with the digits that they have; `schema` is pyarrow's.

    Python's floats show what a float32 cannot hold: its 0.1 would be the gold 0.10000000149011612.
    """
    import pyarrow

    narrow = [field.name for field in schema if pyarrow.types.is_float32(field.type)]
    for row in rows:
        yield row | {name: float(str(np.float32(row[name]))) for name in narrow if row[name] is not None}
