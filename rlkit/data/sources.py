"""Where records come from: the shipped GSM8K, a local file, the Hugging Face hub or reasoning-gym.

Every reader returns a `Source`; every failure is a UserError that names the config key, the value and the fix.
"""

from __future__ import annotations

import gzip
import json
import re
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rlkit.data.reading import checked_row, line_rows, open_text, parquet_rows
from rlkit.data.reasoning import draw
from rlkit.errors import UserError

if TYPE_CHECKING:
    from rlkit.config import DataConfig

Record = tuple[str, dict[str, Any]]
"""The id of a dataset row, and the row."""

NAMED = ("reasoning_gym", "gsm8k", "math")
FILE_ENDINGS = (".jsonl", ".json", ".parquet")
MATH_HUB_ID = "DigitalLearningGmbH/MATH-lighteval"
GSM8K_FOLDER = Path(__file__).parent / "gsm8k"


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """Holds splits of records, and names the columns of question, answer and worked solution ("" for none)."""

    splits: Mapping[str, Iterable[Record]]
    question: str
    answer: str
    solution: str
    endless: bool = False
    """Whether rows are generated on demand, so that "all rows" means nothing."""


def open_source(source: str, cfg: DataConfig, key: str) -> Source:
    """Opens `source`; errors name `key` (`data.source` or `data.eval_source`)."""
    if source == "reasoning_gym":
        splits: dict[str, Iterable[Record]] = {"train": draw(cfg.tasks, cfg.seed)}
        return Source(splits=splits, question="question", answer="answer", solution="solution", endless=True)
    if source == "gsm8k":
        splits = {split: _read_gsm8k(split) for split in ("train", "test")}
        return Source(splits=splits, question="question", answer="answer", solution="solution")
    if source == "math":
        splits = _read_hub(MATH_HUB_ID, key)
        return Source(splits=splits, question="problem", answer="answer", solution="solution")
    if source.removesuffix(".gz").endswith(FILE_ENDINGS):
        splits = {"train": _name_rows(Path(source).name.split(".")[0], "train", _read_file(Path(source), key))}
    elif files := files_of(source):
        rows = (row for file in files for row in _read_file(file, key))
        splits = {"train": _name_rows(Path(source).name, "train", rows)}
    elif "/" in source:
        splits = _read_hub(source, key)
    else:
        raise UserError(
            f"{key}={source!r}: not a data source; use one of {', '.join(NAMED)}, a file ending in "
            f"{', '.join(FILE_ENDINGS)} (or these with .gz), a folder of .parquet files, or a hub id such as "
            "'openai/gsm8k:main'"
        )
    return Source(splits=splits, question=cfg.prompt_column, answer=cfg.answer_column, solution=cfg.solution_column)


def files_of(source: str) -> list[Path]:
    """Returns the files that a source is read from: itself, or the parquet files of a folder; [] for what is no path.

    A folder without parquet files of its own is left to the hub's library, which knows more layouts.
    """
    path = Path(source)
    if source.removesuffix(".gz").endswith(FILE_ENDINGS):
        return [path] if path.is_file() else []
    return sorted(path.glob("*.parquet")) if path.is_dir() else []


def open_stream(source: str, key: str) -> Callable[[int], Iterator[Record]]:
    """Returns what reads a source row by row, from a place on: a .jsonl or .parquet file, or the "train" of a hub id.

    Rows come in their order, under the ids that they have when all are read at once. What is before the place is passed
    over without being parsed. Raises UserError, then or while reading, naming `key`, the value and the fix.
    """
    path = Path(source)
    if source.removesuffix(".gz").endswith(".jsonl") or source.endswith(".parquet"):
        if not path.is_file():
            raise UserError(f"{key}={source!r}: no such file (looked at {path.resolve()}); correct the path")
        read = _stream_parquet if source.endswith(".parquet") else _stream_lines
        name = path.name.split(".")[0]
    elif "/" in source and not source.removesuffix(".gz").endswith(FILE_ENDINGS):
        read, name = _stream_hub, source.partition(":")[0]
    else:
        raise UserError(
            f"{key}={source!r} cannot be read row by row; use a .jsonl file (also .jsonl.gz), a .parquet file or a hub "
            "id, or leave stream out"
        )

    def records(first: int) -> Iterator[Record]:
        try:
            for index, row in enumerate(read(source, first), start=first):
                yield f"{name}/train/{index}", row
        except UserError:
            raise
        except Exception as error:  # a torn archive, text that is no JSON, and all ways in which the hub fails
            raise UserError(f"{key}={source!r} cannot be read on: {error}; repair or replace it") from error

    return records


