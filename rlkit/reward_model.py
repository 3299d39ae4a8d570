"""A reward model, learned from preferences: a batch of pairs or labelled completions a step.

The head gives every sample one number. DeepSeek-V3's is trained from the SFT checkpoint on preferences that include the
chain of thought (arXiv:2412.19437, section 5.2.1).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from rlkit.algo import BradleyTerryLoss, PointwiseLoss, pack_labelled, pack_pairs
from rlkit.config import RewardModelConfig
from rlkit.data.preferences import Labelled, Pair
from rlkit.data.prompts import rows_for_step
from rlkit.train.base import Trainer
from rlkit.types import Batch, Step
from rlkit.watch.preferences import Judgements
from rlkit.watch.stats import Clock, speeds

STAGE = "reward_model"
LOSSES = {"pairwise": BradleyTerryLoss(), "pointwise": PointwiseLoss()}


def learn_preferences(
    trainer: Trainer,
    preferences: Sequence[Pair] | Sequence[Labelled],
    cfg: RewardModelConfig,
    *,
    max_tokens: int,
    seed: int,
    start: int,
    stage: str = STAGE,
) -> Iterator[Step]:
    """Runs steps start + 1 .. cfg.steps and yields after each; a pack holds at most `max_tokens`, or one pair."""
    for step in range(start + 1, cfg.steps + 1):
        clock = Clock()
        with clock("train"):
            rows = rows_for_step(len(preferences), cfg.batch_size, step - 1, seed)
            batch = packed([preferences[row] for row in rows], max_tokens)
            lr = cfg.schedule.at(step, cfg.steps)
            update = trainer.update(batch, LOSSES[cfg.kind], lr)
        speed = speeds(clock.seconds, {"train": batch.num_tokens})
        numbers = {**update, "lr": lr, "tokens": batch.num_tokens, "tok_s": speed["train_tok_s"]}
        yield Step(stage=stage, step=step, numbers=numbers, weight_version=None)


def packed(preferences: Sequence[Pair | Labelled], max_tokens: int) -> Batch:
    """Packs the preferences of one step, which are all of one kind."""
    ids = [each.id for each in preferences]
    pairs = [(each.chosen, each.rejected) for each in preferences if isinstance(each, Pair)]
    if pairs:
        return pack_pairs(pairs, max_tokens=max_tokens, ids=ids)
    labelled = [(each.tokens, each.label) for each in preferences if isinstance(each, Labelled)]
    return pack_labelled(labelled, max_tokens=max_tokens, ids=ids)


def judge_preferences(
    trainer: Trainer, preferences: Sequence[Pair] | Sequence[Labelled], *, max_tokens: int, name: str, step: int
) -> Judgements:
    """Scores held-out preferences, at most `max_tokens` (or one sample) at a time."""
    samples = [tokens for each in preferences for tokens in _samples(each)]
    scores: list[float] = []
    waiting: list[Sequence[int]] = []
    for tokens in samples:
        if waiting and sum(map(len, waiting)) + len(tokens) > max_tokens:
            scores += trainer.scores(waiting)
            waiting = []
        waiting.append(tokens)
    scores += trainer.scores(waiting)
    labels = tuple(each.label for each in preferences if isinstance(each, Labelled))
    lengths = tuple(map(len, samples))
    return Judgements(name=name, step=step, scores=tuple(scores), lengths=lengths, labels=labels)


def _samples(preference: Pair | Labelled) -> tuple[tuple[int, ...], ...]:
    return (preference.chosen, preference.rejected) if isinstance(preference, Pair) else (preference.tokens,)
