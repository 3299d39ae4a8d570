from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from rlkit.algo import group_advantages
from rlkit.algo.advantages import is_flat


def test_one_right_of_four_by_hand() -> None:
    # mean 1/4; squared distances 9/16 + 3/16 = 3/4; sample std sqrt(3/4 / 3) = 1/2; (1 - 1/4) / (1/2) = 3/2
    assert group_advantages([1.0, 0.0, 0.0, 0.0]).tolist() == [1.5, -0.5, -0.5, -0.5]


def test_half_right_by_hand() -> None:
    # mean 1/2; squared distances 4 x 1/4 = 1; std sqrt(1/3); (1/2) / sqrt(1/3) = sqrt(3) / 2
    root = math.sqrt(3) / 2
    assert group_advantages([1.0, 1.0, 0.0, 0.0]).tolist() == pytest.approx([root, root, -root, -root], rel=1e-15)


def test_mean_only_by_hand() -> None:
    assert group_advantages([3.0, 1.0, 2.0, 2.0], scale="none").tolist() == [1.0, -1.0, 0.0, 0.0]


def test_two_rollouts_by_hand() -> None:
    # std of {0, 1} is sqrt(1/2), so the advantages are +-(1/2) / sqrt(1/2) = +-sqrt(1/2)
    assert group_advantages([0.0, 1.0]).tolist() == pytest.approx([-math.sqrt(0.5), math.sqrt(0.5)], rel=1e-15)


@pytest.mark.parametrize("seed", range(5))
def test_equals_numpy_in_float64(seed: int) -> None:
    rewards_PG = np.random.default_rng(seed).normal(size=(7, 8))
    centred = rewards_PG - rewards_PG.mean(1, keepdims=True)
    expected = centred / rewards_PG.std(1, ddof=1, keepdims=True)
    np.testing.assert_allclose(group_advantages(torch.tensor(rewards_PG)).numpy(), expected, rtol=1e-12)


def test_a_group_of_several_equals_each_alone() -> None:
    rewards_PG = torch.tensor([[1.0, 0.0, 0.5], [2.0, 2.0, 2.0], [0.0, 0.0, 1.0]])
    together = group_advantages(rewards_PG)
    for row, rewards_G in zip(together, rewards_PG, strict=True):
        assert torch.equal(row, group_advantages(rewards_G))


@pytest.mark.parametrize("value", [0.0, 1.0, 0.1, 1e-30, -3.7])
@pytest.mark.parametrize("size", [2, 3, 7])
def test_flat_groups_are_exactly_zero(value: float, size: int) -> None:
    # 0.1 summed thrice is not 0.3, so a formula that divides by std + epsilon would return noise here.
    assert group_advantages([value] * size).tolist() == [0.0] * size


ROUNDED = [
    [0.3, 0.1 + 0.2, 0.3, 0.3],
    [0.1 + 0.2, 0.3],
    [-0.3, -(0.1 + 0.2), -0.3],
    [0.1 + 0.7, 0.8, 0.8],
    [1.1 + 2.2, 3.3, 3.3],
    [1e9 + 0.1, 1e9 + 0.1 + 1e-7, 1e9],
    [sum([0.1] * 10), 1.0, 1.0],
    [0.1 + 0.2 - 0.3, 0.0, 0.0, 0.0],
    [-5.6e-17, 5.6e-17],
    [float("nan"), 0.1 + 0.2, 0.3],
    [float(torch.tensor(0.1 + 0.2, dtype=torch.float64)), 0.3],
    [7.0, 7.0 * (1 + 9e-10)],
]
"""Rewards that differ by rounding alone."""
DIFFERENT = [
    [0.3, 0.3 + 1e-6, 0.3, 0.3],
    [0.0, 1e-6],
    [1e6, 1e6 + 0.01],
    [-1.0, 1.0],
    [5.0, 5.0 * (1 + 2e-9)],
    [0.0, float("nan"), 1e-9],
]
"""Rewards that differ, though little."""


@pytest.mark.parametrize("rewards", ROUNDED)
@pytest.mark.parametrize("scale", ["std", "none"])
def test_rewards_that_differ_by_rounding_are_equal(rewards: list[float], scale: str) -> None:
    assert is_flat(rewards)
    assert group_advantages(rewards, scale).tolist() == [0.0] * len(rewards)


@pytest.mark.parametrize("rewards", DIFFERENT)
@pytest.mark.parametrize("scale", ["std", "none"])
def test_rewards_that_differ_by_more_are_told_apart(rewards: list[float], scale: str) -> None:
    assert not is_flat(rewards)
    found = group_advantages(rewards, scale)
    best = max(range(len(rewards)), key=lambda i: -math.inf if math.isnan(rewards[i]) else rewards[i])
    assert found[best] > 0
    assert float(found.sum()) == pytest.approx(0, abs=1e-6)


def test_a_flat_group_beside_others_stays_flat() -> None:
    """Each group of a batch is judged by its own size, not by that of the largest."""
    rewards_PG = torch.tensor([[0.3, 0.1 + 0.2], [1e12, 0.0], [1e-3, 2e-3]], dtype=torch.float64)
    assert group_advantages(rewards_PG).abs().gt(0).tolist() == [[False] * 2, [True] * 2, [True] * 2]


@pytest.mark.parametrize("rewards", [[float("nan")] * 2, [float("nan"), 3.0], [4.0]])
def test_what_cannot_be_compared_is_flat(rewards: list[float]) -> None:
    assert is_flat(rewards)


def test_missing_verdicts_count_in_neither_mean_nor_std() -> None:
    masked = group_advantages([1.0, float("nan"), 0.0, 0.0, float("nan"), 0.0])
    assert masked.tolist() == [1.5, 0.0, -0.5, -0.5, 0.0, -0.5]


@pytest.mark.parametrize("rewards", [[float("nan")] * 3, [1.0, float("nan")]])
def test_one_verdict_or_none_teaches_nothing(rewards: list[float]) -> None:
    assert group_advantages(rewards).tolist() == [0.0] * len(rewards)


def test_unknown_scale_is_refused() -> None:
    with pytest.raises(ValueError, match="'rank' is unknown; use one of std, none"):
        group_advantages([1.0, 0.0], scale="rank")
