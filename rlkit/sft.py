"""Supervised fine-tuning: show the model demonstrations, a batch a step."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from rlkit.algo import MtpTerm, SftLoss, pack_demonstrations
from rlkit.config import SftConfig
from rlkit.data.prompts import Demonstration, rows_for_step
from rlkit.train.base import Trainer
from rlkit.types import Step
from rlkit.watch.stats import Clock, speeds


def finetune(
    trainer: Trainer,
    demonstrations: Sequence[Demonstration],
    cfg: SftConfig,
    *,
    max_tokens: int,
    seed: int,
    start: int,
    stage: str = "sft",
) -> Iterator[Step]:
    """Runs SFT steps start + 1 .. cfg.steps and yields after each; a pack holds at most `max_tokens`.

    The loss is the cross entropy of the completions alone, in nats, without the term of multi-token prediction.
    """
    for step in range(start + 1, cfg.steps + 1):
        clock = Clock()
        with clock("train"):
            rows = rows_for_step(len(demonstrations), cfg.batch_size, step - 1, seed)
            shown = [(demonstrations[row].prompt.tokens, demonstrations[row].completion) for row in rows]
            ids = [demonstrations[row].prompt.id for row in rows]
            batch = pack_demonstrations(shown, max_tokens=max_tokens, ids=ids)
            lr = cfg.schedule.at(step, cfg.steps)
            update = trainer.update(batch, SftLoss(), lr, MtpTerm(weight=cfg.mtp_weight, detached=False))
        speed = speeds(clock.seconds, {"train": batch.num_tokens})
        numbers = {**update, "lr": lr, "tokens": batch.num_tokens, "tok_s": speed["train_tok_s"]}
        yield Step(stage=stage, step=step, numbers=numbers, weight_version=None)
