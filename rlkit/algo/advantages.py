"""Group-relative advantages: a rollout is judged against its siblings, so no critic is needed."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

SCALES = ("std", "none")
FLAT = 1e-9
"""Rewards that spread over less than this share of their size are equal up to rounding: 0.3 and 0.1 + 0.2."""
SMALLEST = 1e-6
"""Rewards count as at least this large: 0.1 + 0.2 - 0.3 is 5.6e-17, which is all rounding and still means 0."""


def group_advantages(rewards_G: Tensor | Sequence[float], scale: str = "std") -> Tensor:
    """Compares the rewards of a group with their mean (DeepSeekMath, arXiv:2402.03300, section 4.1.2).

    scale="std":   A_i = (r_i - mean r) / std r        std is the sample standard deviation (G - 1 in the denominator)
    scale="none":  A_i = r_i - mean r                  (Dr. GRPO, arXiv:2503.20783)

    No epsilon is added: a group whose rewards are all equal (up to rounding, see `FLAT`) has advantage 0, not noise /
    epsilon. NaN marks a reward without a verdict: it counts in neither mean nor std, and its advantage is 0.

    Args:
        rewards_G: rewards of one group, or [..., G] for several groups of one size.
        scale: "std" or "none".

    Returns:
        Advantages, float64 in the shape of the rewards.

    Raises:
        ValueError: for another scale.
    """
    if scale not in SCALES:
        raise ValueError(f"scale={scale!r} is unknown; use one of {', '.join(SCALES)}")
    rewards = torch.as_tensor(rewards_G, dtype=torch.float64)
    valid = ~rewards.isnan()
    count = valid.sum(-1, keepdim=True)
    filled = rewards.nan_to_num(nan=0.0)
    # A rollout without a verdict is nobody's fault: as a 0 it would be punished, and it would raise all others. So it
    # is taken out of the mean, and its own advantage is 0.
    centred = torch.where(valid, filled - filled.sum(-1, keepdim=True) / count.clamp(min=1), 0.0)
    # Equal rewards need not have an exact mean (0.1 + 0.1 + 0.1), so flatness is decided on the rewards themselves.
    centred = torch.where(_spread(rewards), centred, 0.0)
    if scale == "none":
        return centred
    std = (centred.square().sum(-1, keepdim=True) / (count - 1).clamp(min=1)).sqrt()
    return torch.where(std > 0, centred / std, 0.0)


def is_flat(rewards_G: Tensor | Sequence[float]) -> bool:
    """Says whether no reward of a group is better than another, NaN left out: such a group teaches nothing."""
    return not bool(_spread(torch.as_tensor(rewards_G, dtype=torch.float64)))


def _spread(rewards: Tensor) -> Tensor:
    """Whether the rewards of each group differ by more than rounding, [..., 1]; False where none has a verdict."""
    low = rewards.nan_to_num(nan=torch.inf).amin(-1, keepdim=True)
    high = rewards.nan_to_num(nan=-torch.inf).amax(-1, keepdim=True)
    return high - low > FLAT * torch.maximum(low.abs(), high.abs()).clamp(min=SMALLEST)
