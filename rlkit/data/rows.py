"""Turns a configuration into training rows and held-out rows that share no question."""

from __future__ import annotations

import random
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Generic, Protocol, TypeVar

from rewards.extract import last_boxed
from rlkit.data.cells import Template, cell_text, is_missing, is_text
from rlkit.data.sources import Source, open_source
from rlkit.errors import UserError

if TYPE_CHECKING:
    from rlkit.config import DataConfig


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """Holds one question with its gold answer.

    Example: `Row(id="chain_sum/7", question="3 + 4", answer="7", solution="3+4=7", meta={"answer": "7", ...})`
    """

    id: str
    """Source, split and place in it; the same in every run, whatever the sizes."""
    question: str
    answer: str
    """"" when `data.answer_column` is empty."""
    solution: str
    """Worked steps shown in SFT; "" when there are none."""
    meta: Mapping[str, Any]
    """The whole dataset row, with `answer` as above, and `question` unless the row has such a column of its own."""

    @property
    def identity(self) -> str:
        """What makes two rows the same."""
        return self.question


class Sample(Protocol):
    """One row of a data set, whatever it holds."""

    @property
    def id(self) -> str:
        """Source, split and place in it."""
        ...

    @property
    def question(self) -> str:
        """What must not be both trained on and held out."""
        ...

    @property
    def identity(self) -> str:
        """What makes two rows the same."""
        ...


S = TypeVar("S", bound=Sample)


@dataclass(frozen=True, slots=True, kw_only=True)
class Split(Generic[S]):
    """Holds rows to train on and rows to measure on; no question is in both, and no row occurs twice."""

    train: tuple[S, ...]
    held_out: tuple[S, ...]
    repeated: int
    """Rows that were left out because they, or their question where it is held out, had been taken already."""


def read_rows(cfg: DataConfig, *, repeats: bool = False) -> Split[Row]:
    """Reads questions with their answers, deduplicates, shuffles by `data.seed` and splits: see `read_split`."""
    return read_split(cfg, open_source(cfg.source, cfg, "data.source"), row_of, repeats=repeats)


def read_split(
    cfg: DataConfig,
    source: Source,
    make: Callable[[str, dict[str, Any], Source], S],
    *,
    key: str = "data.source",
    held_out: int | None = None,
    repeats: bool = False,
) -> Split[S]:
    """Makes a sample of every record of an opened source, deduplicates, shuffles by `data.seed` and splits.

    Held-out rows are chosen first, so they do not change with `data.train_size`. Questions count as equal when their
    lines are, save for white space at the ends of lines: line breaks and indentation can be what a question is about.
    `held_out` is a number of rows in the place of `data.eval_size`; with `repeats` a question may come in several rows.
    Raises UserError naming the key, the value and the fix.
    """
    train = _stream(source, train_split(source, cfg.source, key), cfg, key, make)
    if source.endless and cfg.train_size < 0:
        raise UserError(f"data.train_size={cfg.train_size}: reasoning_gym has no end; give a number of rows")
    if cfg.eval_source and cfg.eval_source != cfg.source:
        other = open_source(cfg.eval_source, cfg, "data.eval_source")
        split = held_out_split(other) or train_split(other, cfg.eval_source, "data.eval_source")
        measured = _stream(other, split, cfg, "data.eval_source", make)
    elif own_test := held_out_split(source):
        measured = _stream(source, own_test, cfg, key, make)
    else:
        measured = train
    size, seen = cfg.eval_size if held_out is None else held_out, set[str]()
    held_out_rows, repeated = _take(measured, size, seen, set(), "data.eval_size", repeats) if size else ((), 0)
    unseen = {same_lines(row.question) for row in held_out_rows}
    train_rows, repeated_too = _take(train, cfg.train_size, seen, unseen, "data.train_size", repeats)
    return Split(held_out=held_out_rows, train=train_rows, repeated=repeated + repeated_too)


def same_lines(text: str) -> str:
    """Returns a text without the white space at the ends of its lines, and at its own end."""
    return "\n".join(line.rstrip() for line in text.split("\n")).rstrip()


def _take(
    rows: Iterator[S], size: int, seen: set[str], unseen: Collection[str], key: str, repeats: bool
) -> tuple[tuple[S, ...], int]:
    """Takes rows that are not in `seen` and ask nothing of `unseen`; also returns how many others it left out."""
    taken: list[S] = []
    repeated = 0
    while len(taken) != size:
        row = next(rows, None)
        if row is None:
            break
        identity = same_lines(row.identity)
        if (identity in seen and not repeats) or same_lines(row.question) in unseen:
            repeated += 1
        else:
            seen.add(identity)
            taken.append(row)
    if len(taken) < max(size, 1):
        raise UserError(
            f"{key}={size}: only {len(taken)} distinct rows are left for it (duplicates and held-out questions do not "
            "count); ask for fewer, or use more data"
        )
    return tuple(taken), repeated


