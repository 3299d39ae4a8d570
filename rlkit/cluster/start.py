"""Start the parts of a run, in this process or on Ray, and end them with the `with` block."""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import distributed

from rlkit.build import build_engine, build_trainer, gate_inputs
from rlkit.cluster.reaper import reaped
from rlkit.config import GrpoRun, RunConfig
from rlkit.engine.base import Engine
from rlkit.loop import Parts
from rlkit.parity import check_parity
from rlkit.run.open import Run
from rlkit.run.prepare import initial_checkpoint
from rlkit.scoring.pool import build_reward
from rlkit.train.base import Trainer

if TYPE_CHECKING:
    from rlkit.cluster.remote import RemoteEngines

OBJECT_STORE_BYTES = 2**29
"""Of Ray's object store, for batches and rollouts; room for two syncs' weights in fp32 comes on top."""

# Idle threads of one actor must sleep, not spin: engine and trainer take turns on the same cores.
ACTOR_ENV = {"OMP_WAIT_POLICY": "PASSIVE", "KMP_BLOCKTIME": "0", "TOKENIZERS_PARALLELISM": "false"}


@contextmanager
def start(cfg: RunConfig, run: Run) -> Iterator[Parts]:
    """Bring up engine, trainer and reward, restore the newest checkpoint, and hand them to the recipe."""
    checkpoint = initial_checkpoint(cfg, run.task).absolute()
    keep_reference = isinstance(cfg, GrpoRun) and cfg.algo.loss.kl_coef > 0
    place = _in_process if cfg.cluster.kind == "local" else _on_ray
    # The reward first: its processes load it while the models are loaded.
    with (
        reaped(),
        build_reward(cfg.reward) as reward,
        place(cfg, run, checkpoint, keep_reference) as (engine, trainer, gate),
    ):
        parts = Parts(engine=engine, trainer=trainer, reward=reward, gate=gate, max_tokens=cfg.trainer.max_tokens)
        run.restore(parts)
        yield parts


@contextmanager
def _in_process(
    cfg: RunConfig, run: Run, checkpoint: Path, keep_reference: bool
) -> Iterator[tuple[Engine, Trainer, Any]]:
    store = distributed.HashStore()
    architecture = cfg.model.architecture
    trainer = build_trainer(
        cfg.trainer, checkpoint, architecture, keep_reference=keep_reference, seed=cfg.seed, store=store, rank=0
    )
    sequences, tolerance = gate_inputs(cfg, run.task)

    def gate(engine: Engine, trainer: Trainer) -> float:
        return check_parity(engine, trainer, sequences, tolerance)

    yield build_engine(cfg.engine, checkpoint, architecture), trainer, gate


@contextmanager
def _on_ray(cfg: RunConfig, run: Run, checkpoint: Path, keep_reference: bool) -> Iterator[tuple[Engine, Trainer, Any]]:
    import ray  # cluster=local runs without it

    from rlkit.cluster.actors import EngineActor, TrainerActor
    from rlkit.cluster.remote import Asked, RemoteEngines, RemoteTrainer

    num_actors = cfg.engine.num_engines + cfg.trainer.num_ranks
    run.console.line(f"starting {cfg.engine.num_engines} engine(s) and {cfg.trainer.num_ranks} trainer rank(s) on Ray")
    weight_bytes = sum(file.stat().st_size for file in checkpoint.glob("*.safetensors"))
    _init_ray(cfg, num_actors, weight_bytes)
    try:
        options = {"num_cpus": 1, "num_gpus": gpu_share(int(ray.cluster_resources().get("GPU", 0)), num_actors)}
        remote: Any = ray.remote  # its overloads do not know options
        new_engine = remote(EngineActor).options(max_concurrency=2, **options)
        engines = [
            new_engine.remote(cfg.engine, checkpoint, cfg.model.architecture) for _ in range(cfg.engine.num_engines)
        ]
        new_rank = remote(TrainerActor).options(**options)
        ranks = [new_rank.remote(rank) for rank in range(cfg.trainer.num_ranks)]
        store = ray.get(ranks[0].host_store.remote(cfg.trainer.num_ranks))
        loading = (cfg.trainer, checkpoint, cfg.model.architecture, keep_reference, cfg.seed, store)
        starting = [actor.start.remote(*loading) for actor in ranks]
        ray.get([*starting, *(actor.ready.remote() for actor in engines)])
        sequences, tolerance = gate_inputs(cfg, run.task)

        def gate(engines: RemoteEngines, trainer: RemoteTrainer) -> float:
            # All processes are at work before the first comparison waits for any of them.
            *samplers, learner = [Asked(actor, sequences) for actor in (*engines.actors, trainer.actors[0])]
            return max(check_parity(sampler, learner, sequences, tolerance) for sampler in samplers)

        yield RemoteEngines(engines, run.console), RemoteTrainer(ranks), gate
    finally:
        ray.shutdown()


def gpu_share(num_gpus: int, num_actors: int) -> float:
    """GPUs for each actor: one, or 1 / k of one when k actors have to share it (Ray splits no actor over two)."""
    if not num_gpus:
        return 0.0
    return 1.0 if num_gpus >= num_actors else 1 / math.ceil(num_actors / num_gpus)


def _init_ray(cfg: RunConfig, num_actors: int, weight_bytes: int) -> None:
    import ray

    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    # Ray runs its workers at niceness 15: beside any other busy program the run would all but stand still.
    os.environ.setdefault("RAY_worker_niceness", "0")
    # Its news that the new cluster wants a token, which nobody who runs a recipe has to do anything about.
    logging.getLogger("ray._private.authentication.authentication_token_setup").setLevel(logging.ERROR)
    if cfg.cluster.address:
        ray.init(address=cfg.cluster.address, runtime_env={"env_vars": ACTOR_ENV}, logging_level=logging.WARNING)
        return
    for name, value in ACTOR_ENV.items():
        os.environ.setdefault(name, value)
    ray.init(
        address="local",
        # Cores are counted, not tied: sampling and training take turns, so each may use all of them.
        num_cpus=max(num_actors, os.cpu_count() or 1),
        num_gpus=torch.cuda.device_count(),
        include_dashboard=False,
        object_store_memory=OBJECT_STORE_BYTES + 4 * weight_bytes,
        logging_level=logging.WARNING,
    )
