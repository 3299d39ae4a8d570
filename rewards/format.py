"""Check that a completion is `<think>...</think><answer>...</answer>`: each tag once, in order, and nothing outside.

What is not covered: what is thought or answered, and tags of other names.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rewards.base import Reward, thought_is_open


def think_answer(completion: str, prompt: str | Sequence[Mapping[str, Any]] = "", answer_tags: bool = True) -> Reward:
    """Gives 1 if the form is kept, else 0 (the format reward of DeepSeek-R1, arXiv:2501.12948, section 2.2.2).

    A prompt that ends with `<think>` has opened the thought: the completion must not do so again. With
    `answer_tags=False` all that follows `</think>` is the answer. A blank answer never passes, a blank thought does.
    Reasons: correct, missing_tag, repeated_tag, wrong_order, text_outside, empty_answer.
    """
    is_open = thought_is_open(prompt)
    tags = ["<think>", "</think>"] + (["<answer>", "</answer>"] if answer_tags else [])
    counts = [completion.count(tag) + (is_open and tag == "<think>") for tag in tags]
    if max(counts) > 1:
        return Reward(0.0, "repeated_tag")
    if min(counts) < 1:
        return Reward(0.0, "missing_tag")
    between, rest = [], completion
    for tag in tags[1:] if is_open else tags:
        text, found, rest = rest.partition(tag)
        if not found:
            return Reward(0.0, "wrong_order")
        between.append(text)
    # `between` is now what precedes each tag, `rest` what follows the last.
    if not is_open and between.pop(0).strip():
        return Reward(0.0, "text_outside")
    _, *after_thought = between
    if not answer_tags:
        return Reward(1.0, "correct") if rest.strip() else Reward(0.0, "empty_answer")
    gap, answer = after_thought
    if gap.strip() or rest.strip():
        return Reward(0.0, "text_outside")
    return Reward(1.0, "correct") if answer.strip() else Reward(0.0, "empty_answer")