def train_split(source: Source, name: str, key: str) -> str:
    """Returns the name of the split to train on; raises UserError where there are several and none is "train"."""
    if "train" in source.splits:
        return "train"
    if len(source.splits) == 1:
        return next(iter(source.splits))
    raise UserError(f"{key}={name!r} has no split 'train', only {', '.join(source.splits)}; use another dataset")


def held_out_split(source: Source) -> str | None:
    """Returns the name of the split to test on; None where the source has none."""
    return next((split for split in ("test", "validation") if split in source.splits), None)


def _stream(
    source: Source, split: str, cfg: DataConfig, key: str, make: Callable[[str, dict[str, Any], Source], S]
) -> Iterator[S]:
    records: Iterable[tuple[str, dict[str, Any]]] = source.splits[split]
    if isinstance(records, list):
        if not records:
            name = cfg.eval_source if key == "data.eval_source" else cfg.source
            raise UserError(f"{key}={name!r}: its split {split!r} has no rows; use another file or dataset")
        records = random.Random(f"{cfg.seed}/{split}").sample(records, len(records))
    return (make(id, record, source) for id, record in records)


def row_of(id: str, record: dict[str, Any], source: Source) -> Row:
    """Makes a question with its answer of a record; UserError naming key and row for a column that is not there."""
    question = question_of(id, record, source.question)
    if not question.strip():
        raise UserError(f"row {id!r} has an empty {source.question!r} (data.prompt_column); remove the row")
    solution = text_of(id, record, source.solution, "data.solution_column") if source.solution else ""
    answer = answer_of(id, record, source.answer, solution) if source.answer else ""
    return Row(
        id=id,
        question=question,
        answer=answer,
        solution=solution,
        meta={"question": question, **record} | ({"answer": answer} if source.answer else {}),
    )


def answer_of(id: str, record: Mapping[str, Any], column: str, solution: str) -> str:
    """Returns the gold as the reward gets it: the column or template as text, else the last box of the solution.

    Raises UserError for a row that has neither, and for a cell of which no text can be made.
    """
    # MATH keeps its answer in the solution only. A template is not looked for there: it says where the answer is.
    boxed = last_boxed(solution) if column not in record and "{" not in column else None
    return text_of(id, record, column, "data.answer_column") if boxed is None else boxed


def question_of(id: str, record: Mapping[str, Any], column: str) -> str:
    """Returns the text of a column, or of a template such as "{text} Tests: {test_list}" (see `rlkit.data.cells`).

    Raises UserError for a column that is not there and for a template that cannot be filled.
    """
    return text_of(id, record, column, "data.prompt_column")


def text_of(id: str, record: Mapping[str, Any], column: str, key: str) -> str:
    """Returns the text of a column or of a template of columns; `key` is the setting that names it, for messages."""
    if "{" not in column:
        return _text(id, record, column, key)
    try:
        text = Template().fill(column, record)
    except KeyError as error:
        columns = ", ".join(str(name) for name, cell in record.items() if not is_missing(cell))
        raise UserError(
            f"{key}={column!r}: row {id!r} has no value in a column {error}, only in {columns}; name one of these "
            "between the braces"
        ) from None
    except (ValueError, IndexError, AttributeError, TypeError) as error:
        raise UserError(
            f"{key}={column!r} cannot be filled with row {id!r}: {error}; write column names between single braces, "
            "as in '{text} Tests: {test_list}' or '{choices[0]}', and {{ or }} for a brace"
        ) from None
    return _whole(id, text, column, key)


def _text(id: str, record: Mapping[str, Any], column: str, key: str) -> str:
    if column not in record:
        columns = ", ".join(map(str, record))
        raise UserError(f"{key}={column!r}: row {id!r} has no such column, only {columns}; set {key} to one of these")
    value = record[column]
    if is_missing(value):
        raise UserError(f"row {id!r} has no value in column {column!r} ({key}); fill it in or remove the row")
    try:
        if key == "data.prompt_column" and not is_text(value):
            raise TypeError(f"a {type(value).__name__}, not text")
        return _whole(id, cell_text(value), column, key)
    except TypeError as error:
        fix = "a column of plain questions" if key == "data.prompt_column" else "a column of text, numbers or dates"
        raise UserError(f"{key}={column!r}: row {id!r} holds {error}; give {fix}") from None


def _whole(id: str, text: str, column: str, key: str) -> str:
    """Refuses half a character, as broken JSON escapes leave behind: no tokenizer takes it, and no file."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        broken = f"half a character ({text[error.start]!r} at place {error.start})"
        raise UserError(f"row {id!r} holds {broken} in {column!r} ({key}); repair the text or remove the row") from None
    return text
