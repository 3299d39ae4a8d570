"""The dataset as parquet files of a fixed number of rows; the same rows give the same bytes."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from rlkit.distill.journal import Question, Told, whole_characters

GROUP_ROWS = 1000
"""Rows that are written, and later read, at a time."""
_MESSAGE = pa.struct([pa.field("role", pa.string()), pa.field("content", pa.string())])
_PART = pa.struct([pa.field("name", pa.string()), pa.field("value", pa.float64())])
COLUMNS = {
    "id": (pa.string(), "source, split and place of the question in its data"),
    "question": (pa.string(), "the question, without the instruction"),
    "answer": (pa.string(), 'the gold answer that the reward compared with; "" where the data has none'),
    "solution": (pa.string(), "the thought of the response, without its marks: `data.solution_column=solution` in SFT"),
    "response": (pa.string(), "all that the teacher wrote"),
    "response_ids": (pa.list_(pa.int32()), "its token ids as sampled, the end token included; empty from a server"),
    "messages": (pa.list_(_MESSAGE), "user (instruction and question) and assistant, with <think>"),
    "num_tokens": (pa.int32(), "tokens of the response"),
    "pass_rate": (pa.float64(), "share of correct responses among all that were judged for this question"),
    "reward": (pa.float64(), "what the reward gave"),
    "reward_reason": (pa.string(), "and why"),
    "reward_parts": (pa.list_(_PART), "what it is made of"),
    "teacher": (pa.string(), "who answered"),
    "sample": (pa.int32(), "the number of the response among those to this question"),
    "seed": (pa.int64(), "the seed that it was sampled with"),
    "source_row": (pa.string(), "the row of the data, as JSON"),
}
"""Column -> its type and what it holds."""
SCHEMA = pa.schema([(name, kind) for name, (kind, _) in COLUMNS.items()])


def row_of(question: Question, told: Told, rate: float, *, teacher: str, prefix: str, opened: bool) -> dict[str, Any]:
    """Makes a row of the dataset; `opened` says that the prompt has opened the thought, as some templates do."""
    answered = told.answered
    whole = ("<think>" if opened else "") + answered.text
    return {
        "id": question.id,
        "question": question.question,
        "answer": question.answer,
        "solution": thought_in(answered.text),
        "response": answered.text,
        "response_ids": answered.tokens,
        "messages": [
            {"role": "user", "content": prefix + question.question},
            {"role": "assistant", "content": whole},
        ],
        "num_tokens": answered.num_tokens,
        "pass_rate": rate,
        "reward": told.value,
        "reward_reason": told.reason,
        "reward_parts": [{"name": name, "value": value} for name, value in told.parts.items()],
        "teacher": teacher,
        "sample": answered.sample,
        "seed": answered.seed,
        "source_row": whole_characters(json.dumps(question.meta, ensure_ascii=False)),
    }


def thought_in(response: str) -> str:
    """Returns what stands between the first `<think>` and the last `</think>`, blanks and all; without the last, all.

    SFT puts it back between the marks, and shows the very text of the teacher.
    """
    before, closed, _ = response.rpartition("</think>")
    if not closed:
        return response
    _, opened, inside = before.partition("<think>")
    return inside if opened else before


def write_shards(folder: Path, rows: Iterable[dict[str, Any]], num_rows: int, shard_rows: int) -> None:
    """Writes `train-00000-of-00003.parquet` and so on; without rows, one file that has the columns."""
    waiting = iter(rows)
    num_shards = max(1, -(-num_rows // shard_rows))
    for shard in range(num_shards):
        with pq.ParquetWriter(
            folder / f"train-{shard:05}-of-{num_shards:05}.parquet", SCHEMA, compression="zstd"
        ) as file:
            for group in _groups(islice(waiting, shard_rows)):
                file.write_table(pa.Table.from_pylist(group, SCHEMA))


def _groups(rows: Iterator[dict[str, Any]]) -> Iterator[list[dict[str, Any]]]:
    while group := list(islice(rows, GROUP_ROWS)):
        yield group
