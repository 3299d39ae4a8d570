"""The arithmetic of CPUs and GPUs, with counts of machines that are not here; wrong ones are refused in words."""

from __future__ import annotations

import pytest

from rlkit.config import GrpoRun
from rlkit.config.compose import load_config
from rlkit.config.placement import Demand, bundles, check_room, gpu_share
from rlkit.errors import UserError

NODE = {"CPU": 64.0, "GPU": 8.0, "memory": 1e12, "node:10.0.0.1": 1.0}
RAY = ["cluster=ray", "engine=vllm"]


def demand(engines: int, workers: int, ranks: int) -> Demand:
    return Demand(engines=engines, workers=workers, ranks=ranks)


@pytest.mark.parametrize(
    ("num_gpus", "needs", "share"),
    [
        (0, demand(1, 8, 64), 0.0),
        (4, demand(1, 1, 1), 1.0),
        (2, demand(1, 1, 1), 1.0),
        (10, demand(2, 4, 2), 1.0),
        (1, demand(1, 1, 1), 0.5),
        (2, demand(1, 1, 2), 0.5),
        (2, demand(2, 1, 3), 1 / 3),
        (3, demand(2, 1, 2), 0.5),
    ],
)
def test_shares_fit_without_splitting_a_process_over_two_gpus(num_gpus: int, needs: Demand, share: float) -> None:
    assert gpu_share(num_gpus, needs, share=True) == share
    if num_gpus:
        assert num_gpus * int(1 / share + 1e-9) >= needs.processes
    if share in (0.0, 1.0):
        assert gpu_share(num_gpus, needs, share=False) == share


@pytest.mark.parametrize(
    ("num_gpus", "needs", "words"),
    [
        (
            1,
            demand(1, 1, 1),
            "cluster.share_gpus=false: 1 engine(s) and 1 trainer rank(s) need 2 GPUs, and there are 1",
        ),
        (
            7,
            demand(4, 1, 4),
            "need 8 GPUs, and there are 7; lower engine.num_engines or trainer.num_ranks, or know that",
        ),
        (2, demand(3, 1, 0), "cluster.share_gpus=false: 3 engine(s) need 3 GPUs, and there are 2"),
        (8, demand(1, 8, 1), "engine.tensor_parallel=8: 1 engine(s) of 8 workers and 1 trainer rank(s) need 9 GPUs"),
    ],
)
def test_too_few_gpus_are_refused_unless_they_may_be_shared(num_gpus: int, needs: Demand, words: str) -> None:
    with pytest.raises(UserError) as refusal:
        gpu_share(num_gpus, needs, share=False)
    assert words in str(refusal.value)
    if needs.workers > 1:
        with pytest.raises(UserError, match="which workers of one engine cannot share"):
            gpu_share(num_gpus, needs, share=True)
    else:
        assert 0 < gpu_share(num_gpus, needs, share=True) < 1


def test_an_engine_is_one_bundle_and_a_rank_another() -> None:
    engines, ranks = bundles(demand(2, 8, 3), 1.0)
    assert engines == [{"CPU": 8.0, "GPU": 8.0}] * 2
    assert ranks == [{"CPU": 1.0, "GPU": 1.0}] * 3
    assert bundles(demand(1, 2, 1), 0.0) == ([{"CPU": 2.0}], [{"CPU": 1.0}])
    assert bundles(demand(1, 1, 1), 0.5) == ([{"CPU": 1.0, "GPU": 0.5}], [{"CPU": 1.0, "GPU": 0.5}])


@pytest.mark.parametrize(
    ("machines", "needs"),
    [
        ([NODE] * 2, demand(1, 8, 8)),
        ([NODE] * 2, demand(2, 4, 8)),
        ([NODE] * 96, demand(32, 8, 512)),
        ([{"CPU": 64.0}, NODE], demand(1, 8, 0)),
        ([{"CPU": 1.0}, {"CPU": 2.0}], demand(1, 2, 1)),
    ],
)
def test_what_fits_is_taken(machines: list[dict[str, float]], needs: Demand) -> None:
    check_room(machines, needs, 1.0 if any("GPU" in machine for machine in machines) else 0.0)


@pytest.mark.parametrize(
    ("machines", "needs", "words"),
    [
        ([{"CPU": 8.0, "GPU": 4.0}] * 4, demand(1, 8, 4), "engine 1 of 1 needs 8 CPUs and 8 GPUs on one machine"),
        ([NODE, {"CPU": 8.0, "GPU": 2.0}], demand(2, 4, 4), "trainer rank 3 of 4 needs 1 CPUs and 1 GPUs"),
        ([NODE] * 3, demand(5, 5, 0), "engine 4 of 5 needs 5 CPUs and 5 GPUs"),
        (
            [{"CPU": 2.0}],
            demand(1, 2, 1),
            "trainer rank 1 of 1 needs 1 CPUs on one machine, and the cluster has 2 CPUs",
        ),
        ([], demand(1, 1, 0), "and the cluster has no machines; lower engine.num_engines"),
    ],
)
def test_what_does_not_fit_is_refused_and_the_part_named(
    machines: list[dict[str, float]], needs: Demand, words: str
) -> None:
    with pytest.raises(UserError) as refusal:
        check_room(machines, needs, 1.0 if any("GPU" in machine for machine in machines) else 0.0)
    assert words in str(refusal.value)
    assert ("engine.tensor_parallel" in str(refusal.value)) == (needs.workers > 1)


def test_a_run_says_what_it_needs() -> None:
    words = ["engine.num_engines=2", "engine.tensor_parallel=4", "trainer.num_ranks=4", "algo.prompts_per_step=8"]
    cfg = load_config("grpo", GrpoRun, [*RAY, *words])
    assert cfg.demand == demand(2, 4, 4) and cfg.demand.processes == 12
    assert not cfg.cluster.share_gpus
    assert load_config("grpo", GrpoRun, [*RAY, "cluster.share_gpus=true"]).cluster.share_gpus
