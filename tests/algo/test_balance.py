"""Loads, biases and the balance loss against cases worked by hand and formulas in Python floats."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from rlkit.algo.balance import (
    expert_load,
    load_entropy,
    load_numbers,
    max_violation,
    mean_violation,
    sequence_balance_loss,
    updated_bias,
)


def test_load_by_hand() -> None:
    experts_TK = torch.tensor([[0, 3], [3, 1], [0, 3]])
    assert expert_load(experts_TK, 5).tolist() == [2, 1, 0, 3, 0]


def test_bias_by_hand() -> None:
    """Mean load 2: the idle expert gains, the one at the mean stays, the busy one loses."""
    bias_E = torch.tensor([0.5, -0.25, 0.0])
    assert updated_bias(bias_E, torch.tensor([0, 2, 4]), 0.125).tolist() == [0.625, -0.25, -0.125]
    assert torch.equal(updated_bias(bias_E, torch.zeros(3, dtype=torch.int64), 0.125), bias_E)


@pytest.mark.parametrize("count", [1, 7, 2**40 + 1])
def test_a_load_at_the_mean_moves_nothing_whatever_the_number_of_experts(count: int) -> None:
    """6 experts: the mean of the loads is no binary fraction, and rounding it must not look like a difference."""
    bias_E = torch.zeros(6)
    assert not updated_bias(bias_E, torch.full((6,), count), 1.0).any()
    assert updated_bias(bias_E, torch.tensor([count, count, count, count, count, count + 1]), 1.0).tolist() == [
        *[1.0] * 5,
        -1.0,
    ]


def test_a_small_step_is_not_lost_beside_a_large_bias() -> None:
    bias_E = updated_bias(torch.tensor([4.0, 4.0]), torch.tensor([0, 1]), 1e-3)
    assert bias_E.dtype == torch.float32
    torch.testing.assert_close(bias_E, torch.tensor([4.001, 3.999]), rtol=0, atol=1e-6)


# Two sequences of 2 and 1 tokens, 4 experts, k = 2.
SCORES = [[0.4, 0.2, 0.1, 0.1], [0.3, 0.1, 0.2, 0.4], [0.1, 0.1, 0.3, 0.5]]


def test_balance_loss_by_hand() -> None:
    """Sequence 1: tokens have {0, 1} and {0, 3} highest, so f = 4 / (2 x 2) x (2, 1, 0, 1).

    P = ((.5, .25, .125, .125) + (.3, .1, .2, .4)) / 2 = (.4, .175, .1625, .2625); sum f P = .8 + .175 + .2625 = 1.2375.
    Sequence 2: {2, 3}; f = 4 / (2 x 1) x (0, 0, 1, 1), P = s; sum f P = 2 x .8 = 1.6.
    """
    scores_TE = torch.tensor(SCORES, dtype=torch.float64)
    assert float(sequence_balance_loss(scores_TE, 2, (2, 1))) == pytest.approx(1.2375 + 1.6, rel=1e-12)


def test_even_scores_cost_one_a_sequence_and_agreement_costs_most() -> None:
    cyclic = torch.eye(4, dtype=torch.float64) + torch.eye(4, dtype=torch.float64).roll(1, 1)
    assert float(sequence_balance_loss(cyclic.repeat(2, 1), 2, (4, 4))) == pytest.approx(2.0)
    agreed = torch.tensor([[1.0, 1.0, 0.0, 0.0]], dtype=torch.float64).expand(6, 4)
    assert float(sequence_balance_loss(agreed, 2, (6,))) == pytest.approx(4 / 2)


def written_out(scores: list[list[float]], k: int, lengths: list[int]) -> tuple[float, list[list[float]]]:
    """Equations 17 to 20 in floats, and dL/ds_tj = (f_j / S_t - sum_e f_e s_te / S_t^2) / T with S_t = sum_e s_te."""
    total, gradient, start = 0.0, [], 0
    for length in lengths:
        rows = scores[start : start + length]
        start += length
        size = len(rows[0])
        highest = [sorted(range(size), key=lambda e: -row[e])[:k] for row in rows]
        f = [size / (k * length) * sum(e in chosen for chosen in highest) for e in range(size)]
        p = [sum(row[e] / sum(row) for row in rows) / length for e in range(size)]
        total += sum(a * b for a, b in zip(f, p, strict=True))
        for row in rows:
            weighted = sum(a * s for a, s in zip(f, row, strict=True))
            gradient.append([(f[j] / sum(row) - weighted / sum(row) ** 2) / length for j in range(size)])
    return total, gradient


@settings(max_examples=40, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 9), min_size=1, max_size=5),
    experts=st.integers(2, 12),
    seed=st.integers(0, 10**6),
    softmax=st.booleans(),
    data=st.data(),
)
def test_balance_loss_and_its_gradient_are_the_formula(
    lengths: list[int], experts: int, seed: int, softmax: bool, data: Any
) -> None:
    k = data.draw(st.integers(1, experts))
    logits = torch.randn(sum(lengths), experts, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    scores_TE = (logits.softmax(-1) if softmax else logits.sigmoid()).requires_grad_()
    loss = sequence_balance_loss(scores_TE, k, lengths)
    loss.backward()
    expected, gradient = written_out(scores_TE.tolist(), k, lengths)
    assert loss.item() == pytest.approx(expected, rel=1e-12)
    torch.testing.assert_close(scores_TE.grad, torch.tensor(gradient, dtype=torch.float64), rtol=1e-9, atol=1e-12)


def test_splitting_the_sequences_does_not_change_the_sum() -> None:
    scores_TE = torch.rand(20, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    parts = [sequence_balance_loss(rows, 2, (len(rows),)) for rows in scores_TE.split([3, 9, 8])]
    assert float(sequence_balance_loss(scores_TE, 2, (3, 9, 8))) == pytest.approx(float(sum(parts)), rel=1e-12)
    with pytest.raises(ValueError, match=r"lengths=\(3, 9\) sum to 12; they must sum to 20 tokens"):
        sequence_balance_loss(scores_TE, 2, (3, 9))


@pytest.mark.parametrize(
    ("load", "highest", "mean", "entropy"),
    [
        ([5, 5, 5, 5], 1.0, 0.0, 1.0),
        ([8, 0, 0, 0], 4.0, 1.5, 0.0),
        ([4, 4, 0, 0], 2.0, 1.0, 0.5),
        ([6, 3, 3, 0], 2.0, 0.5, (math.log(2) / 2 + math.log(4) / 4 + math.log(4) / 4) / math.log(4)),
    ],
)  # fmt: skip
def test_numbers_by_hand(load: list[int], highest: float, mean: float, entropy: float) -> None:
    load_E = torch.tensor(load)
    assert max_violation(load_E) == pytest.approx(highest)
    assert mean_violation(load_E) == pytest.approx(mean)
    assert load_entropy(load_E) == pytest.approx(entropy, abs=1e-12)


def test_numbers_of_several_layers() -> None:
    """A layer without tokens, such as a head that is switched off, has no numbers."""
    loads = {"1": torch.tensor([4, 4, 0, 0]), "2": torch.tensor([5, 5, 5, 5]), "3": torch.zeros(4)}
    numbers = load_numbers(loads)
    assert numbers == pytest.approx(
        {
            "max_violation": 2.0, "max_violation/1": 2.0, "max_violation/2": 1.0,
            "mean_violation": 0.5, "mean_violation/1": 1.0, "mean_violation/2": 0.0,
            "load_entropy": 0.75, "load_entropy/1": 0.5, "load_entropy/2": 1.0,
        }
    )  # fmt: skip
    assert load_numbers({}) == load_numbers({"1": torch.zeros(4)}) == {}


def skewed_scores(tokens: int, generator: torch.Generator) -> Tensor:
    """Affinities of a router that likes its last experts much more than its first."""
    logits_TE = torch.randn(tokens, 8, generator=generator) + torch.linspace(-1.5, 1.5, 8)
    return logits_TE.sigmoid()


@pytest.mark.parametrize(("speed", "even"), [(0.01, True), (0.0, False)])
def test_a_skewed_load_becomes_even_within_200_steps(speed: float, even: bool) -> None:
    """arXiv:2408.15664, figure 1 at toy size: fresh tokens in every step, the router's weights frozen."""
    generator = torch.Generator().manual_seed(0)
    bias_E, worst = torch.zeros(8), []
    for _ in range(200):
        experts_TK = (skewed_scores(4096, generator) + bias_E).topk(2).indices
        load_E = expert_load(experts_TK, 8)
        worst.append(max_violation(load_E))
        bias_E = updated_bias(bias_E, load_E, speed)
    print(f"speed {speed}: max violation {worst[0]:.3f} at first, {worst[-1]:.3f} after 200 steps")
    assert worst[0] > 1.5
    assert (max(worst[-20:]) < 1.2) == even
