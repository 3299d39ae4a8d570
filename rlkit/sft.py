"""Supervised fine-tuning: show the model demonstrations, a batch a step."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field

from rlkit.algo import MtpTerm, SftLoss, pack_demonstrations
from rlkit.config import SftConfig
from rlkit.data.prompts import Demonstration, rows_for_step
from rlkit.train.base import Trainer
from rlkit.types import flat_numbers


@dataclass(frozen=True, slots=True, kw_only=True)
class SftStats:
    """What one SFT step measured."""

    loss: float
    """Cross entropy of the completion tokens, in nats; without the term of multi-token prediction."""
    entropy: float
    grad_norm: float
    lr: float
    tokens: int
    """Prompt and completion tokens of the batch."""
    tok_s: float
    load: Mapping[str, float] = field(default_factory=dict)
    """As in `UpdateStats`."""
    mtp_loss: float | None = None
    """As in `UpdateStats`."""

    def values(self) -> dict[str, float]:
        """Flat names and numbers, as the step line and metrics.jsonl show them."""
        return flat_numbers(asdict(self))


def finetune(
    trainer: Trainer, demonstrations: Sequence[Demonstration], cfg: SftConfig, *, max_tokens: int, seed: int, start: int
) -> Iterator[tuple[int, SftStats]]:
    """Run SFT steps start + 1 .. cfg.steps and yield after each; the loss is that of the completions only."""
    for step in range(start + 1, cfg.steps + 1):
        began = time.perf_counter()
        rows = rows_for_step(len(demonstrations), cfg.batch_size, step - 1, seed)
        shown = [(demonstrations[row].prompt.tokens, demonstrations[row].completion) for row in rows]
        batch = pack_demonstrations(shown, max_tokens=max_tokens)
        lr = cfg.schedule.at(step, cfg.steps)
        update = trainer.update(batch, SftLoss(), lr, MtpTerm(weight=cfg.mtp_weight, detached=False))
        yield (
            step,
            SftStats(
                loss=update.loss,
                entropy=update.entropy,
                grad_norm=update.grad_norm,
                lr=lr,
                tokens=batch.num_tokens,
                tok_s=batch.num_tokens / (time.perf_counter() - began),
                load=update.load,
                mtp_loss=update.mtp_loss,
            ),
        )
