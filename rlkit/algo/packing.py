"""From samples to packs: end to end in rows of bounded length, weighted so that any split has the same gradient."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields, replace
from typing import Any, TypeVar

import torch
from torch import Tensor

from rlkit.types import (
    Batch,
    Demonstration,
    LabelledPack,
    Pack,
    PairPack,
    PolicyPack,
    Prompt,
    Rollout,
    ScoredGroup,
    TaughtPack,
)

AGGREGATES = ("token", "sequence")
P = TypeVar("P", bound=Pack)


def pack_rollouts(
    groups: Sequence[ScoredGroup],
    advantages: Sequence[Tensor],
    *,
    max_tokens: int,
    temperature: float,
    num_batches: int = 1,
    aggregate: str = "token",
    seed: int = 0,
) -> list[Batch]:
    """Turns judged groups into the batches of one or more optimiser steps; rollouts without a verdict are left out.

    aggregate="token":     w_t = 1 / trained tokens of the batch              every token counts alike (DAPO)
    aggregate="sequence":  w_t = 1 / (rollouts of the batch x |o_i|)          every rollout counts alike (DeepSeekMath)

    Args:
        groups: judged groups.
        advantages: one tensor [G] per group.
        max_tokens: a pack holds at most this many tokens, or one sample.
        temperature: the sampling temperature.
        num_batches: with more than 1, rollouts are dealt at random into that many batches (R1: 16).
        aggregate: "token" or "sequence".
        seed: of that deal.
    """
    samples = [
        _policy_sample(group.prompt, rollout, float(advantage))
        for group, advantages_G in zip(groups, advantages, strict=True)
        for rollout, score, advantage in zip(group.rollouts, group.scores, advantages_G, strict=True)
        if score.value is not None and rollout.tokens
    ]
    order = torch.arange(len(samples))
    if num_batches > 1:
        order = torch.randperm(len(samples), generator=torch.Generator().manual_seed(seed))
    dealt = [[samples[i] for i in part] for part in order.tensor_split(min(num_batches, max(1, len(samples))))]
    return [_batch(part, max_tokens=max_tokens, temperature=temperature, aggregate=aggregate) for part in dealt]


def pack_taught(
    groups: Sequence[ScoredGroup],
    taught: Sequence[Sequence[Sequence[float]]],
    *,
    max_tokens: int,
    aggregate: str = "token",
) -> Batch:
    """Turns the student's rollouts into the batch of one step; `taught` has the teacher's log-probs of every token.

    Args:
        groups: rollouts, sampled at temperature 1.
        taught: of each rollout of each group log p of its tokens under the teacher, in nats.
        max_tokens: a pack holds at most this many tokens, or one sample.
        aggregate: "token" or "sequence", as in `pack_rollouts`.
    """
    samples = [
        TaughtPack(
            **_sampled(group.prompt, rollout),
            teacher_logprobs_T=_after_prompt(len(group.prompt.tokens), torch.tensor(logprobs)),
        )
        for group, of_group in zip(groups, taught, strict=True)
        for rollout, logprobs in zip(group.rollouts, of_group, strict=True)
    ]
    return _batch(samples, max_tokens=max_tokens, temperature=1.0, aggregate=aggregate)


def pack_demonstrations(demonstrations: Sequence[Demonstration], *, max_tokens: int) -> Batch:
    """Turns demonstrations into the batch of one SFT step; all trained tokens weigh alike, all others nothing."""
    samples = [
        Pack(
            tokens_T=torch.tensor(shown.tokens),
            lengths=(len(shown.tokens),),
            weights_T=_inside(shown),
            ids=(shown.id,) if shown.id else (),
        )
        for shown in demonstrations
    ]
    return _batch(samples, max_tokens=max_tokens, temperature=1.0, aggregate="token")


def pack_pairs(
    pairs: Sequence[tuple[Sequence[int], Sequence[int]]], *, max_tokens: int, ids: Sequence[str] = ()
) -> Batch:
    """Turns (chosen, rejected) pairs of whole samples into the batch of one step; every pair weighs alike.

    A pair is in one pack, which holds at most `max_tokens` or one pair.
    """
    samples = [
        PairPack(
            tokens_T=torch.tensor([*chosen, *rejected]),
            lengths=(len(chosen), len(rejected)),
            weights_T=_at_ends((len(chosen), len(rejected)), 0.5),
            ids=(*ids[i : i + 1], *ids[i : i + 1]),
        )
        for i, (chosen, rejected) in enumerate(pairs)
    ]
    return _batch(samples, max_tokens=max_tokens, temperature=1.0, aggregate="token")


def pack_labelled(
    labelled: Sequence[tuple[Sequence[int], float]], *, max_tokens: int, ids: Sequence[str] = ()
) -> Batch:
    """Turns (whole sample, label) pairs into the batch of one step; every sample weighs alike."""
    samples = [
        LabelledPack(
            tokens_T=torch.tensor(tokens),
            lengths=(len(tokens),),
            weights_T=_at_ends((len(tokens),), 1.0),
            ids=tuple(ids[i : i + 1]),
            labels_T=_at_ends((len(tokens),), label),
        )
        for i, (tokens, label) in enumerate(labelled)
    ]
    return _batch(samples, max_tokens=max_tokens, temperature=1.0, aggregate="token")


def shard(batch: Batch, num_ranks: int) -> list[Batch]:
    """Deals the samples of a batch to ranks, longest first to the lightest rank, and packs each share anew.

    What belongs together (`Pack.together`) is dealt as one sample. All shares have equally many packs (an empty pack of
    weight 0 fills up), because ranks that run different numbers of forwards wait for each other for ever. `num_samples`
    and `num_tokens` stay those of the whole batch.
    """
    if num_ranks == 1:
        return [batch]
    samples = [sample for pack in batch.packs for sample in _samples(pack)]
    max_tokens = max(sum(pack.lengths) for pack in batch.packs)
    shares: list[list[Pack]] = [[] for _ in range(num_ranks)]
    for sample in sorted(samples, key=lambda sample: -_size(sample)):
        min(shares, key=lambda share: sum(map(_size, share))).append(sample)
    packed = [[_join(row) for row in _best_fit(share, max_tokens)] for share in shares]
    num_packs = max(len(packs) for packs in packed)
    empty = _empty_like(samples[0])
    return [replace(batch, packs=tuple(packs + [empty] * (num_packs - len(packs)))) for packs in packed]


def filled_up(packs: Sequence[P], least: int) -> list[P]:
    """Adds empty packs of weight 0 until there are at least so many."""
    return [*packs, *[_empty_like(packs[0])] * (least - len(packs))]


def tensor_names(pack: Pack) -> list[str]:
    """Names of the tensors that a pack holds; one that is absent (a reference nobody keeps) is left out."""
    return [f.name for f in fields(pack) if isinstance(getattr(pack, f.name), Tensor)]


def _policy_sample(prompt: Prompt, rollout: Rollout, advantage: float) -> PolicyPack:
    advantages_T = _after_prompt(len(prompt.tokens), torch.full((len(rollout.tokens),), advantage))
    return PolicyPack(**_sampled(prompt, rollout), advantages_T=advantages_T)


def _sampled(prompt: Prompt, rollout: Rollout) -> dict[str, Any]:
    """Returns what every `SampledPack` of one rollout has."""
    before, after = len(prompt.tokens), len(rollout.tokens)
    return {
        "tokens_T": torch.tensor([*prompt.tokens, *rollout.tokens]),
        "lengths": (before + after,),
        "weights_T": _after_prompt(before, torch.ones(after)),
        "ids": (prompt.id,),
        "old_logprobs_T": _after_prompt(before, torch.tensor(rollout.logprobs)),
    }


def _after_prompt(num_prompt: int, values: Tensor) -> Tensor:
    return torch.cat([torch.zeros(num_prompt), values])


def _at_ends(lengths: Sequence[int], value: float) -> Tensor:
    """Returns a value on the last token of each sample, and 0 elsewhere, [T]."""
    return torch.zeros(sum(lengths)).index_fill(0, torch.tensor(lengths).cumsum(0) - 1, value)


def _size(sample: Pack) -> int:
    return sum(sample.lengths)


def _inside(shown: Demonstration) -> Tensor:
    weights_T = torch.zeros(len(shown.tokens))
    for first, end in shown.trained:
        weights_T[first:end] = 1
    return weights_T


def _batch(samples: Sequence[Pack], *, max_tokens: int, temperature: float, aggregate: str) -> Batch:
    trained = [sample.weights_T.sum() for sample in samples]
    total = sum(trained)
    # This is the one place where a token gets its share of the gradient. Everything behind it only adds up: tokens
    # within a pack, packs within a rank, ranks within the trainer. So the same samples have the same gradient however
    # they are packed and dealt; a mean taken further down would weigh a half-empty pack like a full one.
    shares = [1 / total if aggregate == "token" else 1 / (len(samples) * count) for count in trained]
    weighted = [
        replace(sample, weights_T=sample.weights_T * share) for sample, share in zip(samples, shares, strict=True)
    ]
    return Batch(
        packs=tuple(_join(row) for row in _best_fit(weighted, max_tokens)),
        temperature=temperature,
        num_samples=sum(len(sample.lengths) for sample in samples),
        num_tokens=sum(map(_size, samples)),
    )


def _best_fit(samples: Sequence[P], max_tokens: int) -> list[list[P]]:
    """Longest first, each into the fullest row that still has room (best-fit decreasing)."""
    rows: list[list[P]] = []
    room: list[int] = []
    # Long samples first, while every row has room; the short ones then fill what is left. The rows that come out are at
    # most 11/9 of the fewest possible, and the order of samples does not matter to the loss, which is a sum.
    for sample in sorted(samples, key=lambda sample: -_size(sample)):
        need = _size(sample)
        fitting = [i for i, free in enumerate(room) if free >= need]
        if fitting:
            row = min(fitting, key=lambda i: room[i])
            rows[row].append(sample)
            room[row] -= need
        else:
            rows.append([sample])
            room.append(max_tokens - need)
    return rows


def _join(packs: Sequence[P]) -> P:
    tensors = {name: torch.cat([getattr(pack, name) for pack in packs]) for name in tensor_names(packs[0])}
    ids = tuple(name for pack in packs for name in pack.ids)
    return replace(packs[0], lengths=tuple(length for pack in packs for length in pack.lengths), ids=ids, **tensors)


def _samples(pack: P) -> list[P]:
    rows = [slice(i, i + pack.together) for i in range(0, len(pack.lengths), pack.together)]
    sizes = [sum(pack.lengths[row]) for row in rows]
    pieces = {name: getattr(pack, name).split(sizes) for name in tensor_names(pack)}
    return [
        replace(pack, lengths=pack.lengths[row], ids=pack.ids[row], **{name: of[i] for name, of in pieces.items()})
        for i, row in enumerate(rows)
    ]


def _empty_like(pack: P) -> P:
    # One token of weight 0 for each sample: the forward and backward pass run, with all their sums over ranks, and add
    # nothing. Whoever counts tokens (load, balance loss) leaves out what has no weight.
    size = pack.together
    first = {name: getattr(pack, name)[:size] for name in tensor_names(pack)}
    first["weights_T"] = torch.zeros_like(first["weights_T"])
    return replace(pack, lengths=(1,) * size, ids=pack.ids[:size], **first)
