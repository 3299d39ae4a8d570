"""Text of cells by their type, on its own and through the files that hold them."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from contextlib import closing
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from pathlib import Path
from uuid import UUID

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest

from rewards import Sample, load
from rlkit.config import DataConfig
from rlkit.data.cells import Template, cell_text, is_missing
from rlkit.data.rows import read_rows

Config = Callable[..., DataConfig]
PARTS = [{"type": "text", "text": "How much is "}, {"type": "text", "text": "3 + 4?"}]


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("4.50", "4.50"),
        ("", ""),
        (np.str_("x"), "x"),
        (4, "4"),
        (-(10**30), "-1" + "0" * 30),
        (0.1, "0.1"),
        (1e-7, "1e-07"),
        (True, "true"),
        (np.bool_(False), "false"),
        (np.int64(-3), "-3"),
        (np.float64(0.25), "0.25"),
        (np.float32(0.1), "0.1"),
        (Decimal("4.50"), "4.50"),
        (Decimal("1E+3"), "1000"),
        (Decimal("-0.007"), "-0.007"),
        (b"4", "4"),
        ("\u00fc".encode(), "\u00fc"),
        (bytearray(b"x"), "x"),
        (memoryview(b"y"), "y"),
        (date(2024, 2, 29), "2024-02-29"),
        (datetime(2024, 2, 29, 12, 30), "2024-02-29T12:30:00"),
        (time(12, 30), "12:30:00"),
        (np.datetime64("2024-02-29"), "2024-02-29"),
        (UUID(int=1), "00000000-0000-0000-0000-000000000001"),
        (PARTS, "How much is 3 + 4?"),
        (["4", None, Decimal("1.5"), b"x"], '["4", null, "1.5", "x"]'),
        ((1, 2), "[1, 2]"),
        (np.array([1.5, math.nan]), "[1.5, null]"),
        ({"b": [True, np.int32(2)], "d": date(2024, 1, 1)}, '{"b": [true, 2], "d": "2024-01-01"}'),
    ],
)
def test_text_by_type(value: object, text: str) -> None:
    assert cell_text(value) == text and not is_missing(value)


@pytest.mark.parametrize(
    "value", [None, math.nan, np.float32("nan"), np.float64("nan"), Decimal("NaN"), np.datetime64("NaT")]
)
def test_what_is_missing(value: object) -> None:
    assert is_missing(value)
    with pytest.raises(TypeError, match=r"^no value$"):
        cell_text(value)


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (math.inf, "inf, which is not a number to write down"),
        (Decimal("-Infinity"), "which is not a number to write down"),
        ([1, math.inf], "which is not a number to write down"),
        (b"\xff\xfe", "bytes that are not text in UTF-8"),
        (timedelta(days=1), "a timedelta, which has no one text"),
        ({1, 2}, "a set, which has no one text"),
        (1 + 2j, "a complex, which has no one text"),
        (object(), "a object, which has no one text"),
    ],
)
def test_the_rest_is_refused(value: object, words: str) -> None:
    with pytest.raises(TypeError, match=words):
        cell_text(value)


RECORD = {
    "choices": ["red", "blue"],
    "meta": {"level": 2, "tags": ["a", "b"]},
    "price": Decimal("4.50"),
    "text": "hi",
    "x.y": 8,
    "none": None,
    "nan": math.nan,
    "parts": PARTS,
    "table": np.array([[1, 2], [3, 4]]),
}


@pytest.mark.parametrize(
    ("template", "text"),
    [
        ("{choices[0]} or {choices[1]}", "red or blue"),
        ("{choices[-1]}", "blue"),
        ("{choices}", "red\nblue"),
        ("{meta[level]}/{meta[tags][1]}", "2/b"),
        ("{meta}", '{"level": 2, "tags": ["a", "b"]}'),
        ("{price} {price:.1f} {price:>6}", "4.50 4.5   4.50"),
        ("{x.y} {{x}} {text!r}", "8 {x} 'hi'"),
        ("{parts}", "How much is 3 + 4?"),
        ("{table[1][0]}", "3"),
        ("{table}", "[1, 2]\n[3, 4]"),
    ],
)
def test_templates_look_into_cells(template: str, text: str) -> None:
    assert Template().fill(template, RECORD) == text


@pytest.mark.parametrize(
    ("template", "error"),
    [
        ("{none}", KeyError), ("{nan}", KeyError), ("{gone}", KeyError), ("{}", ValueError), ("{0}", ValueError),
        ("{text[0]}", TypeError), ("{choices[5]}", IndexError), ("{choices[a]}", ValueError),
        ("{meta[gone]}", ValueError), ("{text.upper}", ValueError), ("{text", ValueError), ("{price[0]}", TypeError),
    ],
)  # fmt: skip
def test_templates_that_cannot_be_filled(template: str, error: type[Exception]) -> None:
    with pytest.raises(error):
        Template().fill(template, RECORD)


def parquet(path: Path, **columns: pyarrow.Array) -> str:
    pyarrow.parquet.write_table(pyarrow.table({"question": [f"q{i}" for i in range(3)], **columns}), path)
    return str(path)


@pytest.mark.parametrize(
    ("column", "answers"),
    [
        (pyarrow.array([Decimal("4.50"), Decimal("0.25"), Decimal("-1.00")]), {"4.50", "0.25", "-1.00"}),
        (pyarrow.array([b"4", b"5", "\u00e9".encode()]), {"4", "5", "\u00e9"}),
        (pyarrow.array([0.1, 0.2, 1.5], pyarrow.float32()), {"0.1", "0.2", "1.5"}),
        (pyarrow.array([date(2024, 1, 1), date(2024, 1, 2), date(2024, 1, 3)]), {f"2024-01-0{i}" for i in (1, 2, 3)}),
        (pyarrow.array([True, False, True]), {"true", "false"}),
        (pyarrow.array(["x", "y", "x"]).dictionary_encode(), {"x", "y"}),
        (pyarrow.array([[1, 2], [3], []]), {"[1, 2]", "[3]", "[]"}),
    ],
)
def test_columns_of_a_parquet_file(column: pyarrow.Array, answers: set[str], tmp_path: Path, config: Config) -> None:
    split = read_rows(config(source=parquet(tmp_path / "a.parquet", answer=column), train_size=2, eval_size=1))
    rows = split.train + split.held_out
    assert {row.answer for row in rows} == answers
    assert all(row.meta["answer"] == row.answer for row in rows)


@pytest.mark.parametrize(
    "column",
    [
        pyarrow.array([1.0, math.nan, 2.0]),
        pyarrow.array(["1", None, "2"]),
        pyarrow.array([None, None, None]),
        pyarrow.array([1.0, math.nan, 2.0], pyarrow.float32()),
        pyarrow.array([Decimal("1"), None, Decimal("2")]),
    ],
)
def test_a_missing_gold_is_not_a_gold(column: pyarrow.Array, tmp_path: Path, config: Config) -> None:
    """NaN became the gold "NaN", against which every number is wrong, and nothing said so."""
    source = parquet(tmp_path / "a.parquet", answer=column)
    with pytest.raises(ValueError, match=r"row 'a/train/\d' has no value in column 'answer' \(data\.answer_column\)"):
        read_rows(config(source=source, train_size=2, eval_size=1))
    (tmp_path / "a.jsonl").write_text('{"question": "x", "answer": 1}\n{"question": "y", "answer": NaN}\n')
    with pytest.raises(ValueError, match=r"row 'a/train/1' has no value in column 'answer'"):
        read_rows(config(source=str(tmp_path / "a.jsonl"), train_size=1, eval_size=1))


def test_a_decimal_gold_is_right_where_the_number_is(tmp_path: Path, config: Config) -> None:
    """It was written with quotes around it."""
    source = parquet(tmp_path / "a.parquet", answer=pyarrow.array([Decimal("4.50")] * 3))
    row = read_rows(config(source=source, train_size=2, eval_size=1)).train[0]
    with closing(load("math")) as judge:
        assert judge([Sample(row.question, r"So it is \boxed{4.5}.", meta=dict(row.meta))])[0].value == 1


def test_questions_of_bytes_and_of_parts_are_read_and_other_lists_refused(tmp_path: Path, config: Config) -> None:
    columns = {"train_size": 1, "eval_size": 1}
    binary = pyarrow.table({"question": [b"one", b"two"], "answer": [1, 2]})
    pyarrow.parquet.write_table(binary, tmp_path / "a.parquet")
    split = read_rows(config(source=str(tmp_path / "a.parquet"), **columns))
    assert {row.question for row in split.train + split.held_out} == {"one", "two"}
    rows = [{"question": [*PARTS, {"type": "text", "text": f" ({i})"}], "answer": 7} for i in range(2)]
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, rows)))
    split = read_rows(config(source=str(tmp_path / "a.jsonl"), **columns))
    assert {row.question for row in split.train + split.held_out} == {f"How much is 3 + 4? ({i})" for i in range(2)}
    for question in ([{"role": "user", "content": "x"}], [{"type": "image"}], ["a", "b"], 7, {"a": 1}):
        (tmp_path / "a.jsonl").write_text(json.dumps({"question": question, "answer": 1}))
        with pytest.raises(ValueError, match=r"data\.prompt_column='question': row .* holds a \w+, not text"):
            read_rows(config(source=str(tmp_path / "a.jsonl"), **columns))
