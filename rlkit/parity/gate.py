"""Do engine and trainer compute the same? Log-probs of fixed sequences, and if they differ, the block where it starts.

Wrong weights do not crash: the policy ratio is a little wrong, and the reward curve a little worse. So after every sync
both sides are asked for the log-probs of the same few sequences. They never agree to the last bit, and the hard part is
to tell rounding from a fault. Three steps do it:

1. A gap of at most `parity.tolerance` passes, and that is all a shallow model in fp32 ever needs.
2. A router whose two best experts are almost equal may choose either of them after rounding, and then everything that
   follows differs honestly. In fp32 such ties are rare, so a sequence is compared up to its first one.
3. What is left is compared with what rounding does in this very model (`rlkit.train.rounding`). In fp32 the gap of
   every token and their mean must be explained by it. In bf16 choices are turned all the time, single tokens are off by
   whole nats in both, and the mean over all tokens alone is steady enough to be judged.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Protocol, TypeVar

import torch
from torch import Tensor

from rlkit.parity.agreement import Agreement, ParityError
from rlkit.train.rounding import Rounding

GATE = ".mlp.gate"
"""Ending of the names under which a trace holds the margins of a router's choices."""
TIE = 1e-4
"""Margin of a choice below which it counts as a tie where rounding has not been measured: 100 times fp32 rounding of a
sigmoid score, or of log softmax."""
TURNS = 20
"""A choice counts as a tie if its margin is below so many times the median change that rounding makes to margins."""
TOKEN, MEAN = 16.0, 3.0
"""How many times the change by rounding the gap of a token and the mean gap may be. Honest engines were within 6.5 and
2 times in fp32; in bf16 the mean was within 0.9 times, and 1.5 where only one side has bf16 (docs/maths.md)."""
EXACT = 1e-5
"""Units of rounding below this one turn a router's choice so rarely that every other token can be judged."""
BLOCK, BLOCK_NOISE = 1e-5, 4.0
"""A block differs where its relative error is above this, and above so many times what rounding did up to there."""
DRAWS = 4
"""Errors of rounding are drawn so many times; what they change together is steadier than what one of them does."""

NUM_SEQUENCES, LENGTH = 8, 48
"""The gate of a run compares so many fixed sequences of so many tokens: enough to touch every expert of a small model,
and cheap."""

Sequences = Sequence[Sequence[int]]
_S = TypeVar("_S")
_A = TypeVar("_A")


class Traced(Protocol):
    """What the comparison needs of both sides; every Engine and every Trainer has it."""

    def logprobs(self, sequences: Sequences) -> list[list[float]]:
        """log p(token_t | tokens before t) at temperature 1, for t = 1..len-1 of each sequence, in nats."""
        ...

    def trace(self, tokens: Sequence[int]) -> Mapping[str, Tensor]:
        """Outputs of every block for one sequence, `{"model.layers.0.self_attn": [T, D], ...}`, in order."""
        ...


class Learner(Protocol):
    """What the gate needs of a trainer: the same, also with its numbers rounded anew."""

    def logprobs(self, sequences: Sequences, rounding: Rounding | None = None) -> list[list[float]]:
        """Log-probs as above."""
        ...

    def trace(self, tokens: Sequence[int], rounding: Rounding | None = None) -> Mapping[str, Tensor]:
        """Outputs as above."""
        ...


class Replicated(Protocol):
    """What the gate needs of an engine: every copy of the model that samples, each of which may be wrong alone."""

    def replicas(self) -> Sequence[Traced]:
        """Returns the copies: one in this process, or several in others."""
        ...


