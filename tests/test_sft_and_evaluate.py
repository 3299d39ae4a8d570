"""SFT and evaluation with a real trainer and engine, in this process."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import replace

import pytest
import torch

from rlkit.algo import MtpTerm, Schedule
from rlkit.config import SftConfig
from rlkit.data.mixture import Mixture, Part
from rlkit.evaluate import evaluate
from rlkit.sft import finetune, held_out_loss
from rlkit.types import Demonstration, Group, Prompt, Rollout, Sampling, Score
from tests.test_loop import CountingTrainer, Log
from tests.train.test_trainer import make_trainer, weights

CFG = SftConfig(
    steps=30,
    epochs=0,
    batch_size=8,
    think_share=1.0,
    held_out_every=0,
    mtp_weight=0.3,
    schedule=Schedule(lr=1e-2, warmup_steps=0, kind="constant", final_ratio=1.0),
)
ROWS = tuple(Demonstration.of((2, 10 + i, 3), (30 + i, 31 + i, 1), str(i)) for i in range(8))
SHOWN = Mixture([Part(name="rows", weight=1, shown=ROWS)])


def test_demonstrations_are_learned() -> None:
    trainer = make_trainer("torch")
    losses = [done.numbers["loss"] for done in finetune(trainer, SHOWN, CFG, max_tokens=64, seed=0, start=0)]
    assert losses[-1] < 0.2 < 2 < losses[0]
    sequences = [shown.tokens for shown in ROWS]
    # the loss is that of the completions alone: prompts, which no one can predict, stay unlearned
    learned = torch.tensor([row[2:] for row in trainer.logprobs(sequences)])
    assert learned.exp().min() > 0.5
    assert -learned.mean().item() == pytest.approx(losses[-1], abs=0.1)


@pytest.mark.slow
def test_a_stage_that_continues_equals_one_that_was_not_interrupted() -> None:
    whole, halves = make_trainer("torch"), make_trainer("torch")
    list(finetune(whole, SHOWN, CFG, max_tokens=64, seed=3, start=0))
    for done in finetune(halves, SHOWN, CFG, max_tokens=64, seed=3, start=0):
        if done.step == 11:
            break
    seen = [done.step for done in finetune(halves, SHOWN, CFG, max_tokens=64, seed=3, start=11)]
    assert seen == list(range(12, 31))
    for name, tensor in weights(whole).items():
        assert torch.equal(weights(halves)[name], tensor), name


def test_first_loss_is_the_cross_entropy_of_the_batch() -> None:
    trainer = make_trainer("torch")
    sequences = [shown.tokens for shown in ROWS]
    expected = -torch.tensor([row[2:] for row in trainer.logprobs(sequences)]).double().mean().item()
    first = next(finetune(trainer, SHOWN, CFG, max_tokens=20, seed=0, start=0))
    assert first.numbers["loss"] == pytest.approx(expected, rel=1e-5)
    assert (first.stage, first.step, first.numbers["tokens"], first.weight_version) == ("sft", 1, 8 * 6, None)
    assert not {"kl", "clip_fraction", "logprob_gap"} & first.numbers.keys(), "they do not apply, so they are absent"


def test_steps_follow_the_schedule_and_mtp_reaches_the_whole_model() -> None:
    """Every step has its own learning rate; the term of multi-token prediction is not detached in SFT."""
    schedule = Schedule(lr=0.5, warmup_steps=2, kind="linear", final_ratio=0.1)
    log = Log()
    cfg = replace(CFG, steps=5, schedule=schedule)
    done = list(finetune(CountingTrainer(log), SHOWN, cfg, max_tokens=64, seed=0, start=0))
    expected = [schedule.at(step, 5) for step in (1, 2, 3, 4, 5)]
    assert len(set(expected)) == 5
    assert log.events == [f"update lr={lr}" for lr in expected]
    assert [step.numbers["lr"] for step in done] == expected
    assert log.mtp == [MtpTerm(weight=0.3, detached=False)] * 5


def test_an_epoch_shows_every_demonstration_once() -> None:
    log = Log()
    cfg = replace(CFG, steps=8, batch_size=3)
    list(finetune(CountingTrainer(log), SHOWN, cfg, max_tokens=64, seed=5, start=0))
    shown = [int(tokens[1]) for batch in log.batches for pack in batch.packs for tokens in pack.tokens_T.view(-1, 6)]
    # eight steps of three are three epochs of eight; the rows of an epoch come in an order of its own
    assert sorted(shown) == sorted([10 + i for i in range(8)] * 3)


class Fading:
    """Gives the token at place t a log-prob of -t, and counts how many tokens it was asked at once."""

    def __init__(self) -> None:
        self.asked: list[int] = []

    def logprobs(self, sequences: Sequence[Sequence[int]]) -> list[list[float]]:
        self.asked.append(sum(map(len, sequences)))
        return [[-float(place) for place in range(1, len(sequence))] for sequence in sequences]


def test_held_out_loss_by_hand() -> None:
    """Places 2, 3, 6 of one demonstration and 1 of another: (2 + 3 + 6 + 1) / 4."""
    two_turns = Demonstration(id="a", tokens=(5,) * 8, trained=((2, 4), (6, 7)))
    shown, trainer = [two_turns, Demonstration.of((5,), (6,))], Fading()
    assert held_out_loss(trainer, shown, max_tokens=9) == 3.0  # type: ignore[arg-type]
    assert held_out_loss(trainer, shown, max_tokens=10) == 3.0  # type: ignore[arg-type]
    assert trainer.asked == [8, 2, 10]


def test_held_out_loss_is_measured_in_its_rhythm_and_at_the_end() -> None:
    trainer = make_trainer("torch")
    mixture = Mixture([Part(name="rows", weight=1, shown=ROWS[:6])], ROWS[6:])
    done = list(finetune(trainer, mixture, replace(CFG, steps=8, held_out_every=3), max_tokens=64, seed=0, start=0))
    losses = {step.step: step.numbers["held_out_loss"] for step in done if "held_out_loss" in step.numbers}
    assert list(losses) == [3, 6, 8]
    learned = torch.tensor([row[2:] for row in trainer.logprobs([shown.tokens for shown in ROWS[6:]])]).double()
    assert losses[8] == pytest.approx(-learned.mean().item(), rel=1e-6)


class Parrot:
    """Answers every question with its id."""

    def generate(self, prompts: Sequence[Prompt], n: int, sampling: Sampling) -> list[Group]:
        assert n == 1
        return [Group(prompt=prompt, rollouts=(self.rollout(prompt),)) for prompt in prompts]

    def rollout(self, prompt: Prompt) -> Rollout:
        cut = prompt.id == "2"
        return Rollout(
            tokens=(5,) * (int(prompt.id) + 1),
            logprobs=(-1.0,) * (int(prompt.id) + 1),
            text=prompt.id,
            finish_reason="length" if cut else "stop",
            weight_version=0,
            seed=0,
        )


def judge(group: Group) -> Future[Sequence[Score]]:
    values = {"0": 1.0, "1": 0.0, "2": None, "3": 0.5}
    scores: Future[Sequence[Score]] = Future()
    scores.set_result([Score(value=values[group.prompt.id], reason=f"r{group.prompt.id}")])
    return scores


def test_accuracy_counts_full_marks_and_no_verdict_as_not_solved() -> None:
    problems = [
        Prompt(id=str(i), tokens=(1,), text=f"p{i}", meta={"question": f"q{i}", "answer": i} if i else {})
        for i in range(4)
    ]
    sampling = Sampling(temperature=1.0, top_p=1.0, max_new_tokens=9, seed=0)
    found = evaluate(Parrot(), judge, problems, sampling, name="x", step=7)  # type: ignore[arg-type]
    assert (found.accuracy, found.problems, found.step, found.name) == (0.25, 4, 7, "x")
    assert (found.mean_length, found.truncated) == (2.5, 0.25)
    assert [sample.correct for sample in found.samples] == [True, False, False, False]
    assert [(sample.question, sample.answer) for sample in found.samples[:2]] == [("p0", ""), ("q1", "1")]
    assert found.samples[2].reason == "r2"
