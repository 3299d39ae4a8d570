"""Preferences as tokens: a prompt with a chosen and a rejected completion, or with a completion and its label."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from rlkit.data.cells import cell_text, is_missing
from rlkit.data.prompts import encode, to_prompts
from rlkit.data.rows import Row
from rlkit.data.slips import right_and_wrong
from rlkit.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from rlkit.config import RewardModelConfig


@dataclass(frozen=True, slots=True, kw_only=True)
class Pair:
    """Two completions of one prompt, as whole samples: prompt, completion, end token."""

    id: str
    chosen: tuple[int, ...]
    rejected: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Labelled:
    """A completion with how good it is, 0 to 1, as a whole sample."""

    id: str
    tokens: tuple[int, ...]
    label: float


def to_preferences(
    rows: Sequence[Row], tokenizer: PreTrainedTokenizerBase, instruction: str, cfg: RewardModelConfig, made: bool
) -> tuple[Pair, ...] | tuple[Labelled, ...]:
    """Puts each question into the chat template and its completions behind it, each with the end token.

    `made` says that the rows have worked solutions in place of preferences, which are made from them
    (`rlkit.data.slips`). Raises UserError, naming row and column, for a completion that is missing, empty, no text, or
    of another question, for a label that is none, and for a sample longer than `reward_model.max_length`.
    """
    both = [(row, _completions(row, cfg, made)) for row in rows]
    found = [(row, *each) for row, several in both for each in several]
    own = [row for row, _, _ in found]
    samples = _samples(own, [text for _, text, _ in found], tokenizer, instruction, cfg.max_length)
    if cfg.kind == "pointwise":
        labelled = zip(found, samples, strict=True)
        return tuple(Labelled(id=row.id, tokens=tokens, label=label) for (row, _, label), tokens in labelled)
    couples = zip(own[::2], samples[::2], samples[1::2], strict=True)
    return tuple(Pair(id=row.id, chosen=chosen, rejected=rejected) for row, chosen, rejected in couples)


def _completions(row: Row, cfg: RewardModelConfig, made: bool) -> list[tuple[str, float]]:
    """Returns the completions of a row with their labels, the chosen one first."""
    if made:
        pair = right_and_wrong(row.meta, row.id)
        if pair is None:
            raise UserError(
                f"row {row.id!r} has no worked solution with a whole number as its answer, from which preferences "
                "could be made; use data.tasks with chain_sum, gcd or products, or a file (data=preferences.jsonl)"
            )
        return [(pair[0], 1.0), (pair[1], 0.0)]
    if cfg.kind == "pointwise":
        return [(_text(row, cfg, "completion_column"), _label(row, cfg.label_column))]
    chosen, rejected = (_text(row, cfg, key) for key in ("chosen_column", "rejected_column"))
    if chosen == rejected:
        raise UserError(
            f"row {row.id!r}: {cfg.chosen_column!r} and {cfg.rejected_column!r} are the same text, of which none can "
            "be preferred; remove the row"
        )
    return [(chosen, 1.0), (rejected, 0.0)]


def _text(row: Row, cfg: RewardModelConfig, key: str) -> str:
    """Reads a completion: text, or messages that end with it."""
    column = getattr(cfg, key)
    cell = _cell(row, column, f"reward_model.{key}")
    if isinstance(cell, list | tuple) and cell and isinstance(cell[-1], Mapping) and "role" in cell[-1]:
        cell = _last_message(row, column, cell)
    try:
        text = cell_text(cell)
    except TypeError as error:
        raise UserError(f"row {row.id!r} holds {error} in {column!r}; give text, or chat messages") from None
    if not text.strip():
        raise UserError(f"row {row.id!r} has an empty completion in {column!r}; remove the row")
    return text


def _last_message(row: Row, column: str, messages: Sequence[Mapping[str, Any]]) -> Any:
    """Returns what the assistant says; before it may stand the row's question alone."""
    *before, last = messages
    asked = [str(message.get("content", "")).strip() for message in before if message.get("role") != "system"]
    if last.get("role") != "assistant" or "content" not in last or asked not in ([], [row.question.strip()]):
        raise UserError(
            f"row {row.id!r}: the messages in {column!r} are not the row's question and one answer of the assistant, "
            "and conversations of several turns are not covered; give the last answer alone, or remove the row"
        )
    return last["content"]


def _label(row: Row, column: str) -> float:
    cell = _cell(row, column, "reward_model.label_column")
    try:
        label = float(cell)
    except (TypeError, ValueError):
        label = -1.0
    if not 0 <= label <= 1:
        raise UserError(f"row {row.id!r}: {column!r} is {cell!r}; a label is true, false, or a number from 0 to 1")
    return label


def _cell(row: Row, column: str, key: str) -> Any:
    if column not in row.meta:
        columns = ", ".join(map(str, row.meta))
        raise UserError(
            f"{key}={column!r}: row {row.id!r} has no such column, only {columns}; set {key} to one of these"
        )
    if is_missing(row.meta[column]):
        raise UserError(f"row {row.id!r} has no value in column {column!r} ({key}); fill it in or remove the row")
    return row.meta[column]


def _samples(
    rows: Sequence[Row], texts: Sequence[str], tokenizer: PreTrainedTokenizerBase, instruction: str, max_length: int
) -> list[tuple[int, ...]]:
    """Returns the tokens of prompt, completion and end token; UserError for a sample that is too long."""
    samples, end = [], tokenizer.eos_token_id
    assert isinstance(end, int), "load_tokenizer refuses this"
    prompts = to_prompts(rows, tokenizer, instruction, max_length)
    encoded = encode(tokenizer, rows, [text.removesuffix(str(tokenizer.eos_token)) for text in texts])
    for row, prompt, tokens in zip(rows, prompts, encoded, strict=True):
        sample = (*prompt.tokens, *tokens, end)
        if len(sample) > max_length:
            raise UserError(
                f"row {row.id!r} has a sample of {len(sample)} tokens, more than reward_model.max_length={max_length}; "
                "raise it, or remove the row"
            )
        samples.append(sample)
    return samples
