"""From a configuration to the demonstrations of a run: read the rows, hold some out, encode the rest.

Reading and encoding are two steps because a new model's tokenizer is trained on what was read.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import TYPE_CHECKING, Any, cast

from rlkit.data.conversations import Conversation, ConversationEncoder, read_conversation
from rlkit.data.documents import Document, DocumentEncoder
from rlkit.data.mixture import Mixture, Part, Stream
from rlkit.data.prompts import fitting, to_demonstrations
from rlkit.data.rows import Row, Split, read_rows, read_split, row_of, same_lines, text_of
from rlkit.data.sources import NAMED, Source, open_source, open_stream
from rlkit.errors import UserError
from rlkit.types import Demonstration

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from rlkit.config import SftConfig, SftDataConfig

Sample = Row | Conversation | Document
Make = Callable[[str, dict[str, Any], Source], Sample]
TRIED = 1000
"""Rows of a stream that are read before a run starts, for the tokenizer of a new model."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ReadPart:
    """One data set as it was read."""

    key: str
    """The setting that names it."""
    cfg: SftDataConfig
    weight: float
    train: Sequence[Sample]
    held_out: Sequence[Sample]
    repeated: int
    stream: Callable[[int], Iterator[Sample]] | None = None
    """What reads a stream from a place on; `train` then has its first rows alone."""
    skipped: int = 0
    """Rows at the beginning of a stream that are held out."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Material:
    """What a run with SFT shows and asks, not encoded yet."""

    parts: tuple[ReadPart, ...]
    asked: Split[Row] | None
    """Questions for held-out accuracy, and for a stage of reinforcement; None where there are none."""

    @property
    def texts(self) -> list[str]:
        """All that a tokenizer for these rows should know, part by part."""
        asked = self.asked.train if self.asked else ()
        shown = [(row, part.cfg.instruction, part.cfg.response_column) for part in self.parts for row in part.train]
        if any(part.train is asked for part in self.parts):
            asked = ()
        return [_words(*one) for one in (*shown, *((row, "", "") for row in asked))]

    @property
    def unseen(self) -> set[str]:
        """Everything that is asked of the model when it is measured; nothing of it is shown."""
        rows = [row for part in self.parts for row in part.held_out]
        return {same_lines(row.question) for row in (*rows, *(self.asked.held_out if self.asked else ()))}


def read_material(cfg: SftDataConfig, *, held_out: bool) -> Material:
    """Reads every part; with `held_out` each gives its share of `data.eval_size` rows, which are trained on nowhere.

    Raises UserError naming the key, the value and the fix.
    """
    if not cfg.mixture:
        source = open_source(cfg.source, cfg, "data.source")
        make = _maker(cfg, source)
        split = read_split(cfg, source, make)
        part = _part("data.source", cfg, 1.0, split)
        return Material(parts=(part,), asked=cast("Split[Row]", split) if make is row_of else None)
    asked = read_rows(cfg) if cfg.source else None
    total = sum(part.weight for part in cfg.mixture)
    parts = []
    for i, part in enumerate(cfg.mixture):
        size = max(1, round(cfg.eval_size * part.weight / total)) if held_out else 0
        reader = _read_stream if part.stream else _read_all
        parts.append(reader(f"data.mixture[{i}].source", cfg.over(part), part.weight, size))
    material = Material(parts=tuple(parts), asked=asked)
    return replace(material, parts=tuple(_without(part, material.unseen) for part in parts))


def encode(
    material: Material,
    tokenizer: PreTrainedTokenizerBase,
    cfg: SftConfig,
    *,
    ends: Collection[int],
    max_tokens: int,
    drop: bool,
) -> Mixture:
    """Makes demonstrations of all that was read, at most `max_tokens` long; with `drop` longer ones are left out.

    `ends` are the tokens at which engines stop. Raises UserError as the encoders of the forms do.
    """
    unseen, parts, held_out = material.unseen, [], []
    for part in material.parts:
        encoder = _Encoder(part.cfg, tokenizer, cfg.think_share, ends, max_tokens, drop)
        held_out += encoder.all(part.held_out)[0] if cfg.held_out_every else ()
        shown, left_out = encoder.all(part.train)
        if not shown:
            raise UserError(
                f"{part.key}={part.cfg.source!r}: no row of it fits into engine.max_model_len={max_tokens}; raise "
                "that, or use other data"
            )
        if part.stream is not None:
            name = f"{part.key}={part.cfg.source!r}"
            shown = Stream(part.stream, _showing(encoder, unseen), first=part.skipped, name=name)
            left_out = 0
        parts.append(
            Part(name=part.cfg.source, weight=part.weight, shown=shown, left_out=left_out, repeated=part.repeated)
        )
    if cfg.held_out_every and not held_out:
        raise UserError(
            "sft.held_out_every: no held-out row fits into engine.max_model_len; raise that, or set it to 0"
        )
    return Mixture(parts, held_out)


class _Encoder:
    """Encodes the rows of one part, whatever form they have."""

    def __init__(
        self,
        cfg: SftDataConfig,
        tokenizer: PreTrainedTokenizerBase,
        think_share: float,
        ends: Collection[int],
        max_tokens: int,
        drop: bool,
    ) -> None:
        self._cfg, self._tokenizer, self._think_share = cfg, tokenizer, think_share
        self._ends, self._max_tokens, self._drop = ends, max_tokens, drop
        self._talk: ConversationEncoder | None = None
        self._text: DocumentEncoder | None = None

    def all(self, rows: Sequence[Sample]) -> tuple[tuple[Demonstration, ...], int]:
        """Returns the demonstrations of all rows that fit, and how many rows do not."""
        if not self._cfg.response_column and all(isinstance(row, Row) for row in rows):
            shown = self._questions([row for row in rows if isinstance(row, Row)])
            return shown, len(rows) - len(shown)
        made = [self.one(row) for row in rows]
        return tuple(shown for row in made for shown in row), made.count(())

    def one(self, row: Sample) -> tuple[Demonstration, ...]:
        """Returns the demonstrations of one row; () if one of them does not fit."""
        if isinstance(row, Row) and not self._cfg.response_column:
            return self._questions([row])
        if isinstance(row, Document):
            if self._text is None:
                self._text = DocumentEncoder(self._tokenizer, fim_rate=self._cfg.fim_rate, seed=self._cfg.seed)
            made = self._text(row)
        else:
            if self._talk is None:
                self._talk = ConversationEncoder(self._tokenizer, self._ends)
            made = self._talk(row if isinstance(row, Conversation) else _answered(row, self._cfg))
        kept = fitting(made, self._max_tokens, drop=self._drop)
        return kept if len(kept) == len(made) else ()

    def _questions(self, rows: Sequence[Row]) -> tuple[Demonstration, ...]:
        cfg = self._cfg
        made = to_demonstrations(rows, self._tokenizer, cfg.instruction, self._think_share, cfg.seed)
        return fitting(made, self._max_tokens, drop=self._drop)


def _maker(cfg: SftDataConfig, source: Source | Mapping[str, Any]) -> Make:
    """Chooses what a record becomes: by the configuration, and by the columns of the first record."""
    if cfg.text_column:
        return lambda id, record, _: Document(id=id, text=text_of(id, record, cfg.text_column, "data.text_column"))
    if cfg.source in NAMED:
        return row_of
    first = source if isinstance(source, Mapping) else _first(source)
    is_question = cfg.prompt_column in first or "{" in cfg.prompt_column
    if cfg.messages_column in first and not is_question:
        column = cfg.messages_column
        return lambda id, record, _: read_conversation(id, record.get(column), column)
    return row_of


def _first(source: Source) -> Mapping[str, Any]:
    records = source.splits["train"] if "train" in source.splits else next(iter(source.splits.values()))
    return next((record for _, record in records), {})


def _part(key: str, cfg: SftDataConfig, weight: float, split: Split[Any]) -> ReadPart:
    return ReadPart(
        key=key, cfg=cfg, weight=weight, train=split.train, held_out=split.held_out, repeated=split.repeated
    )


def _read_all(key: str, cfg: SftDataConfig, weight: float, held_out: int) -> ReadPart:
    source = open_source(cfg.source, cfg, key)
    if not source.endless:
        cfg = replace(cfg, train_size=-1)
    make = _maker(cfg, source)
    return _part(key, cfg, weight, read_split(cfg, source, make, key=key, held_out=held_out))


def _read_stream(key: str, cfg: SftDataConfig, weight: float, held_out: int) -> ReadPart:
    """Reads the first rows; those that are held out come first, and the stream begins behind them."""
    records = open_stream(cfg.source, key)
    columns = Source(splits={}, question=cfg.prompt_column, answer=cfg.answer_column, solution=cfg.solution_column)
    head = list(islice(records(0), held_out + TRIED))
    if len(head) <= held_out:
        raise UserError(f"{key}={cfg.source!r} has {len(head)} rows, of which {held_out} are held out; use more data")
    make = _maker(cfg, head[0][1])
    rows = [make(id, record, columns) for id, record in head]
    return ReadPart(
        key=key,
        cfg=cfg,
        weight=weight,
        train=rows[held_out:],
        held_out=rows[:held_out],
        repeated=0,
        stream=lambda first: (make(id, record, columns) for id, record in records(first)),
        skipped=held_out,
    )


def _showing(encoder: _Encoder, unseen: Collection[str]) -> Callable[[Sample], tuple[Demonstration, ...]]:
    """Returns what makes demonstrations of a row of a stream: none if it does not fit, or asks what is held out."""
    return lambda row: () if same_lines(row.question) in unseen else encoder.one(row)


def _without(part: ReadPart, unseen: Collection[str]) -> ReadPart:
    """Leaves out what another part holds out: two parts may show the same problems."""
    kept = tuple(row for row in part.train if same_lines(row.question) not in unseen)
    if not kept:
        raise UserError(f"{part.key}={part.cfg.source!r}: all of its rows ask what is held out; use other data")
    return replace(part, train=kept, repeated=part.repeated + len(part.train) - len(kept))


def _answered(row: Row, cfg: SftDataConfig) -> Conversation:
    """Makes a conversation of a question and its response: V3's <problem, response> and <system, problem, response>."""
    response = text_of(row.id, row.meta, cfg.response_column, "data.response_column")
    asked = f"{cfg.instruction}\n{row.question}" if cfg.instruction else row.question
    before = [{"role": "system", "content": cfg.system_prompt}] if cfg.system_prompt else []
    messages = [*before, {"role": "user", "content": asked}, {"role": "assistant", "content": response}]
    return read_conversation(row.id, messages, cfg.response_column)


def _words(row: Sample, instruction: str, response: str) -> str:
    """Returns all text of a row."""
    if not isinstance(row, Row):
        return row.text
    words = f"{instruction}\n{row.question} {row.solution} {row.answer}"
    return f"{words} {row.meta.get(response, '')}" if response else words
