"""Stop a run whose reward fails, before it learns from what is left."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence

from rlkit.types import Score

MAX_MASKED = 0.05
"""Share of the rollouts of one step (or evaluation) that may have no verdict; a single one may in any case."""
FIXES = {
    "deadline": "raise reward.timeout, or make the reward faster",
    "timeout": "raise the limit that the reward sets itself in reward.kwargs, or make it faster",
    "worker_lost": "the reward ends its own process (out of memory?); lower reward.workers, or correct the reward",
    "infra": "the sandbox failed, not the model; see what `python -m sandbox doctor` says",
    "gold_unparsable": "correct or remove the rows that `rlkit reward verify-dataset` lists",
    "no_tests": "name the column that holds the tests, or remove the rows without any",
}
"""What to do about a reason for having no verdict."""
OTHERWISE = "let the reward return a number; None is for its own failures, not for wrong answers"


class NoVerdictError(RuntimeError):
    """Too many rollouts have no verdict; the message says why and what to do."""


def check_masked(masked: Counter[str], num_rollouts: int) -> None:
    """Raise NoVerdictError if, of the rollouts of a step, more than max(1, 5 %) have no verdict.

    `masked` counts them by reason. They are left out of their groups, so groups shrink and a reward that fails on some
    kind of answer would bias what is learned (verl issue 5635: scores were silently 0 for whole runs).
    """
    if masked.total() <= max(1, MAX_MASKED * num_rollouts):
        return
    counts = ", ".join(f"{reason} {count}" for reason, count in masked.most_common())
    raise NoVerdictError(
        f"{masked.total()} of {num_rollouts} rollouts have no verdict ({counts}), and at most {MAX_MASKED:.0%} may; "
        f"{FIXES.get(masked.most_common(1)[0][0], OTHERWISE)}. Then start the run again: it goes on from its newest "
        "checkpoint"
    )


def measured(scores: Sequence[Score]) -> dict[str, float]:
    """Means of what the rewards broke their verdicts down to, `part/NAME` and `log/NAME`, over those that have it."""
    found = defaultdict[str, list[float]](list)
    for score in scores:
        for kind, numbers in (("part", score.parts), ("log", score.logs)):
            for name, number in numbers.items():
                found[f"{kind}/{name}"].append(number)
    return {name: sum(numbers) / len(numbers) for name, numbers in found.items()}
