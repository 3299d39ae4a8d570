"""Preferences out of a journal: of each question the best answer beside the worst, where the reward tells them apart.

DeepSeek-R1's helpful preferences are made so: several answers to a question, each judged, and pairs kept whose
scores differ by more than 1 (arXiv:2501.12948v2, supplement on reward models).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

import pyarrow as pa

from rlkit.distill.journal import Journal, Told

SCHEMA = pa.schema(
    [
        *((name, pa.string()) for name in ("id", "question", "chosen", "rejected")),
        *((name, pa.float64()) for name in ("chosen_reward", "rejected_reward")),
    ]
)
"""The columns that `recipes.reward_model` reads, and the two rewards."""


FEW = "questions without a preference: fewer than two answers to compare"
SAME = "questions without a preference: all answers are one text"
CLOSE = "questions without a preference: rewards too close"
PAIRS, EMPTY = "preferences", "answers in no preference: empty"
"""Labels of what is counted."""


def pairs(journal: Journal, margin: float, left_out: Counter[str] | None = None) -> Iterator[dict[str, Any]]:
    """Yields (chosen, rejected) of every question with max r - min r >= margin over its finished answers, in order.

    An answer that was cut off has no end, one without a verdict no place, and an empty one nothing to learn from; none
    is in a pair. A judge that draws may value equal texts differently: then the next best or the next worst text stands
    in, whichever is farther from the other. `left_out` counts what has no pair, by why.
    """
    left_out = Counter() if left_out is None else left_out
    for row, answers in journal.answers():
        finished = [answer.sample for answer in answers if answer.finish == "stop" and answer.correct is not None]
        told = [journal.told(row, sample) for sample in finished]
        said = [one for one in told if one.answered.text.strip()]
        left_out[EMPTY] += len(told) - len(said)
        if len(said) < 2:
            left_out[FEW] += 1
            continue
        found = _farthest(said)
        if found is None:
            left_out[SAME] += 1
            continue
        best, worst = found
        if best.value - worst.value < margin:
            left_out[CLOSE] += 1
            continue
        question = journal.question(row)
        yield {
            "id": question.id,
            "question": question.question,
            "chosen": best.answered.text,
            "rejected": worst.answered.text,
            "chosen_reward": best.value,
            "rejected_reward": worst.value,
        }


def _farthest(told: Sequence[Told]) -> tuple[Told, Told] | None:
    """Returns the best and the worst of answers with different texts, the first of equals; None for a single text."""

    def value(one: Told) -> float:
        return one.value

    best, worst = max(told, key=value), min(told, key=value)
    if best.answered.text != worst.answered.text:
        return best, worst
    others = [one for one in told if one.answered.text != best.answered.text]
    if not others:
        return None
    next_best, next_worst = max(others, key=value), min(others, key=value)
    if next_best.value - worst.value > best.value - next_worst.value:
        return next_best, worst
    return best, next_worst
