"""Supervised fine-tuning: show the model demonstrations, a batch a step, and measure the loss on some never shown."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

from rlkit.algo import MtpTerm, SftLoss, pack_demonstrations
from rlkit.config import SftConfig
from rlkit.data.mixture import Mixture
from rlkit.train.base import Trainer
from rlkit.types import Demonstration, Step
from rlkit.watch.metrics import HELD_OUT
from rlkit.watch.stats import Clock, speeds


def finetune(
    trainer: Trainer,
    demonstrations: Mixture,
    cfg: SftConfig,
    *,
    max_tokens: int,
    seed: int,
    start: int,
    stage: str = "sft",
) -> Iterator[Step]:
    """Runs SFT steps start + 1 .. cfg.steps and yields after each; a pack holds at most `max_tokens`.

    The loss is the cross entropy of the trained tokens alone, in nats, without the term of multi-token prediction.
    """
    demonstrations.begin(start * cfg.batch_size)
    for step in range(start + 1, cfg.steps + 1):
        clock = Clock()
        with clock("train"):
            batch = pack_demonstrations(demonstrations.draw(step - 1, cfg.batch_size, seed), max_tokens=max_tokens)
            lr = cfg.schedule.at(step, cfg.steps)
            update = trainer.update(batch, SftLoss(), lr, MtpTerm(weight=cfg.mtp_weight, detached=False))
        speed = speeds(clock.seconds, {"train": batch.num_tokens})
        numbers = {**update, "lr": lr, "tokens": batch.num_tokens, "tok_s": speed["train_tok_s"]}
        if demonstrations.held_out and (step == cfg.steps or step % cfg.held_out_every == 0):
            numbers[HELD_OUT] = held_out_loss(trainer, demonstrations.held_out, max_tokens)
        if demonstrations.cursors:
            numbers["left_out"] = demonstrations.left_out
        yield Step(stage=stage, step=step, numbers=numbers, weight_version=None, cursors=demonstrations.cursors)


def held_out_loss(trainer: Trainer, demonstrations: Sequence[Demonstration], max_tokens: int) -> float:
    """Measures the cross entropy on demonstrations that are not trained on, in nats per token.

    L = - 1 / n sum_i sum_t log p(token_t of i), over the n tokens that training would learn

    At most `max_tokens` are run at once, or one demonstration.
    """
    logprobs: list[float] = []
    for few in _at_once(demonstrations, max_tokens):
        for shown, row in zip(few, trainer.logprobs([shown.tokens for shown in few]), strict=True):
            for first, end in shown.trained:
                logprobs += row[first - 1 : end - 1]  # a row begins with the second token
    return -math.fsum(logprobs) / len(logprobs)


def _at_once(demonstrations: Sequence[Demonstration], max_tokens: int) -> Iterator[list[Demonstration]]:
    few: list[Demonstration] = []
    for shown in demonstrations:
        if few and sum(len(one.tokens) for one in few) + len(shown.tokens) > max_tokens:
            yield few
            few = []
        few.append(shown)
    if few:
        yield few
