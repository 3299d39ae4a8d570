"""What the settings of GRPO change in a step: learning rate, minibatches, advantages, weights, loss."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from rlkit.algo import Loss, Schedule
from rlkit.algo.losses.custom import UserLoss
from rlkit.loop import grpo_step, train
from rlkit.types import PolicyPack
from tests.test_loop import CFG, PROMPTS, make, taken


def test_the_learning_rate_is_that_of_the_step() -> None:
    """Every step of a schedule that never stands still, in the update and in the numbers."""
    schedule = Schedule(lr=0.5, warmup_steps=2, kind="cosine", final_ratio=0.1)
    parts, log = make()
    cfg = replace(CFG, steps=5, schedule=schedule)
    done = list(train(parts, PROMPTS, cfg, max_tokens=64, seed=0, start=0))
    expected = [schedule.at(step, 5) for step in (1, 2, 3, 4, 5)]
    assert len(set(expected)) == 5
    assert [event for event in log.events if event.startswith("update")] == [f"update lr={lr}" for lr in expected]
    assert [step.numbers["lr"] for step in done] == expected


def dealt(step: int, seed: int) -> list[list[tuple[int, int]]]:
    """Which rollouts, by the prompt's second token and the length, each minibatch of a step holds."""
    parts, log = make()
    grpo_step(step, PROMPTS[:2], parts, replace(CFG, minibatches=4), max_tokens=64, seed=seed)
    found = []
    for batch in log.batches:
        samples = [tokens for pack in batch.packs for tokens in pack.tokens_T.split(list(pack.lengths))]
        found.append(sorted((int(tokens[1]), len(tokens)) for tokens in samples))
    return found


def test_minibatches_are_dealt_anew_in_every_step() -> None:
    """From the step's own seed: the same step is dealt alike, another step or another run differently."""
    assert dealt(1, seed=0) == dealt(1, seed=0)
    deals = [dealt(step, seed) for step in (1, 2, 3, 4) for seed in (0, 1)]
    assert all(deals.count(deal) == 1 for deal in deals)


@pytest.mark.parametrize(("scale", "aggregate"), [("std", "token"), ("none", "token"), ("std", "sequence")])
def test_advantages_and_weights_follow_the_configuration(scale: str, aggregate: str) -> None:
    parts, log = make()
    taken(1, PROMPTS[:1], parts, replace(CFG, prompts_per_step=1, scale=scale, aggregate=aggregate))
    [pack] = log.batches[0].packs
    assert isinstance(pack, PolicyPack)
    best = {"std": 1.5, "none": 0.75}[scale]
    assert float(pack.advantages_T.max()) == pytest.approx(best)
    # the best rollout has one token of ten, or a quarter of the weight
    share = {"token": 0.1, "sequence": 0.25}[aggregate]
    assert float(pack.weights_T[pack.advantages_T > 0].sum()) == pytest.approx(share)


def test_a_loss_of_the_users_own_takes_the_place_of_grpos(tmp_path: Path) -> None:
    parts, log = make()
    seen: list[Loss] = []
    update = parts.trainer.update
    parts.trainer.update = lambda batch, loss, lr, mtp: seen.append(loss) or update(batch, loss, lr, mtp)  # type: ignore[method-assign, func-returns-value]
    (tmp_path / "mine.py").write_text("def mine(logprobs_T, pack): ...\n")
    cfg = replace(CFG, loss_fn=f"{tmp_path / 'mine.py'}:mine")
    taken(1, PROMPTS[:2], parts, cfg)
    assert seen == [UserLoss(name=cfg.loss_fn)] and len(log.batches) == 1


def test_two_stages_draw_different_prompts_with_different_seeds_and_versions_count_on() -> None:
    """The first stage has the seeds that a run of it alone has."""
    parts, log = make()
    first = [step.weight_version for step in train(parts, PROMPTS, CFG, max_tokens=64, seed=0, start=0)]
    alone, drawn = list(log.seeds), [event for event in log.events if event.startswith("generate")]
    log.seeds.clear()
    log.events.clear()
    second = [s.weight_version for s in train(parts, PROMPTS, CFG, max_tokens=64, seed=0, start=0, stage="settle")]
    assert not set(alone) & set(log.seeds)
    assert drawn != [event for event in log.events if event.startswith("generate")]
    assert first + second == list(range(1, 2 * CFG.steps + 1))
