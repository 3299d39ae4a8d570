"""The loop with small in-process parts: no Ray, no vLLM, no DeepSpeed."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from rlkit.algo import NO_MTP, GrpoLoss, Loss, MtpTerm, Schedule
from rlkit.config import AlgoConfig, SamplingConfig
from rlkit.data.prompts import prompts_for_step
from rlkit.engine.base import rollout_seed
from rlkit.loop import grpo_step, train
from rlkit.model.files.sent import ADAPTER
from rlkit.parity import Agreement
from rlkit.parts import Parts
from rlkit.rollout.judging import NoVerdictError, RewardFn
from rlkit.types import (
    Batch,
    Group,
    Numbers,
    PolicyPack,
    Prompt,
    Rollout,
    Sampling,
    Score,
    Weights,
)
from rlkit.watch.metrics import REASON
from rlkit.watch.stats import average

CFG = AlgoConfig(
    steps=3,
    prompts_per_step=2,
    group_size=4,
    minibatches=1,
    scale="std",
    aggregate="token",
    refresh_reference_every=0,
    mtp_weight=0.0,
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
    mtp: list[MtpTerm] = field(default_factory=list)
    drafts: tuple[int, int] = (0, 0)


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

    def drafts(self) -> tuple[int, int]:
        return self.log.drafts

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

    def update(self, batch: Batch, loss: Loss, lr: float, mtp: MtpTerm = NO_MTP) -> Numbers:
        self.log.events.append(f"update lr={lr}")
        self.log.batches.append(batch)
        self.log.mtp.append(mtp)
        numbers = {"loss": 1.0, "grad_norm": 2.0, "entropy": 0.5, "kl": 0.1, "clip_fraction": 0.0, "logprob_gap": 1e-6}
        return numbers | {"skipped": 0.0}

    def weights(self, version: int = 0, form: str = "plain") -> Weights:
        return iter(())

    def refresh_reference(self) -> None:
        self.log.events.append("refresh")

    def begin_stage(self) -> None: ...
    def logprobs(self, sequences: Sequence[Sequence[int]]) -> list[list[float]]: ...  # type: ignore[empty-body]
    def trace(self, tokens: Sequence[int]) -> dict[str, Tensor]: ...  # type: ignore[empty-body]
    def save(self, folder: Path) -> None: ...
    def load(self, folder: Path) -> None: ...


def at_once(judge: Callable[[Group], Sequence[Score]]) -> RewardFn:
    """A reward whose verdicts are there when it is asked."""

    def reward(group: Group) -> Future[Sequence[Score]]:
        scores: Future[Sequence[Score]] = Future()
        scores.set_result(judge(group))
        return scores

    return reward


def by_place(*values: float | None, reason: str = "") -> Callable[[Group], list[Score]]:
    """The same values for the rollouts of every group."""
    return lambda group: [Score(value=value, reason=reason) for value in values]


FIRST_IS_BEST = by_place(1.0, 0.0, 0.0, 0.0)


def make(judge: Callable[[Group], Sequence[Score]] = FIRST_IS_BEST) -> tuple[Parts, Log]:
    log, reward = Log(), at_once(judge)

    def gate() -> Agreement:
        log.events.append("gate")
        return Agreement(gap=3e-6, mean=1e-6, limit="")

    parts = Parts(engine=CountingEngine(log), trainer=CountingTrainer(log), reward=reward, gate=gate)
    return parts, log


def taken(step: int, prompts: Sequence[Prompt], parts: Parts, cfg: AlgoConfig) -> Numbers:
    """What one step measured."""
    return grpo_step(step, prompts, parts, cfg, max_tokens=64, seed=0).numbers


def test_a_step_samples_scores_learns_and_publishes_in_this_order() -> None:
    parts, log = make()
    stats = taken(4, PROMPTS[:2], parts, CFG)
    assert log.events == ["generate p0,p1", "update lr=0.5", "load 1", "gate"]
    assert (stats["reward"], stats["accuracy"], stats["groups"], stats["flat_groups"], stats["masked"]) == (
        0.25,
        0.25,
        2,
        0,
        0,
    )
    assert stats["length"] == (1 + 2 + 3 + 4) / 4
    assert stats["truncated"] == 0.25
    assert (stats["parity"], stats["lr"]) == (3e-6, 0.5)
    assert stats["train_tok_s"] * stats["train_s"] == pytest.approx(2 * (4 * 2 + 10))


@pytest.mark.parametrize("form", ["fp8", ADAPTER])
def test_an_engine_is_sent_what_it_takes_with_its_version(form: str) -> None:
    parts, log = make()
    sent = []

    class Sending(CountingTrainer):
        def weights(self, version: int = 0, form: str = "plain") -> Weights:
            return {f"{form} of version {version}": torch.zeros(3, 3)}.items()

    class Keeping(CountingEngine):
        def load(self, weights: Weights, version: int) -> None:
            sent.append((version, [name for name, _ in weights]))

    replace(parts, engine=Keeping(log), trainer=Sending(log), form=form).sync(7)
    assert sent == [(7, [f"{form} of version 7"])] and log.events == ["gate"]


def test_the_batch_carries_advantages_and_old_log_probs_and_no_reference() -> None:
    parts, log = make()
    taken(1, PROMPTS[:1], parts, replace(CFG, prompts_per_step=1))
    [pack] = log.batches[0].packs
    assert isinstance(pack, PolicyPack)
    trained_T = pack.weights_T != 0
    assert log.batches[0].temperature == 0.8
    assert set(pack.old_logprobs_T[trained_T].tolist()) == {-0.5}
    assert pack.ref_logprobs_T is None, "only a trainer that keeps a reference knows what it says"
    # one of four rewarded: 1.5 for its single token, -0.5 for the 2 + 3 + 4 tokens of the others
    assert sorted(pack.advantages_T[trained_T].tolist()) == pytest.approx([-0.5] * 9 + [1.5])


@pytest.mark.parametrize("rewards", [(1.0, 1.0, 1.0, 1.0), (0.3, 0.1 + 0.2, 0.3, 0.3), (1.1 + 2.2, 3.3, 3.3, 3.3),
                                     (0.1 + 0.2 - 0.3, 0.0, 0.0, 0.0), (-0.3, -0.1 - 0.2, -0.3, -0.3)])  # fmt: skip
def test_a_step_of_flat_groups_is_skipped(rewards: tuple[float, ...]) -> None:
    """Rewards that differ by rounding alone are equal."""
    parts, log = make(by_place(*rewards))
    stats = taken(1, PROMPTS[:2], parts, CFG)
    assert log.events == ["generate p0,p1"]
    assert (stats["flat_groups"], stats["groups"]) == (2, 2)
    assert not {"kl", "loss", "parity", "lr"} & stats.keys()


def test_only_flat_groups_are_dropped() -> None:
    parts, log = make(lambda group: by_place(float(group.prompt.id == "p1"), 0.0, 0.0, 0.0)(group))
    stats = taken(1, PROMPTS[:2], parts, CFG)
    assert stats["flat_groups"] == 1
    assert log.batches[0].num_samples == 4
    assert 2 not in log.batches[0].packs[0].tokens_T.tolist(), "tokens of the flat group's prompt were trained on"


def test_rollouts_without_a_verdict_are_left_out_of_the_group() -> None:
    """5 of 100 have none: not too many, and the other 95 are compared as if those had not been drawn."""
    unknown = (*(None,) * 5, *(1.0,) * 19, *(0.0,) * 76)
    parts, log = make(by_place(*unknown, reason="infra"))
    stats = taken(1, PROMPTS[:1], parts, replace(CFG, prompts_per_step=1, group_size=100))
    assert (stats["masked"], stats["reward"], stats["accuracy"]) == (5, 0.2, 0.2)
    assert log.batches[0].num_samples == 95
    # mean 0.2, std sqrt((19 * 0.8^2 + 76 * 0.2^2) / 94)
    std = ((19 * 0.64 + 76 * 0.04) / 94) ** 0.5
    advantages = [pack.advantages_T[pack.weights_T != 0] for pack in log.batches[0].packs]  # type: ignore[attr-defined]
    found = sorted({round(a, 5) for a in torch.cat(advantages).tolist()})
    assert found == pytest.approx([-0.2 / std, 0.8 / std], abs=1e-4)


@pytest.mark.parametrize(
    ("group_size", "masked", "stops"), [(100, 5, False), (100, 6, True), (4, 1, False), (4, 2, True), (21, 2, True)]
)
def test_a_step_with_too_many_rollouts_without_a_verdict_stops(group_size: int, masked: int, stops: bool) -> None:
    """More than 5 %, and more than one: a single failure in a small step is no reason."""
    values = (*(None,) * masked, *(float(i % 2) for i in range(group_size - masked)))
    parts, log = make(by_place(*values, reason="deadline"))
    cfg = replace(CFG, prompts_per_step=1, group_size=group_size)
    if not stops:
        assert taken(1, PROMPTS[:1], parts, cfg)["masked"] == masked
        return
    words = rf"{masked} of {group_size} rollouts have no verdict \(deadline {masked}\), .*; raise reward.timeout"
    with pytest.raises(NoVerdictError, match=words):
        taken(1, PROMPTS[:1], parts, cfg)
    assert log.events == ["generate p0"], "nothing is learned from what is left"


def test_what_the_reward_raises_stops_the_step() -> None:
    parts, log = make()

    def fails(group: Group) -> Future[Sequence[Score]]:
        scores: Future[Sequence[Score]] = Future()
        scores.set_exception(ValueError("reward 'x' raised"))
        return scores

    with pytest.raises(ValueError, match="reward 'x' raised"):
        taken(1, PROMPTS[:2], replace(parts, reward=fails), CFG)
    assert log.events == ["generate p0,p1"]


def test_reasons_and_times_are_counted() -> None:
    def judge(group: Group) -> list[Score]:
        reasons = ("correct", "wrong: got 8", "wrong: got 9", "")
        return [Score(value=float(i == 0), reason=r, seconds=float(i)) for i, r in enumerate(reasons)]

    parts, _ = make(judge)
    values = taken(1, PROMPTS[:2], parts, CFG)
    assert {key: n for key, n in values.items() if key.startswith(REASON)} == {"reason/correct": 2, "reason/wrong": 4}
    # of 0 0 1 1 2 2 3 3 s
    assert (values["reward_p50_s"], values["reward_p99_s"]) == (2.0, 3.0)


def test_parts_and_logs_are_averaged_over_the_rollouts_that_have_them() -> None:
    def judge(group: Group) -> list[Score]:
        first = Score(value=1.2, reason="correct", parts={"right": 1.0, "form": 0.2}, logs={"steps": 5.0})
        return [first, Score(value=0.2, reason="wrong", parts={"right": 0.0, "form": 0.2}), *[NOTHING] * 2]

    NOTHING = Score(value=0.0, reason="")
    values = taken(1, PROMPTS[:2], make(judge)[0], CFG)
    assert (values["part/right"], values["part/form"], values["log/steps"]) == (0.5, pytest.approx(0.2), 5.0)
    assert values["accuracy"] == 0.25


def test_groups_that_finish_in_another_order_change_nothing() -> None:
    """Engines send groups as they finish, and verdicts come when they come; what is learned is the same to the bit."""
    (straight, one), (turned, two) = make(), make()
    engine = turned.engine
    assert isinstance(engine, CountingEngine)
    generate = engine.generate
    engine.generate = lambda *args, **kwargs: generate(*args, **kwargs)[::-1]  # type: ignore[method-assign]
    taken(1, PROMPTS[:4], straight, CFG)
    taken(1, PROMPTS[:4], turned, CFG)
    for a, b in zip(one.batches[0].packs, two.batches[0].packs, strict=True):
        assert isinstance(a, PolicyPack) and isinstance(b, PolicyPack)
        assert torch.equal(a.tokens_T, b.tokens_T) and torch.equal(a.advantages_T, b.advantages_T)


def test_a_group_is_scored_while_the_next_is_sampled() -> None:
    parts, log = make()

    def generate(prompts: Sequence[Prompt], n: int, sampling: Sampling) -> Iterator[Group]:
        for prompt in prompts:
            log.events.append(f"sampled {prompt.id}")
            yield Group(prompt=prompt, rollouts=tuple(CountingEngine(log).rollout(i) for i in range(n)))

    def reward(group: Group) -> Future[Sequence[Score]]:
        log.events.append(f"asked {group.prompt.id}")
        return at_once(FIRST_IS_BEST)(group)

    assert isinstance(parts.engine, CountingEngine)
    parts.engine.generate = generate  # type: ignore[method-assign, assignment]
    taken(1, PROMPTS[:2], replace(parts, reward=reward), CFG)
    assert log.events[:4] == ["sampled p0", "asked p0", "sampled p1", "asked p1"]


def test_minibatches_are_separate_optimiser_steps() -> None:
    parts, log = make()
    taken(1, PROMPTS[:2], parts, replace(CFG, minibatches=4))
    assert [batch.num_samples for batch in log.batches] == [2] * 4
    assert log.events.count("gate") == 1


def test_every_rollout_of_a_run_has_its_own_seed() -> None:
    parts, log = make()
    list(train(parts, PROMPTS, replace(CFG, steps=6), max_tokens=64, seed=0, start=0))
    assert len(set(log.seeds)) == len(log.seeds) == 6 * 2 * 4


def test_a_run_that_starts_later_sees_what_the_whole_run_saw() -> None:
    whole, later = make(), make()
    list(train(whole[0], PROMPTS, CFG, max_tokens=64, seed=1, start=0))
    list(train(later[0], PROMPTS, CFG, max_tokens=64, seed=1, start=2))
    generated = [event for event in whole[1].events if event.startswith("generate")]
    assert [event for event in later[1].events if event.startswith("generate")] == generated[2:]
    assert later[1].seeds == whole[1].seeds[2 * 8 :]


def test_the_reference_is_refreshed_on_schedule() -> None:
    parts, log = make()
    list(train(parts, PROMPTS, replace(CFG, steps=5, refresh_reference_every=2), max_tokens=64, seed=0, start=0))
    assert log.events.count("refresh") == 2


def test_average_of_updates_by_hand() -> None:
    one = {"loss": 1.0, "entropy": 3.0, "logprob_gap": 1e-6, "max_violation/1": 2.0, "mine": 5.0, "skipped": 0}
    two = {"loss": 3.0, "entropy": 1.0, "logprob_gap": 0.7, "max_violation/1": 1.0, "mine": -1.0, "skipped": 0}
    # later minibatches are off-policy by design, so their gap says nothing
    expected = {"loss": 2.0, "entropy": 2.0, "logprob_gap": 1e-6, "max_violation/1": 1.5, "mine": 2.0, "skipped": 0}
    assert average([one, two]) == expected
    assert average([one]) == one


def test_updates_that_were_skipped_are_counted_and_not_averaged() -> None:
    """What comes first behind them is still on-policy: the weights have not moved."""
    nothing = {"loss": math.nan, "logprob_gap": math.nan, "skipped": 1}
    one, two = ({"loss": loss, "logprob_gap": 1e-6 * loss, "skipped": 0} for loss in (1.0, 3.0))
    assert average([nothing, one, nothing, two]) == {"loss": 2.0, "logprob_gap": 1e-6, "skipped": 2}
    alone = average([nothing, nothing])
    assert alone["skipped"] == 2 and math.isnan(alone["loss"])


def test_multi_token_prediction_learns_apart_from_the_policy() -> None:
    parts, log = make()
    stats = taken(1, PROMPTS[:2], parts, replace(CFG, mtp_weight=0.3))
    assert log.mtp == [MtpTerm(weight=0.3, detached=True)]
    assert "mtp_loss" not in stats, "this trainer has no modules for it"


def test_accepted_drafts_are_counted() -> None:
    parts, log = make()
    assert "drafts_accepted" not in taken(1, PROMPTS[:2], parts, CFG)
    log.drafts = (40, 30)
    assert taken(1, PROMPTS[:2], parts, CFG)["drafts_accepted"] == 0.75


def test_phases_are_timed() -> None:
    parts, _ = make()
    values = taken(1, PROMPTS[:2], parts, CFG)
    assert {"sample_s", "score_s", "train_s", "sync_s", "sample_tok_s", "train_tok_s"} <= values.keys()
    assert all(values[key] > 0 for key in ("sample_s", "train_s"))


def test_a_prompt_that_comes_twice_in_a_step_gets_seeds_of_its_own() -> None:
    """Five prompts, two a step: the third step holds the last of one epoch and the first of the next."""
    parts, log = make()
    list(train(parts, PROMPTS[:1], replace(CFG, steps=2), max_tokens=64, seed=0, start=0))
    assert len(set(log.seeds)) == len(log.seeds) == 2 * 2 * 4
    drawn = [prompt.id for step in (1, 2, 3) for prompt in prompts_for_step(PROMPTS[:1], 2, step, seed=0)]
    assert drawn == ["p0", "p0#2"] * 3
