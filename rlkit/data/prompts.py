"""Rows as tokens: prompts to sample from, demonstrations to imitate, and the order in which a run sees them."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from hashlib import blake2b
from typing import TYPE_CHECKING

from rlkit.data.rows import Row
from rlkit.types import Prompt

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True, slots=True, kw_only=True)
class Demonstration:
    """A prompt with the completion to imitate; training on it reads `prompt.tokens + completion`."""

    prompt: Prompt
    completion: tuple[int, ...]
    """Token ids, the end token included."""


def to_prompts(
    rows: Sequence[Row], tokenizer: PreTrainedTokenizerBase, instruction: str, max_prompt_tokens: int
) -> tuple[Prompt, ...]:
    """Put each question into the tokenizer's chat template, up to where the assistant starts to write.

    Raises ValueError for a tokenizer without a chat template and for a prompt that does not fit.
    """
    if not tokenizer.chat_template:
        raise ValueError(
            f"the tokenizer {tokenizer.name_or_path!r} has no chat template; add chat_template.jinja to the folder of "
            "model.path, or use an instruction-tuned model's tokenizer"
        )
    before = f"{instruction}\n" if instruction else ""
    chats = [[{"role": "user", "content": before + row.question}] for row in rows]
    texts = [str(tokenizer.apply_chat_template(chat, add_generation_prompt=True, tokenize=False)) for chat in chats]
    prompts = []
    for row, text, tokens in zip(rows, texts, _encode(tokenizer, texts), strict=True):
        if len(tokens) > max_prompt_tokens:
            raise ValueError(
                f"the prompt of row {row.id!r} has {len(tokens)} tokens, but only {max_prompt_tokens} fit before the "
                "completion: raise engine.max_model_len, lower max_new_tokens, or remove the row"
            )
        prompts.append(Prompt(id=row.id, tokens=tokens, text=text, meta=row.meta))
    return tuple(prompts)


def to_demonstrations(
    rows: Sequence[Row],
    tokenizer: PreTrainedTokenizerBase,
    instruction: str,
    think_share: float,
    seed: int,
    max_tokens: int,
) -> tuple[Demonstration, ...]:
    """Write `<think>solution</think><answer>gold</answer>` and the end token after each prompt.

    The marks are text: one token each where the tokenizer has them as tokens, several otherwise.

    A row shows its solution if hash(seed, row id) < think_share; the others have an empty think. Prompts are exactly
    those of `to_prompts`: the completion is encoded on its own, so no token spans the boundary. Raises ValueError for a
    tokenizer without a chat template or end token, and for a demonstration longer than `max_tokens`.
    """
    if tokenizer.eos_token is None:
        raise ValueError(f"the tokenizer {tokenizer.name_or_path!r} has no end token; set eos_token in its config")
    prompts = to_prompts(rows, tokenizer, instruction, max_tokens)
    texts = []
    for row, prompt in zip(rows, prompts, strict=True):
        solution = row.solution if _share(seed, row.id) < think_share else ""
        # Templates of reasoning models may have opened the think already.
        opening = "" if prompt.text.rstrip().endswith("<think>") else "<think>"
        texts.append(f"{opening}{solution}</think><answer>{row.answer}</answer>{tokenizer.eos_token}")
    demonstrations = []
    for row, prompt, completion in zip(rows, prompts, _encode(tokenizer, texts), strict=True):
        if len(prompt.tokens) + len(completion) > max_tokens:
            raise ValueError(
                f"the demonstration of row {row.id!r} has {len(prompt.tokens)} + {len(completion)} tokens, more than "
                f"{max_tokens}: raise engine.max_model_len (and trainer.max_tokens), or remove the row"
            )
        demonstrations.append(Demonstration(prompt=prompt, completion=completion))
    return tuple(demonstrations)


@lru_cache(maxsize=4)
def order(num_rows: int, seed: int, epoch: int) -> tuple[int, ...]:
    """The permutation of 0..num_rows-1 in which an epoch visits the rows; depends on nothing but its arguments."""
    return tuple(random.Random(f"{seed}/{epoch}").sample(range(num_rows), num_rows))


def rows_for_step(num_rows: int, per_step: int, step: int, seed: int) -> list[int]:
    """Rows of step `step` (from 0): places step * per_step and on in the epochs laid end to end.

    There is no cursor to save: a resumed run asks for the same step and gets the same rows.
    """
    places = range(step * per_step, (step + 1) * per_step)
    return [order(num_rows, seed, place // num_rows)[place % num_rows] for place in places]


def prompts_for_step(prompts: Sequence[Prompt], per_step: int, step: int, seed: int) -> list[Prompt]:
    """The prompts of step `step` (from 1), each with an id of its own.

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


def _encode(tokenizer: PreTrainedTokenizerBase, texts: list[str]) -> list[tuple[int, ...]]:
    # All at once, which is several times faster. The template has written every special token already.
    return (
        [tuple(ids) for ids in tokenizer(texts, add_special_tokens=False, return_attention_mask=False)["input_ids"]]
        if texts
        else []
    )


def _share(seed: int, row_id: str) -> float:
    return int.from_bytes(blake2b(f"{seed}/{row_id}".encode(), digest_size=8).digest(), "big") / 2**64
