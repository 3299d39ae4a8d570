"""Rows one at a time are the rows that training runs read, in the order of their file."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from rlkit.config import DataConfig
from rlkit.data.rows import read_rows
from rlkit.data.streams import stream_questions, stream_rows
from rlkit.errors import UserError

Config = Callable[..., DataConfig]
ROWS = [{"question": f"What is {i} + 1?", "answer": i + 1, "note": None if i % 2 else "\u2028x"} for i in range(25)]


def write(file: Path, rows: list[dict[str, Any]]) -> Path:
    """Writes rows as the name of the file says."""
    lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    match file.name.split(".", 1)[1]:
        case "jsonl":
            file.write_text("\ufeff" + lines + "\n")
        case "jsonl.gz":
            file.write_bytes(gzip.compress(lines.encode()))
        case "json":
            file.write_text(json.dumps(rows, indent=1))
        case "parquet":
            pq.write_table(pa.Table.from_pylist(rows), file, row_group_size=10)
    return file


@pytest.mark.parametrize("name", ["q.jsonl", "q.jsonl.gz", "q.json", "q.parquet"])
def test_a_stream_has_the_rows_of_a_training_run(name: str, tmp_path: Path, config: Config) -> None:
    file = write(tmp_path / name, ROWS)
    cfg = config(source=str(file), train_size=-1, eval_size=1)
    streamed = list(stream_rows(cfg))
    assert [row.id for row in streamed] == [f"q/train/{i}" for i in range(25)]
    split = read_rows(cfg)
    assert sorted(streamed, key=lambda row: row.id) == sorted([*split.train, *split.held_out], key=lambda row: row.id)
    assert streamed[3].answer == "4" and streamed[2].meta["note"] == "\u2028x"
    assert len(list(stream_rows(config(source=str(file), train_size=7)))) == 7


def test_a_folder_of_parquet_files_is_one_source(tmp_path: Path, config: Config) -> None:
    (tmp_path / "set").mkdir()
    for part in (1, 0):
        write(tmp_path / "set" / f"train-0000{part}-of-00002.parquet", ROWS[part * 10 : part * 10 + 10])
    cfg = config(source=str(tmp_path / "set"), train_size=-1, eval_size=2)
    streamed = list(stream_rows(cfg))
    assert [row.id for row in streamed] == [f"set/train/{i}" for i in range(20)]
    assert streamed[10].question == ROWS[10]["question"]
    split = read_rows(cfg)
    assert {row.id for row in (*split.train, *split.held_out)} == {row.id for row in streamed}


def test_a_stream_reads_no_further_than_it_is_asked(tmp_path: Path, config: Config) -> None:
    file = write(tmp_path / "q.jsonl", ROWS[:3])
    file.write_text(file.read_text() + "no JSON\n")
    cfg = config(source=str(file), train_size=-1)
    assert len(list(islice(stream_rows(cfg), 3))) == 3
    with pytest.raises(UserError, match=r"data.source='.*q.jsonl' cannot be read: line 5 is not JSON"):
        list(stream_rows(cfg))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"question": "a", "answer": "1"}\n[1]\n', "line 2 is not an object"),
        ('{"question": "a", "answer": "1"}\n{"question": "b"}\n', "row 'q/train/1' has no such column"),
        ("[1]", "entry 1 is not an object"),
    ],
)
def test_bad_lines_are_named(text: str, message: str, tmp_path: Path, config: Config) -> None:
    (tmp_path / "q.jsonl").write_text(text)
    with pytest.raises(UserError, match=message):
        list(stream_rows(config(source=str(tmp_path / "q.jsonl"), train_size=-1)))


def test_a_broken_parquet_file_is_named(tmp_path: Path, config: Config) -> None:
    (tmp_path / "q.parquet").write_bytes(b"PAR1 and nothing else")
    with pytest.raises(UserError, match=r"data.source='.*q.parquet' cannot be read"):
        list(stream_rows(config(source=str(tmp_path / "q.parquet"), train_size=-1)))


def test_generated_rows_stream_too_and_need_a_number(config: Config) -> None:
    assert [row.id for row in stream_rows(config(train_size=5))] == [f"chain_sum/{i}" for i in range(5)]
    with pytest.raises(UserError, match="reasoning_gym has no end; give a number of rows"):
        list(stream_rows(config(train_size=-1)))


def test_a_test_set_is_its_own_test_split_or_all_of_it(tmp_path: Path, config: Config) -> None:
    assert len(list(stream_questions("gsm8k", config(), "question", "cleaning.tests"))) == 1319
    file = write(tmp_path / "own.jsonl", [{"problem": "a b", "answer": 1}, {"problem": "c d"}])
    found = list(stream_questions(str(file), config(), "problem", "cleaning.tests"))
    assert found == [("own/train/0", "a b"), ("own/train/1", "c d")], "a test question needs no answer"
    with pytest.raises(UserError, match=r"cleaning.tests='reasoning_gym' has no end"):
        list(stream_questions("reasoning_gym", config(), "question", "cleaning.tests"))
    with pytest.raises(UserError, match=r"cleaning.tests='.*none.jsonl': no such file"):
        list(stream_questions(str(tmp_path / "none.jsonl"), config(), "question", "cleaning.tests"))
