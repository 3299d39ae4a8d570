"""GRPO, top to bottom: sample, judge, compare within groups, learn, publish.

Ray, vLLM and DeepSpeed stay behind `Engine` and `Trainer`; the same loop runs in one process or on a cluster. What is
left out: sampling ahead of training (every rollout comes from the newest weights), and filling up dropped flat groups.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from rlkit.algo import MtpTerm, group_advantages, pack_rollouts
from rlkit.config import AlgoConfig
from rlkit.data.prompts import prompts_for_step
from rlkit.engine.base import rollout_seed
from rlkit.parts import Parts
from rlkit.rollout.judging import is_flat, rewards_of
from rlkit.rollout.single import judged_groups
from rlkit.types import Prompt, Step
from rlkit.watch.stats import Clock, average, describe_rollouts, speeds

GRPO = "grpo"
"""The name of the stage where a recipe gives it no other."""


def train(
    parts: Parts,
    prompts: Sequence[Prompt],
    cfg: AlgoConfig,
    *,
    max_tokens: int,
    seed: int,
    start: int,
    stage: str = GRPO,
) -> Iterator[Step]:
    """Runs GRPO steps start + 1 .. cfg.steps and yields after each; a pack holds at most `max_tokens`.

    A step depends on nothing but the weights, the optimiser, its own number and its stage, so a run that continues from
    a checkpoint of step `start` goes exactly where the uninterrupted one went.
    """
    # A second stage must not draw the same prompts with the same seeds as the first.
    seed = seed if stage == GRPO else rollout_seed(seed, stage, 0)
    for step in range(start + 1, cfg.steps + 1):
        drawn = prompts_for_step(prompts, cfg.prompts_per_step, step, seed)
        yield grpo_step(step, drawn, parts, cfg, max_tokens=max_tokens, seed=seed, stage=stage)


def grpo_step(
    step: int,
    prompts: Sequence[Prompt],
    parts: Parts,
    cfg: AlgoConfig,
    *,
    max_tokens: int,
    seed: int,
    stage: str = GRPO,
) -> Step:
    """Takes one GRPO step (DeepSeekMath, arXiv:2402.03300, algorithm 1; DeepSeek-R1, arXiv:2501.12948, section 2.2.1).

    When all groups are flat there is nothing to learn: the weights stay, so the engine is up to date already.
    """
    clock, step_seed = Clock(), rollout_seed(seed, "step", step)
    scored = judged_groups(
        parts.engine,
        parts.reward,
        prompts,
        n=cfg.group_size,
        sampling=cfg.sampling.seeded(step_seed),
        clock=clock,
    )
    kept = [group for group in scored if not is_flat(group)]
    numbers = describe_rollouts(scored, parts.engine.drafts()) | {"flat_groups": len(scored) - len(kept)}
    tokens = {"sample": sum(len(rollout.tokens) for group in scored for rollout in group.rollouts)}
    version = scored[0].rollouts[0].weight_version

    if kept:
        with clock("train"):
            batches = pack_rollouts(
                kept,
                [group_advantages(rewards_of(group), cfg.scale) for group in kept],
                max_tokens=max_tokens,
                temperature=cfg.sampling.temperature,
                num_batches=cfg.minibatches,
                aggregate=cfg.aggregate,
                seed=step_seed,
            )
            lr = cfg.schedule.at(step, cfg.steps)
            mtp = MtpTerm(weight=cfg.mtp_weight, detached=True)  # its gradient stays in the MTP modules
            updates = [parts.trainer.update(batch, cfg.objective, lr, mtp) for batch in batches]
        with clock("sync"):
            version += 1
            agreement = parts.sync(version)
        numbers |= average(updates) | {"lr": lr} | agreement.numbers
        tokens["train"] = sum(batch.num_tokens for batch in batches)

    if cfg.refresh_reference_every and step % cfg.refresh_reference_every == 0:
        parts.trainer.refresh_reference()
    return Step(stage=stage, step=step, numbers=numbers | speeds(clock.seconds, tokens), weight_version=version)
