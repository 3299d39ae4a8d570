"""A recipe on a Ray cluster of two machines: the engine on the one, the trainer on the other."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from pathlib import Path

import pytest
import ray
from ray._private import state
from ray.cluster_utils import Cluster

from tests.e2e.runs import SPREAD_REWARD, TINY, finish, finish_here

pytestmark = pytest.mark.slow
STORE_BYTES = 2**28
FAST = [word for word in TINY if not word.startswith(("sft.", "algo.steps", "model.architecture.moe"))]
SPLIT = [*FAST, "algo.steps=2"]


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    """Two machines as Ray sees them, each with room for one process."""
    made = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "object_store_memory": STORE_BYTES})
    try:
        made.add_node(num_cpus=1, object_store_memory=STORE_BYTES)
        yield made
    finally:
        made.shutdown()


def places(cluster: Cluster) -> dict[str, str]:
    """Which machine each actor ran on, by its class, from the cluster's own book, which keeps the dead."""
    ray.init(address=cluster.address, logging_level=logging.ERROR)
    try:
        return {actor["ActorClassName"]: actor["Address"]["NodeID"] for actor in state.actors().values()}
    finally:
        ray.shutdown()


def test_the_engine_has_one_machine_and_the_trainer_the_other(cluster: Cluster, tmp_path: Path) -> None:
    plugin = tmp_path / "plugin.py"
    plugin.write_text(SPREAD_REWARD)
    run = tmp_path / "run"
    words = [f"cluster.address={cluster.address}", f"reward={plugin}:spread", f"output_dir={run}"]
    printed = finish("grpo", *SPLIT, *words)
    machines = {node.node_id for node in cluster.list_all_nodes()}
    found = places(cluster)
    assert len(machines) == 2 and {found["TrainerActor"], found["EngineActor"]} == machines

    assert "terminate called" not in printed and "Traceback" not in printed and "leaked" not in printed, printed
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    steps = [line for line in lines if line["stage"] == "grpo"]
    assert len(steps) == 2 and all(0 < step["parity"] <= 1e-4 for step in steps)
    assert all(step["logprob_gap"] <= 1e-4 for step in steps), "the trainer and the engine disagree on rollouts"
    assert (run / "model" / "model.safetensors").exists()


def test_a_cluster_without_room_is_refused_before_an_actor_starts(cluster: Cluster, tmp_path: Path) -> None:
    address, before = f"cluster.address={cluster.address}", places(cluster)
    words = [*words_of_grpo(), "engine.tensor_parallel=4", address, f"output_dir={tmp_path}/run"]
    assert "engine 1 of 1 needs 4 CPUs on one machine, and the cluster has" in finish_here("grpo", *words, code=1)
    assert places(cluster) == before


def words_of_grpo() -> list[str]:
    return [
        "model.architecture.moe_intermediate_size=128",
        *FAST,
        "algo.steps=1",
    ]
