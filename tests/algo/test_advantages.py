from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from rlkit.algo import group_advantages


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


def test_missing_verdicts_count_in_neither_mean_nor_std() -> None:
    masked = group_advantages([1.0, float("nan"), 0.0, 0.0, float("nan"), 0.0])
    assert masked.tolist() == [1.5, 0.0, -0.5, -0.5, 0.0, -0.5]


@pytest.mark.parametrize("rewards", [[float("nan")] * 3, [1.0, float("nan")]])
def test_one_verdict_or_none_teaches_nothing(rewards: list[float]) -> None:
    assert group_advantages(rewards).tolist() == [0.0] * len(rewards)


def test_unknown_scale_is_refused() -> None:
    with pytest.raises(ValueError, match="'rank' is unknown; use one of std, none"):
        group_advantages([1.0, 0.0], scale="rank")
