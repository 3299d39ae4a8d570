"""The numbers of a step, under the names that people read: of its rollouts, of its optimiser steps, of its time."""

from __future__ import annotations

import time
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

from rlkit.types import Numbers, Score, ScoredGroup

ON_POLICY = frozenset({"logprob_gap"})
"""Numbers that compare the trainer with the engine, which only the first minibatch of a step can: the weights of the
later ones have moved on purpose."""


@dataclass(slots=True)
class Clock:
    """Seconds spent by phase."""

    seconds: dict[str, float] = field(default_factory=lambda: defaultdict(float))

    @contextmanager
    def __call__(self, phase: str) -> Iterator[None]:
        """Adds the time of the block to a phase."""
        start = time.perf_counter()
        yield
        self.seconds[phase] += time.perf_counter() - start


def describe_rollouts(scored: Sequence[ScoredGroup], drafts: tuple[int, int] = (0, 0)) -> dict[str, float]:
    """Measures what was sampled and what the reward said of it.

    `weight_version` is that of the weights that sampled. Rewards and accuracy are means over the rollouts with a
    verdict, lengths count tokens, `masked` counts rollouts without a verdict, and `reason/NAME` what the reward said
    ("correct", "wrong", "timeout"). `drafts` are the tokens that speculative decoding proposed and accepted.
    """
    rollouts = [rollout for group in scored for rollout in group.rollouts]
    scores = [score for group in scored for score in group.scores]
    rewards = [score.value for score in scores if score.value is not None]
    seconds = sorted(score.seconds for score in scores)
    numbers: dict[str, float] = {
        "weight_version": rollouts[0].weight_version,
        "reward": sum(rewards) / max(1, len(rewards)),
        "accuracy": sum(score.correct for score in scores) / max(1, len(rewards)),
        "length": sum(len(rollout.tokens) for rollout in rollouts) / len(rollouts),
        "truncated": sum(rollout.finish_reason == "length" for rollout in rollouts) / len(rollouts),
        "masked": len(rollouts) - len(rewards),
        "groups": len(scored),
    }
    numbers |= {f"reason/{kind}": count for kind, count in Counter(s.kind for s in scores if s.kind).items()}
    numbers |= part_means(scores)
    numbers |= {"reward_p50_s": seconds[len(scores) // 2], "reward_p99_s": seconds[len(scores) * 99 // 100]}
    return numbers | ({"drafts_accepted": drafts[1] / drafts[0]} if drafts[0] else {})


def part_means(scores: Sequence[Score]) -> dict[str, float]:
    """Averages what the rewards broke their verdicts down to, `part/NAME` and `log/NAME`, over those that have it."""
    found = defaultdict[str, list[float]](list)
    for score in scores:
        for kind, numbers in (("part", score.parts), ("log", score.logs)):
            for name, number in numbers.items():
                found[f"{kind}/{name}"].append(number)
    return {name: sum(numbers) / len(numbers) for name, numbers in found.items()}


def average(updates: Sequence[Numbers]) -> dict[str, float]:
    """Averages the optimiser steps of one GRPO step, number by number; `ON_POLICY` numbers are those of the first.

    An update that was skipped has numbers that are none: it is only counted, unless all were skipped.
    """
    taken = [update for update in updates if not update["skipped"]] or updates
    means = {name: sum(update[name] for update in taken) / len(taken) for name in taken[0]}
    on_policy = {name: taken[0][name] for name in ON_POLICY & means.keys()}
    return means | on_policy | {"skipped": sum(update["skipped"] for update in updates)}


def speeds(seconds: Mapping[str, float], tokens: Mapping[str, int]) -> dict[str, float]:
    """Seconds of each phase, `sample_s`, and tokens per second of those whose tokens are given, `sample_tok_s`."""
    numbers = {f"{phase}_s": spent for phase, spent in seconds.items()}
    return numbers | {f"{phase}_tok_s": count / max(seconds[phase], 1e-9) for phase, count in tokens.items()}
