from __future__ import annotations

import pytest

from rlkit.cluster.start import gpu_share


@pytest.mark.parametrize(
    ("num_gpus", "num_actors", "share"),
    [(0, 3, 0.0), (4, 2, 1.0), (2, 2, 1.0), (1, 2, 0.5), (2, 3, 0.5), (2, 5, 1 / 3), (3, 4, 0.5)],
)
def test_shares_fit_without_splitting_an_actor_over_two_gpus(num_gpus: int, num_actors: int, share: float) -> None:
    assert gpu_share(num_gpus, num_actors) == share
    if num_gpus:
        assert num_gpus * int(1 / share + 1e-9) >= num_actors
