"""GRPO, top to bottom: sample, score, compare within groups, learn, publish.

Ray, vLLM and DeepSpeed stay behind `Engine` and `Trainer`; the same loop runs in one process or on a cluster. What is
left out: sampling ahead of training (every rollout comes from the newest weights), and filling up dropped flat groups.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, as_completed
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

from rlkit.algo import MtpTerm, group_advantages, pack_rollouts
from rlkit.config import AlgoConfig
from rlkit.data.prompts import rows_for_step
from rlkit.engine.base import Engine, rollout_seed
from rlkit.train.base import Trainer
from rlkit.types import Group, Prompt, Score, ScoredGroup, StepStats, UpdateStats
from rlkit.watch.verdicts import check_masked, measured

Verdicts = Future[Sequence[Score]]
RewardFn = Callable[[Group], Verdicts]
"""Starts to judge the rollouts of a group and returns at once: groups are judged while others are being sampled."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Parts:
    """The real components of a run, or any others that keep to the same protocols."""

    engine: Engine
    trainer: Trainer
    reward: RewardFn
    gate: Callable[[Engine, Trainer], float]
    """Compares engine and trainer, returns the log-prob gap in nats and raises when it is too large."""
    max_tokens: int
    """Tokens of a pack."""

    def sync(self, version: int) -> float:
        """Publish the trainer's weights to the engine and check that both now say the same."""
        self.engine.load(self.trainer.weights(), version)
        return self.gate(self.engine, self.trainer)


@dataclass(slots=True)
class Clock:
    """Seconds spent by phase."""

    seconds: dict[str, float] = field(default_factory=lambda: dict.fromkeys(("sample", "score", "train", "sync"), 0.0))

    @contextmanager
    def __call__(self, phase: str) -> Iterator[None]:
        """Add the time of the block to a phase."""
        start = time.perf_counter()
        yield
        self.seconds[phase] += time.perf_counter() - start


def train(
    parts: Parts, prompts: Sequence[Prompt], cfg: AlgoConfig, *, seed: int, start: int
) -> Iterator[tuple[int, StepStats]]:
    """Run GRPO steps start + 1 .. cfg.steps; yields after each, when weights, engine and reference are consistent.

    A step depends on nothing but the weights, the optimiser and its own number, so a run that continues from a
    checkpoint of step `start` goes exactly where the uninterrupted one went.
    """
    for step in range(start + 1, cfg.steps + 1):
        rows = rows_for_step(len(prompts), cfg.prompts_per_step, step - 1, seed)
        stats = grpo_step(step, distinct([prompts[row] for row in rows]), parts, cfg, seed)
        if cfg.refresh_reference_every and step % cfg.refresh_reference_every == 0:
            parts.trainer.refresh_reference()
        yield step, stats


def grpo_step(step: int, prompts: Sequence[Prompt], parts: Parts, cfg: AlgoConfig, seed: int) -> StepStats:
    """One GRPO step (DeepSeekMath, arXiv:2402.03300, algorithm 1; DeepSeek-R1, arXiv:2501.12948, section 2.2.1)."""
    clock, step_seed = Clock(), rollout_seed(seed, "step", step)
    with clock("sample"):
        groups = parts.engine.generate(prompts, n=cfg.group_size, sampling=cfg.sampling.seeded(step_seed))
        judged = [(group, parts.reward(group)) for group in groups]
    with clock("score"):
        scored = collect(judged, prompts)
    kept = [group for group in scored if not is_flat(group)]
    stats = describe(scored, len(scored) - len(kept), parts.engine.drafts(), clock.seconds)
    if not kept:
        return stats  # nothing to compare, nothing to learn: the weights stay, so the engine is up to date

    with clock("train"):
        batches = pack_rollouts(
            kept,
            [group_advantages([verdict_or_nan(verdict) for verdict in group.scores], cfg.scale) for group in kept],
            max_tokens=parts.max_tokens,
            temperature=cfg.sampling.temperature,
            num_batches=cfg.minibatches,
            aggregate=cfg.aggregate,
            seed=step_seed,
        )
        batches = [parts.trainer.with_reference(batch) for batch in batches]
        lr = cfg.schedule.at(step, cfg.steps)
        mtp = MtpTerm(weight=cfg.mtp_weight, detached=True)  # its gradient stays in the MTP modules
        updates = [parts.trainer.update(batch, cfg.loss, lr, mtp) for batch in batches]
    with clock("sync"):
        parity = parts.sync(step)
    return replace(
        stats,
        lr=lr,
        train_tokens=sum(batch.num_tokens for batch in batches),
        update=average(updates),
        parity=parity,
    )


