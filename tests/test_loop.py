"""The loop with small in-process parts: no Ray, no vLLM, no DeepSpeed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from rlkit.algo import GrpoLoss, Loss, Schedule
from rlkit.config import AlgoConfig, SamplingConfig
from rlkit.engine.base import rollout_seed
from rlkit.loop import Parts, average, distinct, grpo_step, is_flat, train
from rlkit.types import (
    Batch,
    Group,
    PolicyPack,
    Prompt,
    Rollout,
    Sampling,
    Score,
    ScoredGroup,
    UpdateStats,
    Weights,
)

CFG = AlgoConfig(
    steps=3,
    prompts_per_step=2,
    group_size=4,
    minibatches=1,
    scale="std",
    aggregate="token",
    refresh_reference_every=0,
    sampling=SamplingConfig(temperature=0.8, top_p=1.0, max_new_tokens=5),
    loss=GrpoLoss(kl_coef=0.1),
    schedule=Schedule(lr=0.5, warmup_steps=0, kind="constant", final_ratio=1.0),
)
PROMPTS = tuple(Prompt(id=f"p{i}", tokens=(1, 2 + i), text=f"p{i}", meta={}) for i in range(6))


@dataclass
class Log:
    """What the parts were asked to do, in order."""

    events: list[str] = field(default_factory=list)
    batches: list[Batch] = field(default_factory=list)
    seeds: list[int] = field(default_factory=list)


@dataclass
class CountingEngine:
    """Writes the same few tokens for everyone; rollout i of a group is i tokens longer."""

    log: Log
    version: int = 0

    def generate(self, prompts: Sequence[Prompt], n: int, sampling: Sampling) -> list[Group]:
        self.log.events.append(f"generate {','.join(prompt.id for prompt in prompts)}")
        self.log.seeds += [rollout_seed(sampling.seed, prompt.id, i) for prompt in prompts for i in range(n)]
        return [Group(prompt=p, rollouts=tuple(self.rollout(i) for i in range(n))) for p in prompts]

    def rollout(self, i: int) -> Rollout:
        return Rollout(
            tokens=tuple(range(7, 8 + i)),
            logprobs=(-0.5,) * (i + 1),
            text=str(i),
            finish_reason="stop" if i else "length",
            weight_version=self.version,
            seed=i,
        )

    def load(self, weights: Weights, version: int) -> None:
        self.log.events.append(f"load {version}")
        self.version = version

    def logprobs(self, sequences: Sequence[Sequence[int]]) -> list[list[float]]:
        raise AssertionError("the gate of these tests does not ask")

    def trace(self, tokens: Sequence[int]) -> dict[str, Tensor]:
        raise AssertionError("the gate of these tests does not ask")


@dataclass
class CountingTrainer:
    log: Log

    def update(self, batch: Batch, loss: Loss, lr: float) -> UpdateStats:
        self.log.events.append(f"update lr={lr}")
        self.log.batches.append(batch)
        return UpdateStats(loss=1.0, grad_norm=2.0, entropy=0.5, kl=0.1, clip_fraction=0.0, logprob_gap=1e-6)

    def with_reference(self, batch: Batch) -> Batch:
        self.log.events.append("reference")
        packs = [replace(pack, ref_logprobs_T=torch.full_like(pack.weights_T, -9.0)) for pack in batch.packs]  # type: ignore[call-arg]
        return replace(batch, packs=tuple(packs))

    def weights(self) -> Weights:
        return iter(())

    def refresh_reference(self) -> None:
        self.log.events.append("refresh")

    def begin_stage(self) -> None: ...
    def logprobs(self, sequences: Sequence[Sequence[int]]) -> list[list[float]]: ...  # type: ignore[empty-body]
    def trace(self, tokens: Sequence[int]) -> dict[str, Tensor]: ...  # type: ignore[empty-body]
    def save(self, folder: Path) -> None: ...
    def load(self, folder: Path) -> None: ...


def first_is_best(groups: Sequence[Group]) -> list[list[Score]]:
    return [[Score(value=float(i == 0), reason="") for i in range(len(g.rollouts))] for g in groups]


def make(reward=first_is_best) -> tuple[Parts, Log]:
    log = Log()

    def gate(engine: object, trainer: object) -> float:
        log.events.append("gate")
        return 3e-6

    parts = Parts(engine=CountingEngine(log), trainer=CountingTrainer(log), reward=reward, gate=gate, max_tokens=64)
    return parts, log


def test_a_step_samples_scores_learns_and_publishes_in_this_order() -> None:
    parts, log = make()
    stats = grpo_step(4, PROMPTS[:2], parts, CFG, seed=0)
    assert log.events == ["generate p0,p1", "reference", "update lr=0.5", "load 4", "gate"]
    assert (stats.reward, stats.accuracy, stats.groups, stats.flat_groups, stats.masked) == (0.25, 0.25, 2, 0, 0)
    assert stats.length == (1 + 2 + 3 + 4) / 4
    assert stats.truncated == 0.25
    assert (stats.parity, stats.lr, stats.train_tokens) == (3e-6, 0.5, 2 * (4 * 2 + 10))


def test_the_batch_carries_advantages_old_and_reference_log_probs() -> None:
    parts, log = make()
    grpo_step(1, PROMPTS[:1], parts, replace(CFG, prompts_per_step=1), seed=0)
    [pack] = log.batches[0].packs
    assert isinstance(pack, PolicyPack)
    trained_T = pack.weights_T != 0
    assert log.batches[0].temperature == 0.8
    assert set(pack.old_logprobs_T[trained_T].tolist()) == {-0.5}
    assert set(pack.ref_logprobs_T[trained_T].tolist()) == {-9.0}
    # one of four rewarded: 1.5 for its single token, -0.5 for the 2 + 3 + 4 tokens of the others
    assert sorted(pack.advantages_T[trained_T].tolist()) == pytest.approx([-0.5] * 9 + [1.5])


def test_a_step_of_flat_groups_is_skipped() -> None:
    parts, log = make(lambda groups: [[Score(value=1.0, reason="")] * len(g.rollouts) for g in groups])
    stats = grpo_step(1, PROMPTS[:2], parts, CFG, seed=0)
    assert log.events == ["generate p0,p1"]
    assert (stats.flat_groups, stats.groups, stats.update, stats.parity) == (2, 2, None, None)
    assert "kl" not in stats.values()


def test_only_flat_groups_are_dropped() -> None:
    def reward(groups: Sequence[Group]) -> list[list[Score]]:
        flat, useful = groups
        return [[Score(value=0.0, reason="")] * len(flat.rollouts), *first_is_best([useful])]

    parts, log = make(reward)
    stats = grpo_step(1, PROMPTS[:2], parts, CFG, seed=0)
    assert stats.flat_groups == 1
    assert log.batches[0].num_samples == 4
    assert 2 not in log.batches[0].packs[0].tokens_T.tolist(), "tokens of the flat group's prompt were trained on"


def test_rollouts_without_a_verdict_are_left_out_of_the_group() -> None:
    def reward(groups: Sequence[Group]) -> list[list[Score]]:
        values = [None, 1.0, 0.0, None]
        return [[Score(value=value, reason="infra") for value in values] for _ in groups]

    parts, log = make(reward)
    stats = grpo_step(1, PROMPTS[:2], parts, CFG, seed=0)
    assert stats.masked == 4
    assert stats.reward == 0.5
    assert log.batches[0].num_samples == 4
    # two verdicts, one right: +-sqrt(1/2), whatever the masked ones might have been
    found = {round(abs(a), 6) for a in log.batches[0].packs[0].advantages_T.tolist() if a}  # type: ignore[attr-defined]
    assert found == {round(0.5**0.5, 6)}


def test_flat_means_equal_among_the_verdicts() -> None:
    def group(*values: float | None) -> ScoredGroup:
        scores = tuple(Score(value=value, reason="") for value in values)
        return ScoredGroup(prompt=PROMPTS[0], rollouts=(), scores=scores)

    assert is_flat(group(1.0, 1.0, None))
    assert is_flat(group(None, None))
    assert is_flat(group(0.5))
    assert not is_flat(group(0.0, 1.0, None))


def test_minibatches_are_separate_optimiser_steps() -> None:
    parts, log = make()
    grpo_step(1, PROMPTS[:2], parts, replace(CFG, minibatches=4), seed=0)
    assert [batch.num_samples for batch in log.batches] == [2] * 4
    assert log.events.count("gate") == 1


def test_every_rollout_of_a_run_has_its_own_seed() -> None:
    parts, log = make()
    list(train(parts, PROMPTS, replace(CFG, steps=6), seed=0, start=0))
    assert len(set(log.seeds)) == len(log.seeds) == 6 * 2 * 4


def test_a_run_that_starts_later_sees_what_the_whole_run_saw() -> None:
    whole, later = make(), make()
    list(train(whole[0], PROMPTS, CFG, seed=1, start=0))
    list(train(later[0], PROMPTS, CFG, seed=1, start=2))
    generated = [event for event in whole[1].events if event.startswith("generate")]
    assert [event for event in later[1].events if event.startswith("generate")] == generated[2:]
    assert later[1].seeds == whole[1].seeds[2 * 8 :]


def test_the_reference_is_refreshed_on_schedule() -> None:
    parts, log = make()
    list(train(parts, PROMPTS, replace(CFG, steps=5, refresh_reference_every=2), seed=0, start=0))
    assert log.events.count("refresh") == 2


def test_average_of_updates_by_hand() -> None:
    one = UpdateStats(loss=1.0, grad_norm=2.0, entropy=3.0, kl=0.0, clip_fraction=0.5, logprob_gap=1e-6)
    two = UpdateStats(loss=3.0, grad_norm=4.0, entropy=1.0, kl=0.2, clip_fraction=0.0, logprob_gap=0.7)
    mean = average([one, two])
    assert (mean.loss, mean.grad_norm, mean.entropy, mean.kl, mean.clip_fraction) == (2.0, 3.0, 2.0, 0.1, 0.25)
    assert mean.logprob_gap == 1e-6, "later minibatches are off-policy by design, so their gap says nothing"


def test_phases_are_timed() -> None:
    parts, _ = make()
    values = grpo_step(1, PROMPTS[:2], parts, CFG, seed=0).values()
    assert {"sample_s", "score_s", "train_s", "sync_s", "sample_tok_s", "train_tok_s"} <= values.keys()
    assert all(values[key] > 0 for key in ("sample_s", "train_s"))


def test_a_prompt_that_comes_twice_in_a_step_gets_seeds_of_its_own() -> None:
    """Five prompts, two a step: the third step holds the last of one epoch and the first of the next."""
    parts, log = make()
    list(train(parts, PROMPTS[:1], replace(CFG, steps=2), seed=0, start=0))
    assert len(set(log.seeds)) == len(log.seeds) == 2 * 2 * 4
    assert [prompt.id for prompt in distinct([PROMPTS[0], PROMPTS[1], PROMPTS[0]])] == ["p0", "p1", "p0#2"]
