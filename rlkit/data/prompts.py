"""Rows as tokens: prompts to sample from, demonstrations to imitate, and the order in which a run sees them."""

from __future__ import annotations

import random
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache
from hashlib import blake2b
from typing import TYPE_CHECKING

from rlkit.data.chat import check_distinct, render
from rlkit.data.rows import Row
from rlkit.errors import UserError
from rlkit.types import Demonstration, Prompt

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


MARK = re.compile(r"</?(?:think|answer)>")
LAST_ANSWER = re.compile(r"<answer>(?:(?!<answer>).)*</answer>\s*\Z", re.DOTALL)


def to_prompts(
    rows: Sequence[Row],
    tokenizer: PreTrainedTokenizerBase,
    instruction: str,
    max_prompt_tokens: int,
    *,
    drop: bool = False,
) -> tuple[Prompt, ...]:
    """Puts each question into the tokenizer's chat template, up to where the assistant starts to write.

    With `drop` a prompt that does not fit is left out. Raises UserError for a template or a tokenizer that loses a
    question (see `rlkit.data.chat`), for text that cannot be encoded, and without `drop` for a prompt that does not
    fit.
    """
    prompts = _prompts(rows, tokenizer, instruction)
    for prompt in () if drop else prompts:
        if len(prompt.tokens) > max_prompt_tokens:
            raise UserError(
                f"the prompt of row {prompt.id!r} has {len(prompt.tokens)} tokens, but only {max_prompt_tokens} fit "
                f"before the completion: raise engine.max_model_len by {len(prompt.tokens) - max_prompt_tokens}, lower "
                "algo.sampling.max_new_tokens or evaluation.sampling.max_new_tokens, whichever is larger, or remove "
                "the row"
            )
    return tuple(prompt for prompt in prompts if len(prompt.tokens) <= max_prompt_tokens)


def _prompts(rows: Sequence[Row], tokenizer: PreTrainedTokenizerBase, instruction: str) -> list[Prompt]:
    texts = render(rows, tokenizer, instruction)
    encoded = encode(tokenizer, rows, texts)
    check_distinct(rows, encoded, tokenizer)
    return [
        Prompt(id=row.id, tokens=tokens, text=text, meta=row.meta)
        for row, text, tokens in zip(rows, texts, encoded, strict=True)
    ]


def to_demonstrations(
    rows: Sequence[Row], tokenizer: PreTrainedTokenizerBase, instruction: str, think_share: float, seed: int
) -> tuple[Demonstration, ...]:
    """Writes `<think>solution</think><answer>gold</answer>` and the end token after each prompt.

    The marks are text: one token each where the tokenizer has them as tokens, several otherwise. Marks that a solution
    or an answer brings along are taken out first, so that each stands there once.

    A row shows its solution if hash(seed, row id) < think_share; the others have an empty think. Prompts are exactly
    those of `to_prompts`: the completion is encoded on its own, so no token spans the boundary. Raises UserError as
    `to_prompts` does, for a tokenizer without an end token, and for a row without an answer or with an end token in its
    middle.
    """
    end = tokenizer.eos_token_id
    if not isinstance(end, int):
        raise UserError(f"the tokenizer {tokenizer.name_or_path!r} has no end token; set eos_token in its config")
    prompts = _prompts(rows, tokenizer, instruction)
    texts = []
    for row, prompt in zip(rows, prompts, strict=True):
        solution = row.solution if share_of_row(seed, row.id) < think_share else ""
        texts.append(_completion(row, solution, prompt.text, str(tokenizer.eos_token)))
    demonstrations = []
    for row, prompt, text in zip(rows, prompts, encode(tokenizer, rows, texts), strict=True):
        if end in text:
            raise UserError(
                f"the demonstration of row {row.id!r} holds the end token {tokenizer.eos_token!r} in its middle, "
                "where the model would learn to stop; take it out of the solution or the answer"
            )
        demonstrations.append(Demonstration.of(prompt.tokens, (*text, end), row.id))
    return tuple(demonstrations)


