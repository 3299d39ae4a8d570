"""Rollouts of one turn: a prompt goes in, completions come out and are judged."""

from __future__ import annotations

from collections.abc import Sequence

from rlkit.engine.base import Engine
from rlkit.rollout.judging import RewardFn, collect
from rlkit.types import Prompt, Sampling, ScoredGroup
from rlkit.watch.stats import Clock


def judged_groups(
    engine: Engine, reward: RewardFn, prompts: Sequence[Prompt], *, n: int, sampling: Sampling, clock: Clock
) -> list[ScoredGroup]:
    """Draws `n` completions for each prompt and judges them; the groups come in the order of the prompts.

    Each group goes to the reward as soon as it is finished, so most verdicts are there when the last group arrives.
    The clock counts waiting for the rest as "score". Raises as `collect` does.
    """
    with clock("sample"):
        groups = engine.generate(prompts, n=n, sampling=sampling)
        judged = [(group, reward(group)) for group in groups]
    with clock("score"):
        return collect(judged, prompts)