def _stream_parquet(source: str, first: int) -> Iterator[dict[str, Any]]:
    return parquet_rows(Path(source), first)


def _stream_lines(source: str, first: int) -> Iterator[dict[str, Any]]:
    with open_text(Path(source)) as lines:
        yield from line_rows(lines, first)


def _stream_hub(source: str, first: int) -> Iterator[dict[str, Any]]:
    import datasets

    path, _, config = source.partition(":")
    rows = datasets.load_dataset(path, config or None, split="train", streaming=True)
    return (dict(row) for row in rows.skip(first))


def _name_rows(name: str, split: str, rows: Iterable[dict[str, Any]]) -> list[Record]:
    return [(f"{name}/{split}/{index}", row) for index, row in enumerate(rows)]


def _read_gsm8k(split: str) -> list[Record]:
    def parts(row: dict[str, Any]) -> dict[str, Any]:
        steps, _, answer = row["answer"].rpartition("####")
        solution = re.sub(r"<<.*?>>", "", steps).strip()
        return {"question": row["question"], "answer": answer.strip().replace(",", ""), "solution": solution}

    return _name_rows("gsm8k", split, map(parts, _read_file(GSM8K_FOLDER / f"{split}.jsonl.gz", "data.source")))


def _read_file(path: Path, key: str) -> list[dict[str, Any]]:
    if not path.is_file():
        raise UserError(f"{key}={str(path)!r}: no such file (looked at {path.resolve()}); correct the path")
    try:
        content = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
        if ".parquet" in path.suffixes:
            return list(parquet_rows(BytesIO(content)))
        return list(_parse_json(content.decode("utf-8-sig")))
    except (OSError, EOFError, zlib.error, ValueError) as error:
        raise UserError(f"{key}={str(path)!r} cannot be read: {error}; repair or replace the file") from error


def _parse_json(text: str) -> Iterator[dict[str, Any]]:
    if _is_object(text):
        raise ValueError("it is one JSON object; give a list of rows, or one row a line")
    if text.lstrip().startswith("["):  # one list of rows, whatever the file's ending says
        return (checked_row(row, f"entry {number}") for number, row in enumerate(json.loads(text), start=1))
    # Not splitlines(): JSON text may hold U+2028 and other characters that it takes for line ends.
    return line_rows(text.split("\n"))


def _is_object(text: str) -> bool:
    """Says whether a text is a JSON object over several lines, which is no row and holds none that could be found."""
    if not text.lstrip().startswith("{\n"):
        return False
    try:
        return isinstance(json.loads(text), dict)
    except ValueError:
        return False


def _read_hub(source: str, key: str) -> dict[str, Iterable[Record]]:
    import datasets

    path, _, config = source.partition(":")
    if path.count("/") > 1 or path.startswith((".", "/", "~")):  # the hub's ids are 'owner/name'
        raise UserError(f"{key}={source!r} is no file and no folder; correct the path, it counts from {Path.cwd()}")
    try:
        loaded = datasets.load_dataset(path, config or None)
    except Exception as error:  # the hub fails in many ways: no network, no such id, no such config, no rights
        raise UserError(
            f"{key}={source!r} cannot be loaded from the Hugging Face hub: {error}; check the id ('owner/name', or "
            "'owner/name:config'), the network and your login, or download it and give the file's path"
        ) from error
    assert isinstance(loaded, datasets.DatasetDict), "load_dataset without a split returns every split"
    return {str(split): _name_rows(path, str(split), map(dict, rows)) for split, rows in loaded.items()}