def gate_sequences(
    vocab_size: int, num: int, length: int, seed: int, prompts: Sequences
) -> tuple[tuple[int, ...], ...]:
    """Makes `num` fixed sequences of `length` tokens: half start with a real prompt (cut or extended), half are random.

    Random ids reach experts that prompts do not. Raises ValueError if there is nothing to compare.
    """
    if num < 1 or length < 2:
        raise ValueError(f"parity gate: num={num} and length={length} leave nothing to compare; use >=1 and >=2")
    random = torch.Generator().manual_seed(seed)
    rows = torch.randint(vocab_size, (num, length), generator=random).tolist()
    starts = [prompts[i % len(prompts)] for i in range(num // 2)] if prompts else []
    starts += [()] * (num - len(starts))
    return tuple(tuple([*start, *row[len(start) :]][:length]) for start, row in zip(starts, rows, strict=True))


def gate(
    engine: Replicated, trainer: Learner, sequences: Sequences, tolerance: float, unit: float
) -> Callable[[], Agreement]:
    """Makes a check of every replica of the engine against the trainer; it returns the worst, or raises ParityError.

    `unit` is that of the coarser of the two dtypes, see `rlkit.train.rounding.UNIT`.
    """

    def check() -> Agreement:
        learner = Answered(trainer, trainer.logprobs(sequences))
        noise = Noise(trainer, unit, sequences, learner.answer)
        samplers = [
            Answered(replica, answer)
            for replica, answer in ask_all(engine.replicas(), lambda replica: replica.logprobs(sequences))
        ]
        found = [compare(sampler, learner, sequences, tolerance, noise) for sampler in samplers]
        return max(found, key=lambda agreement: agreement.gap)

    return check


@dataclass(frozen=True, slots=True)
class Answered:
    """A model that has been asked for the log-probs of the gate's sequences already."""

    model: Traced
    answer: list[list[float]]

    def logprobs(self, sequences: Sequences) -> list[list[float]]:
        """Returns the log-probs of the sequences that it was asked about."""
        return self.answer

    def trace(self, tokens: Sequence[int]) -> Mapping[str, Tensor]:
        """Returns block outputs of the model itself."""
        return self.model.trace(tokens)


@dataclass(frozen=True, slots=True, kw_only=True)
class Limit:
    """How far two models may be apart, in nats, and where the numbers come from."""

    tokens: Tensor
    """The limit of every token that counts, [T], or one for all, a scalar; infinite where the mean alone counts."""
    mean: float = math.inf
    measured: bool = True
    """False where the tolerance is all that was asked for."""
    factor: float = MEAN
    """How many times the mean change by rounding the mean gap may be."""

    def nearest(self, gaps_T: Tensor) -> int:
        """Finds the token that comes nearest to its limit."""
        return int((gaps_T / self.tokens if self.tokens.isfinite().all() else gaps_T).argmax())

    def on(self, token: int) -> str:
        """The limit of one token in words, or that of the mean where a token's gap is free, as in bf16."""
        limit = float(self.tokens[token] if self.tokens.ndim else self.tokens)
        if not self.measured:
            return f"{limit:g}"
        return self.on_mean() if limit == math.inf else f"{limit:.1e}, {TOKEN:g} x what rounding changes"

    def on_mean(self) -> str:
        """The limit of the mean gap in words."""
        return f"{self.mean:.1e} on average, {self.factor:g} x what rounding changes"


class Noise:
    """What rounding changes in a trainer: measured when a gap has to be explained, then remembered."""

    def __init__(self, trainer: Learner, unit: float, sequences: Sequences, plain: list[list[float]]) -> None:
        """Takes the trainer, the unit of rounding, and the trainer's log-probs of the sequences as they are."""
        self._trainer, self._unit, self._sequences, self._plain = trainer, unit, sequences, plain
        self._draws: list[list[Tensor]] = []
        self.exact = unit < EXACT

    def changes(self, lengths: Sequence[int]) -> Tensor:
        """Returns |change| of the first so many tokens of each sequence, [draws, T], in nats."""
        if not self._draws:
            draws = [Rounding(unit=self._unit, seed=seed) for seed in range(DRAWS)]
            self._draws = [token_gaps(self._trainer.logprobs(self._sequences, draw), self._plain) for draw in draws]
        kept = [torch.cat([t[:n] for t, n in zip(draw, lengths, strict=True)]) for draw in self._draws]
        return torch.stack(kept)

    def limit(self, tolerance: float, lengths: Sequence[int]) -> Limit:
        """Says how far an honest engine may be away, on the first so many tokens of each sequence."""
        changes = self.changes(lengths)
        mean = MEAN * float(changes.mean())
        if not self.exact:
            return Limit(tokens=torch.tensor(math.inf), mean=max(tolerance, mean))
        # Each token has its own limit: the log-prob of an unlikely one is often ten times as sensitive as the others,
        # so that one limit for all would be missed by honest engines or say nothing about most tokens. The draws may by
        # chance leave a token almost where it is; the mean beside it is what every token is granted.
        moved_T = changes.square().mean(0).sqrt()
        tokens_T = TOKEN * (moved_T + moved_T.mean())
        if tokens_T.max() <= tolerance:
            return Limit(tokens=torch.tensor(tolerance), measured=False)
        return Limit(tokens=tokens_T.clamp(min=tolerance), mean=mean)

    def trace(self, tokens: Sequence[int]) -> Mapping[str, Tensor]:
        """Traces one sequence with every number rounded anew."""
        return self._trainer.trace(tokens, Rounding(unit=self._unit, seed=0))


def ask_all(replicas: Sequence[_S], ask: Callable[[_S], _A]) -> list[tuple[_S, _A]]:
    """Asks every replica; several are in processes of their own, so a thread each waits while all are at work."""
    if len(replicas) == 1:
        return [(replicas[0], ask(replicas[0]))]
    with ThreadPoolExecutor(len(replicas)) as threads:
        return list(zip(replicas, threads.map(ask, replicas), strict=True))


def check_parity(engine: Traced, trainer: Traced, sequences: Sequences, tolerance: float | None) -> float:
    """Compares without measuring rounding; returns the largest gap, in nats, and raises ParityError above `tolerance`.

    With `tolerance=None` the gap is only reported, but one that is not finite is never let through.
    """
    return compare(engine, trainer, sequences, math.inf if tolerance is None else tolerance, None).gap


def compare(engine: Traced, trainer: Traced, sequences: Sequences, tolerance: float, noise: Noise | None) -> Agreement:
    """Compares as the head of this file says; ParityError if they disagree. Without `noise` the tolerance decides."""
    gaps = token_gaps(engine.logprobs(sequences), trainer.logprobs(sequences))
    limit, finite = Limit(tokens=torch.tensor(tolerance), measured=False), bool(torch.cat(gaps).isfinite().all())
    if finite and torch.cat(gaps).max() > tolerance:
        if noise is None or noise.exact:
            gaps = _up_to_ties(gaps, trainer, sequences, tolerance, noise)
        if noise is not None and any((gaps_T > tolerance).any() for gaps_T in gaps):
            limit = noise.limit(tolerance, [len(gaps_T) for gaps_T in gaps])
    kept = torch.cat(gaps)
    # Where every sequence starts with a tie and differs, nothing is left that could vouch for the weights.
    if not finite or not len(kept) or (kept > limit.tokens).any() or kept.mean() > limit.mean:
        raise ParityError(explain(engine, trainer, sequences, gaps, limit, noise))
    words = f"limit {limit.on(limit.nearest(kept))}"
    return Agreement(gap=float(kept.max()), mean=float(kept.mean()), limit=words)


def token_gaps(ours: list[list[float]], theirs: list[list[float]]) -> list[Tensor]:
    """|a - b| of every token, a tensor for each sequence; infinity where either is not finite."""
    pairs = zip(ours, theirs, strict=True)
    gaps = [(torch.tensor(a, dtype=torch.float64) - torch.tensor(b, dtype=torch.float64)).abs() for a, b in pairs]
    return [gaps_T.nan_to_num(nan=math.inf, posinf=math.inf) for gaps_T in gaps]


def _up_to_ties(
    gaps: Sequence[Tensor], trainer: Traced, sequences: Sequences, tolerance: float, noise: Noise | None
) -> list[Tensor]:
    """Cuts sequences with a gap above the tolerance where, in any layer, rounding could first turn a choice of experts.

    How small a margin that takes follows from what rounding does to the margins themselves, where that is known.
    """
    kept = list(gaps)
    for i, tokens in enumerate(sequences):
        if kept[i].max() > tolerance:
            margins_LT, turned = _margins(trainer.trace(tokens)), TIE
            if margins_LT is None:
                return kept
            if noise is not None and (noisy_LT := _margins(noise.trace(tokens))) is not None:
                turned = TURNS * float((noisy_LT - margins_LT).abs().median())
            ties = (margins_LT.amin(0) < turned).nonzero()
            kept[i] = kept[i][: int(ties[0]) if len(ties) else len(tokens)]
    return kept


def _margins(traced: Mapping[str, Tensor]) -> Tensor | None:
    """Stacks the margins of all routers, [L, T]; None for a model that has no routers or whose rule is unknown."""
    layers = [traced[name].flatten() for name in traced if name.endswith(GATE)]
    return torch.stack(layers) if layers else None


def explain(
    engine: Traced,
    trainer: Traced,
    sequences: Sequences,
    gaps: Sequence[Tensor],
    limit: Limit,
    noise: Noise | None,
) -> str:
    """Says how far the two are apart, on which token it shows most, and in which block it starts."""
    kept = torch.cat(list(gaps))
    beyond = kept.where(kept > limit.tokens, 0.0)
    worst = int((beyond if beyond.any() else kept).argmax()) if len(kept) else 0
    places = [(row, place) for row, gaps_T in enumerate(gaps) for place in range(1, len(gaps_T) + 1)]
    row, place = places[worst] if places else (0, 0)
    if not len(kept):
        found, wanted = "inf nats", "compared on at least one token that comes before any tie"
    elif not kept.isfinite().all():
        found, wanted = "inf nats", "finite"
    elif (kept > limit.tokens).any():
        found, wanted = f"{kept[worst]:.3g} nats", f"at most {limit.on(worst)}"
    else:
        found, wanted = f"{kept.mean():.3g} nats on average", f"at most {limit.on_mean()}"
    # The blocks are compared where the gap is largest, even if rounding explains that one: a fault shows most there.
    tokens = sequences[places[int(kept.argmax())][0] if places else 0]
    noisy = {} if noise is None else noise.trace(tokens)
    block = _first_difference(engine.trace(tokens), trainer.trace(tokens), noisy)
    return (
        f"engine and trainer disagree: |log p_engine - log p_trainer| = {found}, should be {wanted}, most at sequence "
        f"{row}, token {place} (id {sequences[row][place]}). First block that differs: {block}. Compare this block's "
        "weights in the checkpoint, in Trainer.weights() and after Engine.load(): a name, a shape or a layout changed "
        "in transit, or one side computes the block differently. A run with engine=torch shows which side is wrong."
    )


def _first_difference(engine: Mapping[str, Tensor], trainer: Mapping[str, Tensor], noisy: Mapping[str, Tensor]) -> str:
    """Names the first block, in order of execution, whose output differs: later ones have their input changed already.

    A block differs when its error is above `BLOCK` and above `BLOCK_NOISE` times what rounding did up to there.
    """
    rounding = 0.0
    for name, output_TD in engine.items():
        if name in trainer and not name.endswith(GATE):
            rounding = max(rounding, _block_error(noisy[name], trainer[name]) if name in noisy else 0.0)
            error = _block_error(output_TD, trainer[name])
            if not error <= max(BLOCK, BLOCK_NOISE * rounding):
                return f"{name} (relative error {error:.2g})"
    return "lm_head (every block's output agrees, up to rounding)"


def _block_error(ours_TD: Tensor, theirs_TD: Tensor) -> float:
    """max_t |a_t - b_t| / mean_t |b_t|, with |.| the norm of a token's output."""
    theirs_TD = theirs_TD.to(ours_TD)
    distances_T = (ours_TD - theirs_TD).norm(dim=-1)
    return float(distances_T.max() / theirs_TD.norm(dim=-1).mean())
