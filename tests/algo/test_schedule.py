from __future__ import annotations

import math

import pytest
import torch

from rlkit.algo import Schedule


@pytest.mark.parametrize("num_steps", [10, 37])
def test_cosine_equals_torch_after_the_warm_up(num_steps: int) -> None:
    schedule = Schedule(lr=0.3, warmup_steps=0, kind="cosine", final_ratio=0.1)
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=0.3)
    reference = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=num_steps, eta_min=0.03)
    for step in range(1, num_steps + 1):
        optimizer.step()
        reference.step()
        assert schedule.at(step, num_steps) == pytest.approx(reference.get_last_lr()[0], rel=1e-9)


def test_points_by_hand() -> None:
    schedule = Schedule(lr=1.0, warmup_steps=4, kind="cosine", final_ratio=0.2)
    assert [schedule.at(step, 12) for step in (1, 4, 8, 12)] == pytest.approx([0.25, 1.0, 0.6, 0.2])
    linear = Schedule(lr=1.0, warmup_steps=4, kind="linear", final_ratio=0.2)
    assert [linear.at(step, 12) for step in (6, 12)] == pytest.approx([0.8, 0.2])
    constant = Schedule(lr=1.0, warmup_steps=2, kind="constant", final_ratio=0.2)
    assert [constant.at(step, 12) for step in (1, 2, 3, 12)] == [0.5, 1.0, 1.0, 1.0]


@pytest.mark.parametrize("kind", ["constant", "cosine", "linear"])
def test_the_first_step_already_learns(kind: str) -> None:
    schedule = Schedule(lr=1e-3, warmup_steps=3, kind=kind, final_ratio=0.0)
    assert schedule.at(1, 5) > 0
    assert all(math.isfinite(schedule.at(step, 5)) for step in range(1, 6))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"lr": 0.0}, "lr=0.0 must be above 0"),
        ({"warmup_steps": -1}, "warmup_steps=-1 must be at least 0"),
        ({"kind": "cosin"}, "kind='cosin' is unknown"),
    ],
)
def test_meaningless_schedules_are_refused(change: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Schedule(**{"lr": 1e-3, "warmup_steps": 0, "kind": "cosine", "final_ratio": 0.1, **change})
