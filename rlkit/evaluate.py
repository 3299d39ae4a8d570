"""Held-out accuracy: one completion per problem, judged by the run's own reward."""

from __future__ import annotations

from collections.abc import Sequence

from rlkit.engine.base import Engine
from rlkit.rollout.judging import RewardFn
from rlkit.rollout.single import judged_groups
from rlkit.types import Prompt, Sampling, ScoredGroup
from rlkit.watch.evaluations import Evaluation, SampleText
from rlkit.watch.stats import Clock


def evaluate(
    engine: Engine, reward: RewardFn, problems: Sequence[Prompt], sampling: Sampling, *, name: str, step: int
) -> Evaluation:
    """Samples one completion for each problem and counts those that solve it (`Score.correct`).

    A problem without a verdict counts as not solved, so accuracy cannot rise because a verifier failed.
    """
    scored = judged_groups(engine, reward, problems, n=1, sampling=sampling, clock=Clock())
    samples = tuple(_sample(group) for group in scored)
    rollouts = [group.rollouts[0] for group in scored]
    return Evaluation(
        name=name,
        step=step,
        accuracy=sum(sample.correct for sample in samples) / len(samples),
        problems=len(samples),
        mean_length=sum(len(rollout.tokens) for rollout in rollouts) / len(rollouts),
        truncated=sum(rollout.finish_reason == "length" for rollout in rollouts) / len(rollouts),
        samples=samples,
    )


def _sample(group: ScoredGroup) -> SampleText:
    verdict = group.scores[0]
    return SampleText(
        question=str(group.prompt.meta.get("question", group.prompt.text)),
        answer=str(group.prompt.meta.get("answer", "")),
        completion=group.rollouts[0].text,
        correct=verdict.correct,
        reason=verdict.reason,
    )
