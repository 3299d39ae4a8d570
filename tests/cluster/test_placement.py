"""Where Ray puts engines and ranks: on machines and GPUs that are only claimed, by a real scheduler."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import ray
from ray.cluster_utils import Cluster

from rlkit.cluster import placement
from rlkit.cluster.placement import placed
from rlkit.cluster.start import engines_on_ray
from rlkit.config import GrpoRun
from rlkit.config.compose import load_config
from rlkit.config.placement import Demand, bundles
from rlkit.errors import UserError
from rlkit.watch.progress import silent

pytestmark = pytest.mark.slow
STORE_BYTES = 2**27


class Witness:
    """Says where it is."""

    def where(self) -> tuple[str, tuple[int, ...]]:
        """The machine, and the GPUs that are this actor's own."""
        return ray.get_runtime_context().get_node_id(), tuple(int(gpu) for gpu in ray.get_gpu_ids())


@pytest.fixture(scope="module")
def machines() -> Iterator[None]:
    """Two machines with three GPUs each, which nobody looks for."""
    shape: dict[str, Any] = {"num_cpus": 8, "num_gpus": 3, "object_store_memory": STORE_BYTES}
    cluster = Cluster(initialize_head=True, head_node_args=shape)
    try:
        cluster.add_node(**shape)
        ray.init(address=cluster.address, logging_level=logging.ERROR)
        yield
    finally:
        ray.shutdown()
        cluster.shutdown()


def test_an_engine_has_its_gpus_on_one_machine_and_ranks_are_spread_over_the_rest(machines: None) -> None:
    engines, ranks = bundles(Demand(engines=1, workers=2, ranks=4), 1.0)
    with placed(Witness, engines, "PACK") as first, placed(Witness, ranks, "SPREAD") as then:
        [(home, pair)] = ray.get([actor.remote().where.remote() for actor in first])
        narrow = ray.get([actor.remote().where.remote() for actor in then])
    assert len(set(pair)) == 2
    assert [len(gpus) for _, gpus in narrow] == [1] * 4
    owned = [(home, gpu) for gpu in pair] + [(machine, gpu) for machine, gpus in narrow for gpu in gpus]
    assert len(set(owned)) == 6, "a GPU is shared"
    assert Counter(machine == home for machine, _ in narrow) == {True: 1, False: 3}


def test_what_was_reserved_is_free_again(machines: None) -> None:
    _, ranks = bundles(Demand(engines=1, workers=1, ranks=6), 1.0)
    for _ in range(3):
        with placed(Witness, ranks, "SPREAD") as new:
            assert len(new) == 6


def test_a_busy_cluster_is_waited_for_and_then_named(machines: None, monkeypatch: pytest.MonkeyPatch) -> None:
    engines, ranks = bundles(Demand(engines=2, workers=3, ranks=1), 1.0)
    words = r"the cluster has had no room for 1 x \{'CPU': 1\.0, 'GPU': 1\.0\}"
    with placed(Witness, engines, "PACK"):
        monkeypatch.setattr(placement, "PATIENCE_S", 0.5)
        with pytest.raises(UserError, match=words), placed(Witness, ranks, "SPREAD"):
            pass


@pytest.mark.parametrize(
    ("words", "refusal"),
    [
        (
            ["engine.tensor_parallel=4"],
            r"engine 1 of 1 needs 4 CPUs and 4 GPUs on one machine, and the cluster has 8 CPUs and 3 GPUs; 8 CPUs and",
        ),
        (["trainer.num_ranks=12"], r"cluster\.share_gpus=false: 1 engine\(s\) and 12 trainer rank\(s\) need 13 GPUs"),
    ],
)
def test_a_cluster_that_is_too_small_is_refused_before_an_actor_starts(
    machines: None, tmp_path: Path, words: list[str], refusal: str
) -> None:
    cfg = load_config("grpo", GrpoRun, ["cluster=ray", "engine=vllm", "algo.prompts_per_step=24", *words])
    with pytest.raises(UserError, match=refusal), engines_on_ray(cfg, tmp_path, silent):
        pass
