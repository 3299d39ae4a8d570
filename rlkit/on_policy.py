"""On-policy distillation: the student writes, the teacher says how likely each of its tokens is, the student learns.

SFT on a teacher's answers shows the student only texts that it would not write itself; here it learns where it errs
(GKD, arXiv:2306.13649; MiniLLM, arXiv:2306.08543). The teacher is an engine that nobody trains: it is asked for
log-probs of the student's very tokens, so both need the same tokenizer. The reward only watches.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from rlkit.algo import ReverseKlLoss, pack_taught
from rlkit.config import OnPolicyConfig
from rlkit.data.prompts import prompts_for_step
from rlkit.engine.base import Engine, rollout_seed
from rlkit.parts import Parts
from rlkit.rollout.single import judged_groups
from rlkit.types import Prompt, ScoredGroup, Step
from rlkit.watch.stats import Clock, describe_rollouts, speeds

ON_POLICY = "on_policy"
"""The name of the stage where a recipe gives it no other."""


def distill(
    parts: Parts,
    teacher: Engine,
    prompts: Sequence[Prompt],
    cfg: OnPolicyConfig,
    *,
    max_tokens: int,
    seed: int,
    start: int,
    stage: str = ON_POLICY,
) -> Iterator[Step]:
    """Runs steps start + 1 .. cfg.steps and yields after each; a pack holds at most `max_tokens`.

    A step depends on nothing but the weights, the optimiser, its own number and its stage, as in GRPO.
    """
    seed = rollout_seed(seed, stage, 0)
    for step in range(start + 1, cfg.steps + 1):
        drawn = prompts_for_step(prompts, cfg.prompts_per_step, step, seed)
        yield distill_step(step, drawn, parts, teacher, cfg, max_tokens=max_tokens, seed=seed, stage=stage)


def distill_step(
    step: int,
    prompts: Sequence[Prompt],
    parts: Parts,
    teacher: Engine,
    cfg: OnPolicyConfig,
    *,
    max_tokens: int,
    seed: int,
    stage: str = ON_POLICY,
) -> Step:
    """Takes one step down KL(student || teacher), on tokens that the student has just drawn (GKD, algorithm 1)."""
    clock, step_seed = Clock(), rollout_seed(seed, "step", step)
    groups = judged_groups(
        parts.engine,
        parts.reward,
        prompts,
        n=cfg.samples,
        sampling=cfg.sampling.seeded(step_seed),
        clock=clock,
    )
    numbers = describe_rollouts(groups, parts.engine.drafts())
    version = groups[0].rollouts[0].weight_version + 1
    with clock("teach"):
        taught = teacher_logprobs(teacher, groups)
    with clock("train"):
        batch = pack_taught(groups, taught, max_tokens=max_tokens, aggregate=cfg.aggregate)
        lr = cfg.schedule.at(step, cfg.steps)
        numbers |= parts.trainer.update(batch, ReverseKlLoss(), lr)
    with clock("sync"):
        agreement = parts.sync(version)
    numbers |= {"lr": lr} | agreement.numbers
    tokens = {"sample": sum(len(rollout.tokens) for group in groups for rollout in group.rollouts)}
    tokens |= {"teach": batch.num_tokens, "train": batch.num_tokens}
    return Step(stage=stage, step=step, numbers=numbers | speeds(clock.seconds, tokens), weight_version=version)


def teacher_logprobs(teacher: Engine, groups: Sequence[ScoredGroup]) -> list[list[list[float]]]:
    """Asks for log q of every sampled token, group by group and rollout by rollout, in nats, at temperature 1."""
    asked = [(*group.prompt.tokens, *rollout.tokens) for group in groups for rollout in group.rollouts]
    rows = iter(teacher.logprobs(asked))
    # A row begins with the second token of its sequence.
    return [[next(rows)[len(group.prompt.tokens) - 1 :] for _ in group.rollouts] for group in groups]