def fitting(demonstrations: Sequence[Demonstration], max_tokens: int, *, drop: bool) -> tuple[Demonstration, ...]:
    """Returns the demonstrations of at most `max_tokens` tokens; without `drop` UserError for any other."""
    for shown in () if drop else demonstrations:
        if len(shown.tokens) > max_tokens:
            learned = sum(end - first for first, end in shown.trained)
            raise UserError(
                f"the demonstration of row {shown.id!r} has {len(shown.tokens) - learned} + {learned} tokens, more "
                f"than {max_tokens}: raise engine.max_model_len (and trainer.max_tokens), set data.too_long=drop, or "
                "remove the row"
            )
    return tuple(shown for shown in demonstrations if len(shown.tokens) <= max_tokens)


@lru_cache(maxsize=64)
def order(num_rows: int, seed: int, epoch: int) -> tuple[int, ...]:
    """Returns the permutation of 0..num_rows-1 in which an epoch visits the rows; it depends on the arguments alone."""
    return tuple(random.Random(f"{seed}/{epoch}").sample(range(num_rows), num_rows))


def rows_for_step(num_rows: int, per_step: int, step: int, seed: int) -> list[int]:
    """Returns the rows of step `step` (from 0): the places from step * per_step on, in epochs laid end to end.

    There is no cursor to save: a resumed run asks for the same step and gets the same rows.
    """
    places = range(step * per_step, (step + 1) * per_step)
    return [order(num_rows, seed, place // num_rows)[place % num_rows] for place in places]


def prompts_for_step(prompts: Sequence[Prompt], per_step: int, step: int, seed: int) -> list[Prompt]:
    """Returns the prompts of step `step` (from 1), each with an id of its own.

    Where two epochs meet, one prompt may come twice. Its rollouts draw their seeds from its id, so the second one is
    renamed: else both groups would be the same.
    """
    seen = Counter[str]()
    drawn = []
    for row in rows_for_step(len(prompts), per_step, step - 1, seed):
        prompt = prompts[row]
        seen[prompt.id] += 1
        drawn.append(replace(prompt, id=f"{prompt.id}#{seen[prompt.id]}") if seen[prompt.id] > 1 else prompt)
    return drawn


def _completion(row: Row, solution: str, prompt: str, end: str) -> str:
    """Returns what a model should write after a prompt, up to its end token."""
    answer = _unmarked(row.answer, end)
    if not answer.strip():
        raise UserError(
            f"the demonstration of row {row.id!r} would teach an empty answer; set data.answer_column to the column "
            "that holds the answers, or remove the row"
        )
    # Templates of reasoning models may have opened the think already.
    opening = "" if prompt.rstrip().endswith("<think>") else "<think>"
    return f"{opening}{_unmarked(solution, end)}</think><answer>{answer}</answer>"


def _unmarked(text: str, end: str) -> str:
    """Returns a text without our marks, which solutions written by reasoning models bring along.

    An answer at the end of a solution goes with its marks, since the row's own answer follows; what stood between the
    marks of a think stays.
    """
    found = text.rstrip().removesuffix(end) if end else text
    if not MARK.search(found):
        return text if found == text.rstrip() else found
    if len(without_answer := LAST_ANSWER.sub("", found).rstrip()) > 0:
        found = without_answer
    return MARK.sub("", found).strip()


def encode(tokenizer: PreTrainedTokenizerBase, rows: Sequence[Row], texts: list[str]) -> list[tuple[int, ...]]:
    """Returns the ids of each row's text. The template has written every special token already, so none is added.

    Raises UserError naming the row whose text cannot be encoded.
    """
    if not texts:
        return []

    def ids(part: list[str]) -> list[list[int]]:
        return tokenizer(part, add_special_tokens=False, return_attention_mask=False)["input_ids"]

    try:
        return [tuple(tokens) for tokens in ids(texts)]  # all at once, which is several times faster
    except Exception:  # tokenizers raises all kinds, and does not say for which of the texts
        for row, text in zip(rows, texts, strict=True):
            try:
                ids([text])
            except Exception as error:
                raise UserError(
                    f"the tokenizer {tokenizer.name_or_path!r} of model.path cannot encode row {row.id!r} "
                    f"({type(error).__name__}: {error}); repair the text or remove the row"
                ) from error
        raise


def share_of_row(seed: int, row_id: str) -> float:
    """Returns a number in [0, 1) that depends on seed and row alone, as if drawn evenly."""
    return int.from_bytes(blake2b(f"{seed}/{row_id}".encode(), digest_size=8).digest(), "big") / 2**64
