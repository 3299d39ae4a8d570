"""The gate where FP8 is involved, in three parts, because log-probs alone are blind to its faults.

With an engine in FP8 a scale that is off by 9 %, a layer that stayed in bf16 or a router that lost its correction bias
moves the log-probs less than honest rounding does. So the gate asks three questions after every sync:

1. Are the bytes the same? Every tensor that the engine computes with has the fingerprint of the one that the trainer
   publishes: codes, scales, and all that stays high.
2. Does each layer compute what its tensors say? Its output on the engine's own inputs is that of torch's product with
   the codes multiplied out to bf16, bit for bit but for sums that round the other way.
3. Do the log-probs agree as well as two bf16 programs do? Their mean gap may be a few times what one more rounding to
   bf16 changes in this very model.

An engine in high precision, which gets what the codes of the trainer stand for, is asked the third question alone.
It needs two sides that compute alike, and where only one of them has activations in FP8 they do not: what such
activations change is several times what rounding to bf16 does, and would hide a fault as large. So the trainer is
asked for the log-probs of its weights with the activations of the engine, and these are judged. How far the engine is
from the trainer as it trains is reported.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor

from rlkit.engine.examination import Examination
from rlkit.parity.agreement import Agreement, ParityError
from rlkit.parity.gate import MEAN, Answered, Learner, Limit, Noise, Sequences, Traced, ask_all, explain, token_gaps
from rlkit.train.rounding import UNIT, Rounding

EQUAL = 0.999
"""The least share of a layer's outputs that have the bits of torch's product. Kernels add in other orders, and honest
ones had 0.9996 and more; the same weights before they were rounded to FP8 have less than 0.3."""
PRODUCT_ERROR = 1e-2
"""The largest relative error of sums over routed experts, and of products with activations in FP8, whose roundings no
formula repeats bit for bit. Honest ones had 6e-3 at most; activations in the other precision make 2e-2 and more."""
GAP = 2.0
"""How many times the mean change by rounding to bf16 the mean gap may be for an engine with weights alone in FP8; for
others it is `MEAN`, as without FP8."""


class Examined(Traced, Protocol):
    """What the gate needs of an engine in FP8."""

    def examine(self, sequences: Sequences) -> Examination:
        """Fingerprints all tensors that it computes with, and repeats the products that it makes for the sequences."""
        ...


class Replicated(Protocol):
    """Every copy of the model that samples."""

    def replicas(self) -> Sequence[Examined]:
        """Returns the copies."""
        ...


class Publisher(Learner, Protocol):
    """What the gate needs of a trainer beside its log-probs."""

    def fingerprints(self, form: str) -> Mapping[str, str]:
        """Fingerprints what it publishes in one of `rlkit.model.files.sent.FORMS`."""
        ...

    def routes(self, sequences: Sequences) -> Mapping[str, Tensor]:
        """The experts that each router chooses for the tokens of all sequences, [T, k]."""
        ...


def fp8_gate(
    engine: Replicated,
    trainer: Publisher,
    sequences: Sequences,
    tolerance: float,
    trainer_dtype: str,
    engine_dtype: str,
) -> Callable[[], Agreement]:
    """Makes a check of every replica as the head of this file says; it returns the worst, or raises ParityError.

    The dtypes are the words of the configuration; one of the two is "fp8".
    """
    engine_in_fp8, trainer_quantises_activations = engine_dtype == "fp8", trainer_dtype == "fp8"

    def check() -> Agreement:
        trained = trainer.logprobs(sequences)
        prints, routes = (trainer.fingerprints(trainer_dtype), trainer.routes(sequences)) if engine_in_fp8 else ({}, {})

        def ask(replica: Examined) -> tuple[Examination | None, list[list[float]]]:
            return replica.examine(sequences) if engine_in_fp8 else None, replica.logprobs(sequences)

        found: list[Agreement] = []
        asked: dict[bool, tuple[Answered, Noise]] = {}
        for replica, (seen, answer) in ask_all(engine.replicas(), ask):
            flips, quantises = None, seen is not None and seen.quantises_activations
            if seen is not None:
                check_bytes(prints, seen)
                check_products(seen)
                flips = share_of_flips(routes, seen.chosen)
            alike = quantises == trainer_quantises_activations
            if alike not in asked:
                asked[alike] = _asked(trainer if alike else LikeTheEngine(trainer), sequences)
            factor = GAP if engine_in_fp8 and not quantises else MEAN
            agreed = _compare(Answered(replica, answer), *asked[alike], sequences, tolerance, factor)
            audited = len(prints.keys() - seen.unused) if seen else 0
            apart = None if alike else _mean_gap(answer, trained)
            found.append(replace(agreed, trained=apart, flips=flips, audited=audited))
        return max(found, key=lambda agreement: agreement.mean)

    return check


@dataclass(frozen=True, slots=True)
class LikeTheEngine:
    """A trainer that is asked with the same weights and the activations of the engine, in FP8 or not."""

    trainer: Learner

    def logprobs(self, sequences: Sequences, rounding: Rounding | None = None) -> list[list[float]]:
        """Log-probs of the same weights."""
        return self.trainer.logprobs(sequences, self._otherwise(rounding))

    def trace(self, tokens: Sequence[int], rounding: Rounding | None = None) -> Mapping[str, Tensor]:
        """Outputs of blocks with the same weights."""
        return self.trainer.trace(tokens, self._otherwise(rounding))

    def _otherwise(self, rounding: Rounding | None) -> Rounding:
        return replace(rounding or Rounding(unit=0.0, seed=0), other_activations=True)


def _mean_gap(engine: list[list[float]], trained: list[list[float]]) -> float:
    """Returns the mean gap to the trainer as it trains; raises ParityError if that is no number."""
    mean = float(torch.cat(token_gaps(engine, trained)).mean())
    if math.isinf(mean):
        raise ParityError(
            "the trainer's log-probs are no numbers with the activations that it trains with, although they are with "
            "those of the engine: look for weights or activations that are too large"
        )
    return mean


def _asked(trainer: Learner, sequences: Sequences) -> tuple[Answered, Noise]:
    answered = Answered(trainer, trainer.logprobs(sequences))
    return answered, Noise(trainer, UNIT["bf16"], sequences, answered.answer)


def check_bytes(prints: Mapping[str, str], seen: Examination, source: str = "the trainer") -> None:
    """Raises ParityError for the first tensor that the engine does not compute with as its source has it."""
    wrong = [name for name in prints if name not in seen.unused and seen.prints.get(name) != prints[name]]
    wrong += [name for name in seen.prints if name not in prints]
    if wrong:
        held, sent = seen.prints.get(wrong[0], "nothing"), prints.get(wrong[0], "nothing")
        raise ParityError(
            f"the engine does not compute with the weights of {source}: {wrong[0]} is {held} in the engine and {sent} "
            f"there (dtype, shape, SHA-256), {len(wrong)} of {len(prints)} tensors differ. "
            "They were changed on their way or while the engine packed them"
        )


def check_products(seen: Examination) -> None:
    """Raises ParityError for the first layer whose output is not the product of its input and its tensors.

    A layer whose product nobody has seen vouches for nothing, and is named as well.
    """
    if seen.unseen:
        raise ParityError(
            f"{seen.unseen[0]}: the engine made no product there that could be examined, and {len(seen.unseen)} of "
            f"{len(seen.unseen) + len(seen.products)} layers are like that; its kernel is called past the layer. Set "
            "engine.dtype=bf16, or engine.options without what fuses or skips layers"
        )
    for name, product in seen.products.items():
        loose = product.experts or seen.quantises_activations
        if not (product.error <= PRODUCT_ERROR if loose else product.equal >= EQUAL):
            limit = f"error at most {PRODUCT_ERROR:g}" if loose else f"at least {EQUAL:.1%} of bits equal"
            raise ParityError(
                f"{name}: the engine's output is not the product of its input and its tensors: {product.equal:.2%} of "
                f"bits are equal, relative error {product.error:.2g}; wanted: {limit}. Its kernel reads other tensors, "
                "or computes in another precision"
            )


def share_of_flips(ours: Mapping[str, Tensor], theirs: Mapping[str, Tensor]) -> float | None:
    """Returns for which share of tokens and layers the two chose different sets of experts; None without routers."""
    flipped = [
        (ours[name].sort(-1).values != theirs[name].sort(-1).values).any(-1) for name in ours.keys() & theirs.keys()
    ]
    return float(torch.cat(flipped).double().mean()) if flipped else None


def _compare(
    engine: Answered, trainer: Answered, noise: Noise, sequences: Sequences, tolerance: float, factor: float
) -> Agreement:
    """Compares the mean gap with `factor` times the change by rounding to bf16."""
    gaps = token_gaps(engine.answer, trainer.answer)
    gaps_T = torch.cat(gaps)
    bf16 = float(noise.changes([len(row) for row in gaps]).mean())
    limit = Limit(tokens=torch.tensor(math.inf), mean=max(tolerance, factor * bf16), factor=factor)
    if not gaps_T.isfinite().all() or gaps_T.mean() > limit.mean:
        raise ParityError(explain(engine, trainer, sequences, gaps, limit, noise))
    return Agreement(
        gap=float(gaps_T.max()),
        mean=float(gaps_T.mean()),
        limit=f"limit {limit.on_mean()}",
        p99=float(gaps_T.quantile(0.99)),
        bf16=bf16,
    )