def distinct(prompts: Sequence[Prompt]) -> list[Prompt]:
    """Prompts with ids of their own: where two epochs meet, one may come twice, and its seeds come from its id."""
    seen = Counter[str]()
    renamed = []
    for prompt in prompts:
        seen[prompt.id] += 1
        renamed.append(replace(prompt, id=f"{prompt.id}#{seen[prompt.id]}") if seen[prompt.id] > 1 else prompt)
    return renamed


def collect(judged: Sequence[tuple[Group, Verdicts]], prompts: Sequence[Prompt]) -> list[ScoredGroup]:
    """Wait for all verdicts; groups come in the order in which they were finished, and leave in that of `prompts`.

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


def is_flat(group: ScoredGroup) -> bool:
    """Whether all rollouts with a verdict have the same reward, so that none is better than its siblings."""
    return len({score.value for score in group.scores if score.value is not None}) < 2


def verdict_or_nan(score: Score) -> float:
    """The reward as a number; NaN, which advantages leave out, where there is no verdict."""
    return float("nan") if score.value is None else score.value


def average(updates: Sequence[UpdateStats]) -> UpdateStats:
    """The mean of the optimiser steps of one GRPO step; the gap is that of the first, the only one on-policy."""
    count = len(updates)
    mtp_losses = [update.mtp_loss for update in updates if update.mtp_loss is not None]
    return UpdateStats(
        loss=sum(update.loss for update in updates) / count,
        grad_norm=sum(update.grad_norm for update in updates) / count,
        entropy=sum(update.entropy for update in updates) / count,
        kl=sum(update.kl for update in updates) / count,
        clip_fraction=sum(update.clip_fraction for update in updates) / count,
        logprob_gap=updates[0].logprob_gap,
        load={key: sum(update.load[key] for update in updates) / count for key in updates[0].load},
        mtp_loss=sum(mtp_losses) / count if mtp_losses else None,
    )


def describe(
    scored: Sequence[ScoredGroup], num_flat: int, drafts: tuple[int, int], seconds: dict[str, float]
) -> StepStats:
    """The numbers of a step that are known before learning."""
    rollouts = [rollout for group in scored for rollout in group.rollouts]
    scores = [score for group in scored for score in group.scores]
    rewards = [score.value for score in scores if score.value is not None]
    seconds_sorted = sorted(score.seconds for score in scores)
    num_tokens = sum(len(rollout.tokens) for rollout in rollouts)
    return StepStats(
        weight_version=rollouts[0].weight_version,
        reward=sum(rewards) / max(1, len(rewards)),
        accuracy=sum(score.correct for score in scores) / max(1, len(rewards)),
        length=num_tokens / len(rollouts),
        truncated=sum(rollout.finish_reason == "length" for rollout in rollouts) / len(rollouts),
        masked=len(rollouts) - len(rewards),
        reasons=Counter(score.kind for score in scores if score.kind),
        measured=measured(scores),
        reward_p50_s=seconds_sorted[len(scores) // 2],
        reward_p99_s=seconds_sorted[len(scores) * 99 // 100],
        groups=len(scored),
        drafts=drafts,
        flat_groups=num_flat,
        sample_tokens=num_tokens,
        train_tokens=0,
        lr=0.0,
        update=None,
        parity=None,
        seconds=seconds,
    )
