"""Start Ray if it is not running, and the actors of an engine or a trainer on it."""

from __future__ import annotations

import atexit
import logging
import math
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import ray
import torch
from ray import cloudpickle
from ray.job_config import JobConfig

from rewards.own_files import own_modules
from rlkit.cluster.actors import EngineActor, TrainerActor
from rlkit.cluster.deaths import named_parts
from rlkit.cluster.remote import RemoteEngines, RemoteTrainer
from rlkit.config import RunConfig, TrainingRun
from rlkit.interrupt import end_process
from rlkit.watch.progress import Progress

# Idle threads of one actor must sleep, not spin: engine and trainer take turns on the same cores.
ACTOR_ENV = {"OMP_WAIT_POLICY": "PASSIVE", "KMP_BLOCKTIME": "0", "TOKENIZERS_PARALLELISM": "false"}


@contextmanager
def on_ray(cfg: RunConfig, checkpoint: Path) -> Iterator[None]:
    """Makes sure that Ray runs; whoever started it, the first part of a run, also ends it, the last to leave."""
    if ray.is_initialized():
        yield
        return
    _init_ray(cfg, sum(file.stat().st_size for file in checkpoint.glob("*.safetensors")))
    interrupted = False
    try:
        yield
    except KeyboardInterrupt:
        # Ray's own end waits for actors that are at work, and has crashed on the way. The reaper ends all that Ray has
        # started; and at the exit of this process, too, Ray must find nothing left to do.
        interrupted = True
        atexit.register(end_process)
        raise
    finally:
        if not interrupted:
            ray.shutdown()


@contextmanager
def engines_on_ray(cfg: RunConfig, checkpoint: Path, progress: Progress) -> Iterator[RemoteEngines]:
    """Starts `engine.num_engines` actors, which may still be loading when the block begins and end with it."""
    remote: Any = ray.remote  # its overloads do not know options
    # A second thread answers how far sampling is while the first one samples.
    new = remote(EngineActor).options(max_concurrency=2, **_resources(cfg))
    loading = (cfg.engine, checkpoint, cfg.model.kind, cfg.served_adapter)
    actors = [new.remote(*loading) for _ in range(cfg.engine.num_engines)]
    with _ending({f"engine {number + 1} of {len(actors)}": actor for number, actor in enumerate(actors)}):
        yield RemoteEngines(actors, progress)


@contextmanager
def trainer_on_ray(cfg: TrainingRun, checkpoint: Path) -> Iterator[RemoteTrainer]:
    """Starts `trainer.num_ranks` actors, which meet in a store on the first one's machine and end with the block."""
    remote: Any = ray.remote
    new = remote(TrainerActor).options(**_resources(cfg))
    ranks = [new.remote(rank) for rank in range(cfg.trainer.num_ranks)]
    with _ending({f"trainer rank {rank} of {len(ranks)}": actor for rank, actor in enumerate(ranks)}):
        store = ranks[0].host_store.remote(cfg.trainer.num_ranks)
        loading = (cfg.trainer, checkpoint, cfg.model.kind, cfg.needs_reference, cfg.seed, store)
        yield RemoteTrainer(ranks, [actor.start.remote(*loading) for actor in ranks])


@contextmanager
def _ending(parts: Mapping[str, Any]) -> Iterator[None]:
    """Ends actors with the block, whoever still holds a handle, so that what starts next has their cores and memory."""
    with named_parts(parts):
        yield
    # A block that raises ends the run, and with it Ray: nothing is asked of a Ray that may be what has failed.
    for actor in parts.values():
        ray.kill(actor)


def gpu_share(num_gpus: int, num_actors: int) -> float:
    """GPUs for each actor: one, or 1 / k of one when k actors have to share it (Ray splits no actor over two)."""
    if not num_gpus:
        return 0.0
    return 1.0 if num_gpus >= num_actors else 1 / math.ceil(num_actors / num_gpus)


def _resources(cfg: RunConfig) -> dict[str, float]:
    return {"num_cpus": 1, "num_gpus": gpu_share(int(ray.cluster_resources().get("GPU", 0)), cfg.num_actors)}


def _init_ray(cfg: RunConfig, weight_bytes: int) -> None:
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    # Ray runs its workers at niceness 15: beside any other busy program the run would all but stand still.
    os.environ.setdefault("RAY_worker_niceness", "0")
    # Its news that the new cluster wants a token, which nobody who runs a recipe has to do anything about.
    logging.getLogger("ray._private.authentication.authentication_token_setup").setLevel(logging.ERROR)
    # Ray puts the driver's current folder in front of every worker's search path, and a tokenizers.py there would be
    # imported in place of the installed package. The only jobs that it leaves alone are those of its client; marking
    # ours as one changes nothing else (ray/_private/worker.py, `connect`).
    settings = {"logging_level": logging.WARNING, "job_config": JobConfig(_client_job=True)}
    # A recipe may define a loss or another class, in a file that a worker cannot import by name: it travels as code.
    for module in own_modules():
        cloudpickle.register_pickle_by_value(module)
    if cfg.cluster.address:
        ray.init(address=cfg.cluster.address, runtime_env={"env_vars": ACTOR_ENV}, **settings)
        return
    for name, value in ACTOR_ENV.items():
        os.environ.setdefault(name, value)
    ray.init(
        address="local",
        # Cores are counted, not tied: sampling and training take turns, so each may use all of them.
        num_cpus=max(cfg.num_actors, os.cpu_count() or 1),
        num_gpus=torch.cuda.device_count(),
        include_dashboard=False,
        object_store_memory=cfg.cluster.object_store_bytes(weight_bytes),
        **settings,
    )
