"""From groups to judged groups: wait for verdicts, stop a run whose reward fails, find groups that teach nothing."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import Future, as_completed

from rlkit.algo.advantages import is_flat as rewards_are_flat
from rlkit.types import Group, Prompt, Score, ScoredGroup

Verdicts = Future[Sequence[Score]]
RewardFn = Callable[[Group], Verdicts]
"""Starts to judge the rollouts of a group and returns at once: groups are judged while others are being sampled."""

MAX_MASKED = 0.05
"""Share of the rollouts of one step (or evaluation) that may have no verdict; a single one may in any case."""
FIXES = {
    "deadline": "raise reward.timeout, or make the reward faster",
    "timeout": "raise the limit that the reward sets itself in reward.kwargs, or make it faster",
    "worker_lost": "the reward ends its own process (out of memory?); lower reward.workers, or correct the reward",
    "infra": "the sandbox or the judge's server failed, not the model; `python -m sandbox doctor` looks at the first, "
    "`rlkit reward score` says what the second answers",
    "no_verdict": "let the reward return a number; `rlkit reward score` shows what a judge without a verdict says",
    "gold_unparsable": "correct or remove the rows that `rlkit reward verify-dataset` lists",
    "no_tests": "name the column that holds the tests, or remove the rows without any",
}
"""What to do about a reason for having no verdict."""
OTHERWISE = "let the reward return a number; None is for its own failures, not for wrong answers"


class NoVerdictError(RuntimeError):
    """Too many rollouts have no verdict; the message says why and what to do."""


def collect(judged: Sequence[tuple[Group, Verdicts]], prompts: Sequence[Prompt]) -> list[ScoredGroup]:
    """Waits for all verdicts; groups come in the order in which they were finished, and leave in that of `prompts`.

    Raises what the reward raised, and NoVerdictError as soon as too many rollouts have no verdict.
    """
    num_rollouts, masked = sum(len(group.rollouts) for group, _ in judged), Counter[str]()
    for verdicts in as_completed([verdicts for _, verdicts in judged]):
        masked.update(score.kind for score in verdicts.result() if score.value is None)
        check_masked(masked, num_rollouts)
    scored = {
        group.prompt.id: ScoredGroup(prompt=group.prompt, rollouts=group.rollouts, scores=tuple(verdicts.result()))
        for group, verdicts in judged
    }
    return [scored[prompt.id] for prompt in prompts]


def check_masked(masked: Counter[str], num_rollouts: int) -> None:
    """Raises NoVerdictError if more than max(1, 5 %) of the rollouts of a step have no verdict.

    `masked` counts them by reason. They are left out of their groups, so groups shrink, and a reward that fails on some
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


def is_flat(group: ScoredGroup) -> bool:
    """Says whether all rollouts with a verdict have the same reward, so that none is better than its siblings."""
    return rewards_are_flat(rewards_of(group))


def rewards_of(group: ScoredGroup) -> list[float]:
    """The rewards of a group as numbers; NaN, which advantages leave out, where a rollout has no verdict."""
    return [float("nan") if score.value is None else score.value for score in group.scores]
