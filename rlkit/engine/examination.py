"""What a parity gate can see of an engine beyond its log-probs: the bytes it computes with, and what it does with them.

Log-probs alone are blind to faults of FP8: a scale that is off by 9 %, a layer that stayed in bf16 or a router without
its correction bias move them less than honest rounding does.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class Product:
    """How the output of one linear layer, or of the routed experts of one layer, compares with the formula.

    The formula has the engine's own input and the tensors of the audit, in the precision that the engine claims.
    """

    equal: float
    """The share of outputs with the same bits as torch's product in bf16."""
    error: float
    """|y - y'| / |y'| with y' computed in float64, both norms over all tokens."""
    experts: bool = False
    """It is a sum over routed experts, whose roundings no formula repeats bit for bit."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Examination:
    """What was found inside an engine."""

    prints: Mapping[str, str]
    """The fingerprint of every tensor that the engine computes with, by the name under which it was sent."""
    unused: frozenset[str]
    """What is sent and not held: repetitions of other tensors, and MTP modules of an engine that does not draft."""
    products: Mapping[str, Product]
    """Every layer that multiplies, the drafter's too, on the engine's own inputs for the sequences."""
    unseen: tuple[str, ...] = ()
    """Layers that multiply, but made no output that could be compared."""
    chosen: Mapping[str, Tensor]
    """The experts that each router chose for that sequence: `{"model.layers.1.mlp.gate": [T, k], ...}`."""
    quantises_activations: bool
    """The engine computes W8A8: its products round the activations to FP8 as well (W8A16 keeps them in bf16)."""
