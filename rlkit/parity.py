"""Do two models compute the same? Log-probs of fixed sequences, and if they differ, the block where it starts."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

GATE = ".mlp.gate"
"""Ending of the names under which a trace holds the margins of a router's choices."""
TIE = 1e-4
"""Margin of a choice below which it counts as a tie: 100 times fp32 rounding of a sigmoid score, or of log softmax."""


NUM_SEQUENCES, LENGTH = 8, 48
"""Of the fixed sequences that a run's gate compares: enough to touch every expert of a small model, and cheap."""


class Traced(Protocol):
    """What the comparison needs; every Engine and every Trainer has it."""

    def logprobs(self, sequences: Sequence[Sequence[int]]) -> list[list[float]]:
        """log p(token_t | tokens before t) at temperature 1, for t = 1..len-1 of each sequence, in nats."""
        ...

    def trace(self, tokens: Sequence[int]) -> Mapping[str, Tensor]:
        """Outputs of every block for one sequence, `{"model.layers.0.self_attn": [T, D], ...}`, in order."""
        ...


class ParityError(RuntimeError):
    """Engine and trainer disagree; the message names the gap, the token and the first block that differs."""


def gate_sequences(
    vocab_size: int, num: int, length: int, seed: int, prompts: Sequence[Sequence[int]]
) -> tuple[tuple[int, ...], ...]:
    """`num` fixed sequences of `length` tokens: half start with a real prompt (cut or continued), half are random.

    Random ids reach experts that prompts do not. Raises ValueError if there is nothing to compare.
    """
    if num < 1 or length < 2:
        raise ValueError(f"parity gate: num={num} and length={length} leave nothing to compare; use >=1 and >=2")
    random = torch.Generator().manual_seed(seed)
    rows = torch.randint(vocab_size, (num, length), generator=random).tolist()
    starts = [prompts[i % len(prompts)] for i in range(num // 2)] if prompts else []
    starts += [()] * (num - len(starts))
    return tuple(tuple([*start, *row[len(start) :]][:length]) for start, row in zip(starts, rows, strict=True))


class Replicated(Protocol):
    """What the gate needs of an engine: every copy of the model that samples, each of which may be wrong alone."""

    def replicas(self) -> Sequence[Traced]:
        """The copies: one in this process, or several in others."""
        ...


def gate(
    engine: Replicated, trainer: Traced, sequences: Sequence[Sequence[int]], tolerance: float | None
) -> Callable[[], float]:
    """A check of every replica of the engine against the trainer; it returns the largest gap, or raises ParityError."""

    def check() -> float:
        learner = Answered(trainer, trainer.logprobs(sequences))
        samplers = _ask_all(engine.replicas(), sequences)
        return max(check_parity(sampler, learner, sequences, tolerance) for sampler in samplers)

    return check


@dataclass(frozen=True, slots=True)
class Answered:
    """A model that has been asked for the log-probs of the gate's sequences already."""

    model: Traced
    answer: list[list[float]]

    def logprobs(self, sequences: Sequence[Sequence[int]]) -> list[list[float]]:
        """The log-probs of the sequences that it was asked about."""
        return self.answer

    def trace(self, tokens: Sequence[int]) -> Mapping[str, Tensor]:
        """Block outputs of the model itself."""
        return self.model.trace(tokens)


def _ask_all(replicas: Sequence[Traced], sequences: Sequence[Sequence[int]]) -> list[Answered]:
    """Ask every replica; several are in processes of their own, so a thread each waits while all are at work."""
    if len(replicas) == 1:
        return [Answered(replicas[0], replicas[0].logprobs(sequences))]
    with ThreadPoolExecutor(len(replicas)) as threads:
        answers = threads.map(lambda replica: replica.logprobs(sequences), replicas)
        return [Answered(replica, answer) for replica, answer in zip(replicas, answers, strict=True)]


def check_parity(engine: Traced, trainer: Traced, sequences: Sequence[Sequence[int]], tolerance: float | None) -> float:
    """max |log p_engine - log p_trainer| over all tokens of `sequences`, in nats.

    A choice of experts that is a tie up to rounding may fall either way in two correct programs, and then everything
    after it differs. So where a gap is above `tolerance`, only the tokens before the sequence's first such tie count.
    With `tolerance=None` (bf16, FP8) the gap is only reported. Raises ParityError if it is above `tolerance` or not
    finite, which no rounding explains.
    """
    worst, where = -1.0, (0, 0)
    for i, (ours, theirs) in enumerate(zip(engine.logprobs(sequences), trainer.logprobs(sequences), strict=True)):
        gaps = [
            abs(a - b) if math.isfinite(a) and math.isfinite(b) else math.inf for a, b in zip(ours, theirs, strict=True)
        ]
        if tolerance is not None and tolerance < max(gaps) < math.inf:
            gaps = gaps[: _first_tie(trainer.trace(sequences[i]))]
        for t, gap in enumerate(gaps, start=1):
            if gap > worst:
                worst, where = gap, (i, t)
    if worst < 0:  # every sequence starts with a tie and differs: nothing is left that could vouch for the weights
        worst = math.inf
    if worst == math.inf or (tolerance is not None and worst > tolerance):
        sequence = sequences[where[0]]
        block = _first_difference(engine.trace(sequence), trainer.trace(sequence), (tolerance or 1e-4) / 10)
        limit = "finite" if tolerance is None else f"at most {tolerance:g}"
        raise ParityError(
            f"engine and trainer disagree: |log p_engine - log p_trainer| = {worst:.3g} nats, should be {limit}, at "
            f"sequence {where[0]}, token {where[1]} (id {sequence[where[1]]}). First block that differs: {block}. "
            "Compare this block's weights in the checkpoint, in Trainer.weights() and after Engine.load(): a name, a "
            "shape or a layout changed in transit, or one side computes the block differently. A run with "
            "engine=torch shows which side is wrong."
        )
    return worst


def _first_tie(traced: Mapping[str, Tensor]) -> int:
    """The first token whose choice of experts, in any layer, rounding could turn; the length if there is none."""
    layers = [traced[name].flatten() for name in traced if name.endswith(GATE)]
    if not layers:
        return max(len(output_TD) for output_TD in traced.values())
    is_tie_T = torch.stack(layers).amin(0) < TIE
    return int(is_tie_T.int().argmax()) if is_tie_T.any() else len(is_tie_T)


def _first_difference(engine: Mapping[str, Tensor], trainer: Mapping[str, Tensor], threshold: float) -> str:
    """The first block, in order of execution, whose output differs: every later one has its input changed already.

    error = max_t |a_t - b_t| / mean_t |b_t|, with |.| the norm of a token's output.
    """
    for name, ours_TD in engine.items():
        if name not in trainer or name.endswith(GATE):
            continue
        theirs_TD = trainer[name].to(ours_TD)
        distances_T = (ours_TD - theirs_TD).norm(dim=-1)
        error = (distances_T.max() / theirs_TD.norm(dim=-1).mean()).item()
        if not error <= threshold:
            return f"{name} (relative error {error:.2g})"
    return "lm_head (every block's output agrees)"
