"""Reserve places for actors on a Ray cluster, all of them at once or none."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import ray
from ray.util.placement_group import placement_group, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from rlkit.errors import UserError

PATIENCE_S = 600.0
"""How long to wait for places on a cluster that is busy with other runs."""


@contextmanager
def placed(
    actor_class: type, bundles: Sequence[Mapping[str, float]], strategy: str, **options: Any
) -> Iterator[list[Any]]:
    """Reserves a bundle for each actor of a class and yields what makes it there (`.remote(...)`), in order.

    A bundle lies on one machine. "PACK" puts all of them on as few machines as it can, "SPREAD" on as many. Raises
    UserError if the cluster has no room within ten minutes.
    """
    group = placement_group([dict(bundle) for bundle in bundles], strategy=strategy)
    if not group.wait(PATIENCE_S):
        remove_placement_group(group)
        raise UserError(
            f"cluster.address: for {PATIENCE_S:g} s the cluster has had no room for {len(bundles)} x "
            f"{dict(bundles[0])}, because other runs have it; wait for them, or use another cluster"
        )
    remote: Any = ray.remote  # its overloads do not know options
    yield [
        remote(actor_class).options(
            num_cpus=bundle["CPU"],
            num_gpus=bundle.get("GPU", 0),
            scheduling_strategy=PlacementGroupSchedulingStrategy(group, placement_group_bundle_index=place),
            **options,
        )
        for place, bundle in enumerate(bundles)
    ]
    # A block that raises ends the run, and with it what it has reserved.
    remove_placement_group(group)
