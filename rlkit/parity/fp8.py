"""The gate where FP8 is involved, in three parts, because log-probs alone are blind to its faults.

With an engine in FP8 a scale that is off by 9 %, a layer that stayed in bf16 or a router that lost its correction bias
moves the log-probs less than honest rounding does. So the gate asks three questions after every sync:

1. Are the bytes the same? Every tensor that the engine computes with has the fingerprint of the one that the trainer
   publishes: codes, scales, and all that stays high.
2. Does each layer compute what its tensors say? Its output on the engine's own inputs is that of torch's product with
   the codes multiplied out to bf16, bit for bit but for sums that round the other way.
3. Do the log-probs agree as well as two bf16 programs do? Their mean gap may be `GAP` times what one more rounding to
   bf16 changes in this very model.

The third question needs two sides that compute alike. A trainer with FP8 activations (`trainer.dtype=fp8`) agrees only
with an engine that has them too; beside another one, its gap is reported and not judged.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Protocol

import torch
from torch import Tensor

from rlkit.engine.examination import Examination
from rlkit.parity.agreement import Agreement, ParityError
from rlkit.parity.gate import MEAN, Answered, Learner, Limit, Noise, Sequences, Traced, ask_all, explain, token_gaps
from rlkit.train.rounding import UNIT

EQUAL = 0.999
"""The least share of a layer's outputs that have the bits of torch's product. Kernels add in other orders, and honest
ones had 0.9996 and more; the same weights before they were rounded to FP8 have less than 0.3."""
PRODUCT_ERROR = 1e-2
"""The largest relative error of sums over routed experts, and of products with activations in FP8, whose roundings no
formula repeats bit for bit. Honest ones had 6e-3 at most; activations in the other precision make 2e-2 and more."""
GAP = 2.0
"""How many times the mean change by rounding to bf16 the mean gap may be, where only weights are in FP8."""


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
        learner = Answered(trainer, trainer.logprobs(sequences))
        noise = Noise(trainer, UNIT["bf16"], sequences, learner.answer)
        prints, routes = (trainer.fingerprints(trainer_dtype), trainer.routes(sequences)) if engine_in_fp8 else ({}, {})

        def ask(replica: Examined) -> tuple[Examination | None, list[list[float]]]:
            return replica.examine(sequences) if engine_in_fp8 else None, replica.logprobs(sequences)

        found: list[Agreement] = []
        for replica, (seen, answer) in ask_all(engine.replicas(), ask):
            flips = None
            if seen is not None:
                check_bytes(prints, seen)
                check_products(seen)
                flips = share_of_flips(routes, seen.chosen)
            alike = (seen is not None and seen.quantises_activations) == trainer_quantises_activations
            factor = (MEAN if trainer_quantises_activations else GAP) if alike else math.inf
            agreed = _compare(Answered(replica, answer), learner, sequences, tolerance, noise, factor)
            found.append(replace(agreed, flips=flips, audited=len(prints.keys() - seen.unused) if seen else 0))
        return max(found, key=lambda agreement: agreement.mean)

    return check


def check_bytes(prints: Mapping[str, str], seen: Examination) -> None:
    """Raises ParityError for the first tensor that the engine does not compute with as it was published."""
    wrong = [name for name in prints if name not in seen.unused and seen.prints.get(name) != prints[name]]
    wrong += [name for name in seen.prints if name not in prints]
    if wrong:
        held, sent = seen.prints.get(wrong[0], "nothing"), prints.get(wrong[0], "nothing")
        raise ParityError(
            f"the engine does not compute with the weights that the trainer published: {wrong[0]} is {held} in the "
            f"engine and {sent} in the trainer (dtype, shape, SHA-256), {len(wrong)} of {len(prints)} tensors differ. "
            "They were changed on their way or while the engine packed them"
        )


def check_products(seen: Examination) -> None:
    """Raises ParityError for the first layer whose output is not the product of its input and its tensors."""
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
    engine: Answered, trainer: Answered, sequences: Sequences, tolerance: float, noise: Noise, factor: float
) -> Agreement:
    """Compares the mean gap with `factor` times the change by rounding to bf16; infinite does not judge."""
    gaps = token_gaps(engine.answer, trainer.answer)
    gaps_T = torch.cat(gaps)
    bf16 = float(noise.changes([len(row) for row in gaps]).mean())
    limit = Limit(tokens=torch.tensor(math.inf), mean=max(tolerance, factor * bf16), factor=factor)
    if not gaps_T.isfinite().all() or gaps_T.mean() > limit.mean:
        raise ParityError(explain(engine, trainer, sequences, gaps, limit, noise))
    words = f"limit {limit.on_mean()}"
    if math.isinf(factor):
        words = (
            f"not judged: bf16 has {bf16:.1e}; warning: one of the two rounds activations to FP8 and the other does "
            "not, so the policy ratio is off by that much; trainer.dtype=fp8_weights computes what vLLM does on a CPU "
            "and with weights in bf16, trainer.dtype=fp8 what it does with engine.dtype=fp8 on a GPU"
        )
    return Agreement(
        gap=float(gaps_T.max()),
        mean=float(gaps_T.mean()),
        limit=words,
        p99=float(gaps_T.quantile(0.99)),
        bf16=bf16,
    )
