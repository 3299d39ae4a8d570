"""Where exactly the gate's limits lie, on log-probs and margins that are said and not computed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from rlkit.parity import ParityError, check_parity, gate
from rlkit.train.rounding import UNIT, Rounding


@dataclass
class Spoken:
    """Says what it is told to, the margins of one router included, and moves by as much as it is told to."""

    said: list[list[float]]
    margins: list[float]
    moves: float = 1e-6
    sensitive: int = -1  # the place that moves 20 times as far

    def logprobs(self, sequences: Sequence[Sequence[int]], rounding: Rounding | None = None) -> list[list[float]]:
        far = 0.0 if rounding is None else self.moves * (1 + rounding.seed)
        return [[value + far * (20 if i == self.sensitive else 1) for i, value in enumerate(row)] for row in self.said]

    def trace(self, tokens: Sequence[int], rounding: Rounding | None = None) -> dict[str, Tensor]:
        margins = torch.tensor([self.margins]).T + (0.0 if rounding is None else self.moves)
        return {"model.layers.0.mlp": torch.ones(len(tokens), 2), "model.layers.0.mlp.gate": margins}

    def replicas(self) -> list[Spoken]:
        return [self]


CLEAR = [0.1] * 5


@pytest.mark.parametrize(
    ("margins", "passes"),
    [
        ([0.1, 0.1, 1.9e-5, 0.1, 0.1], True),  # 20 times what rounding moves it by: a tie, before the gap
        ([0.1, 0.1, 2.5e-5, 0.1, 0.1], False),  # a clear choice, though the margin is small
        ([0.1, 0.1, 0.1, 1e-6, 0.1], False),  # a tie cannot change what comes before it
        ([1e-6, 0.1, 0.1, 0.1, 0.1], False),  # nothing is left that could vouch for the weights
        (CLEAR, False),
    ],
)
def test_how_small_a_margin_is_a_tie_is_measured(margins: list[float], passes: bool) -> None:
    trainer = Spoken([[-1.0, -2.0, -1.0, -1.0]], margins)
    engine = Spoken([[-1.0, -2.0 + 1e-6, -2.5, -1.0]], margins)
    check = gate(engine, trainer, [(1, 2, 3, 4, 5)], 1e-4, UNIT["fp32"])
    if passes:
        assert check().gap == pytest.approx(1e-6, rel=1e-3)
    else:
        with pytest.raises(ParityError):
            check()


@pytest.mark.parametrize("noise", [True, False])
def test_nothing_left_to_compare_is_no_agreement(noise: bool) -> None:
    """Every sequence starts with a tie and differs: that the rest is excused must not read as a pass."""
    rows = [[-1.0, -2.0]] * 3
    trainer, engine = Spoken(rows, [1e-7] * 3), Spoken([[-1.5, -2.0]] * 3, [1e-7] * 3)
    sequences = [(1, 2, 3)] * 3
    with pytest.raises(ParityError, match="should be compared on at least one token"):
        if noise:
            gate(engine, trainer, sequences, 1e-4, UNIT["fp32"])()
        else:
            check_parity(engine, trainer, sequences, 1e-4)


@pytest.mark.parametrize(
    ("gap", "moves", "sensitive", "passes"),
    [
        (9e-5, 1e-6, -1, True),
        (1.1e-4, 1e-6, -1, False),
        (8.7e-3, 1e-4, -1, True),
        (8.8e-3, 1e-4, -1, False),
        (9.2e-2, 1e-4, 50, True),  # (20 + 1.1) x 4.38e-3
        (9.3e-2, 1e-4, 50, False),
        (1.1e-2, 1e-4, 40, False),  # what one token may is no excuse for another
    ],
)
def test_a_token_may_be_sixteen_times_what_rounding_changes(
    gap: float, moves: float, sensitive: int, passes: bool
) -> None:
    """On one token of 200, so that the mean is no obstacle; the four draws move it by 1 to 4, in all by 2.74."""
    said = [-1.0] * 200
    trainer = Spoken([said], [0.1] * 201, moves, sensitive)
    engine = Spoken([[*said[:50], -1.0 - gap, *said[51:]]], [0.1] * 201)
    check = gate(engine, trainer, [tuple(range(201))], 1e-4, UNIT["fp32"])
    if passes:
        assert check().gap == pytest.approx(gap, rel=1e-3)
    else:
        with pytest.raises(ParityError, match=rf"= {gap:.3g} nats, .*token 51 "):
            check()


@pytest.mark.parametrize("unit", ["fp32", "bf16"])
@pytest.mark.parametrize(("gap", "passes"), [(7.4e-3, True), (7.6e-3, False)])
def test_the_mean_may_be_three_times_the_mean_change(unit: str, gap: float, passes: bool) -> None:
    """Rounding changes every token by 1e-3 to 4e-3: 2.5e-3 on average."""
    trainer, engine = Spoken([[-1.0] * 4], CLEAR, 1e-3), Spoken([[-1.0 - gap] * 4], CLEAR)
    check = gate(engine, trainer, [(1, 2, 3, 4, 5)], 1e-4, UNIT[unit])
    if passes:
        assert check().mean == pytest.approx(gap, rel=1e-3)
    else:
        with pytest.raises(ParityError, match=r"nats on average, should be at most"):
            check()
