"""How many CPUs and GPUs each process of a run gets, and whether a cluster has them: arithmetic, without Ray.

An engine is one bundle of `tensor_parallel` CPUs and as many GPUs, which no scheduler splits over two machines: its
workers sum in every layer. A trainer rank is a bundle of one each; ranks may lie anywhere, and are spread, so that each
has as much memory as it can get. What is not covered: the machines of a cluster that is busy with other runs.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from rlkit.errors import UserError

SHARING = "cluster.share_gpus=true lets several of them share one, each with a part of its memory (engine.memory)"


@dataclass(frozen=True, slots=True, kw_only=True)
class Demand:
    """What the processes of a run need.

    Example: `Demand(engines=2, workers=4, ranks=8)` needs 2 x 4 + 8 = 16 GPUs.
    """

    engines: int
    workers: int
    """Worker processes of each engine."""
    ranks: int
    judges: int = 0
    """Reward models, each in a process of its own."""
    teacher: int = 0
    """Worker processes of the engine of a teacher that is asked for log-probs; 0 = there is none."""

    @property
    def processes(self) -> int:
        """Returns how many processes compute, each of which wants a GPU of its own."""
        return self.engines * self.workers + self.ranks + self.judges + self.teacher

    def __str__(self) -> str:
        engine = f"{self.engines} engine(s)" + (f" of {self.workers} workers" if self.workers > 1 else "")
        teacher = "a teacher" + (f" of {self.teacher} workers" if self.teacher > 1 else "")
        parts = [engine, *([teacher] if self.teacher else [])]
        parts += [f"{self.judges} reward model(s)"] if self.judges else []
        return f"{', '.join(parts)} and {self.ranks} trainer rank(s)" if self.ranks else " and ".join(parts)


def gpu_share(num_gpus: int, demand: Demand, *, share: bool) -> float:
    """Computes the GPUs of each process: 1, or with `share` 1 / k of one where k have to share it, or 0 without GPUs.

    No process gets parts of two GPUs. Raises UserError where there are too few and none may be shared.
    """
    if not num_gpus:
        return 0.0
    if num_gpus >= demand.processes:
        return 1.0
    few = f"{demand} need {demand.processes} GPUs, and there are {num_gpus}"
    for key, workers in (("engine.tensor_parallel", demand.workers), ("teacher.tensor_parallel", demand.teacher)):
        if workers > 1:
            raise UserError(
                f"{key}={workers}: {few}, which workers of one engine cannot share; lower {key}, engine.num_engines "
                "or trainer.num_ranks"
            )
    if not share:
        raise UserError(
            f"cluster.share_gpus=false: {few}; lower engine.num_engines or trainer.num_ranks, or know that {SHARING}"
        )
    return 1 / math.ceil(demand.processes / num_gpus)


def bundles(demand: Demand, gpus: float) -> tuple[list[dict[str, float]], list[dict[str, float]]]:
    """Computes what each engine and what each rank reserves, with `gpus` of `gpu_share` for each process."""
    return [bundle(demand.workers, gpus)] * demand.engines, [bundle(1, gpus)] * demand.ranks


def bundle(processes: int, gpus: float) -> dict[str, float]:
    """Computes what processes that belong on one machine reserve there."""
    return {"CPU": float(processes)} | ({"GPU": gpus * processes} if gpus else {})


def check_room(machines: Sequence[Mapping[str, float]], demand: Demand, gpus: float) -> None:
    """Raises UserError if a cluster of these machines, idle, could not hold the run; the scheduler would wait forever.

    The engines, whose bundles are large, are placed first, the teacher's before the others, each on the first machine
    with room, and then the ranks.
    """
    free = [dict(machine) for machine in machines]
    engines, ranks = bundles(demand, gpus)
    judges = [bundle(1, gpus)] * demand.judges
    teacher = [bundle(demand.teacher, gpus)] if demand.teacher else []
    for name, parts in (
        ("teacher", teacher),
        ("engine", engines),
        ("reward model", judges),
        ("trainer rank", ranks),
    ):
        for place, part in enumerate(parts):
            for machine in free:
                if all(machine.get(kind, 0.0) + 1e-9 >= amount for kind, amount in part.items()):
                    for kind, amount in part.items():
                        machine[kind] = machine.get(kind, 0.0) - amount
                    break
            else:
                raise UserError(_no_room(machines, demand, f"{name} {place + 1} of {len(parts)}", part))


def _no_room(machines: Sequence[Mapping[str, float]], demand: Demand, which: str, part: Mapping[str, float]) -> str:
    def amounts(of: Mapping[str, float]) -> str:
        return " and ".join(f"{of.get(kind, 0.0):g} {kind}s" for kind in part)

    has = "; ".join(amounts(machine) for machine in machines) or "no machines"
    key = "engine.tensor_parallel, " if demand.workers > 1 else ""
    return (
        f"cluster.address: {demand} do not fit: {which} needs {amounts(part)} on one machine, and the cluster has "
        f"{has}; lower {key}engine.num_engines or trainer.num_ranks, or add machines"
    )
