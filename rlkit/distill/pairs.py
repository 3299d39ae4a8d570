"""Preferences out of a journal: of each question the best answer beside the worst, where the reward tells them apart.

DeepSeek-R1's helpful preferences are made so: several answers to a question, each judged, and pairs kept whose
scores differ by more than 1 (arXiv:2501.12948v2, supplement on reward models).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pyarrow as pa

from rlkit.distill.journal import Journal

SCHEMA = pa.schema(
    [
        *((name, pa.string()) for name in ("id", "question", "chosen", "rejected")),
        *((name, pa.float64()) for name in ("chosen_reward", "rejected_reward")),
    ]
)
"""The columns that `recipes.reward_model` reads, and the two rewards."""


def pairs(journal: Journal, margin: float) -> Iterator[dict[str, Any]]:
    """Yields (chosen, rejected) of every question with max r - min r >= margin over its finished answers, in order.

    An answer that was cut off has no end, and one without a verdict no place; neither is in a pair.
    """
    for row, answers in journal.answers():
        finished = [answer.sample for answer in answers if answer.finish == "stop" and answer.correct is not None]
        told = [journal.told(row, sample) for sample in finished]
        if not told:
            continue
        best, worst = max(told, key=lambda one: one.value), min(told, key=lambda one: one.value)  # the first of equals
        if best.value - worst.value < margin:
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
