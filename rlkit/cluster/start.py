"""Start Ray if it is not running, and the actors of an engine or a trainer on it."""

from __future__ import annotations

import atexit
import logging
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
from rlkit.cluster.actors import EngineActor, RewardModelActor, TrainerActor
from rlkit.cluster.deaths import named_parts
from rlkit.cluster.placement import placed
from rlkit.cluster.remote import RemoteEngines, RemoteTrainer, remote_copy
from rlkit.config import BaseRun, EngineRun, LearningRun, RunConfig
from rlkit.config.placement import bundle, check_room, gpu_share
from rlkit.errors import UserError
from rlkit.interrupt import end_process
from rlkit.scoring.models import Copies, closing_all
from rlkit.watch.progress import Progress

# Idle threads of one actor must sleep, not spin: engine and trainer take turns on the same cores.
ACTOR_ENV = {"OMP_WAIT_POLICY": "PASSIVE", "KMP_BLOCKTIME": "0", "TOKENIZERS_PARALLELISM": "false"}


@contextmanager
def on_ray(cfg: BaseRun, checkpoint: Path) -> Iterator[None]:
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
def engines_on_ray(cfg: EngineRun, checkpoint: Path, progress: Progress) -> Iterator[RemoteEngines]:
    """Starts `engine.num_engines` actors, which may still be loading when the block begins and end with it."""
    loading = (cfg.engine, checkpoint, cfg.model.kind, cfg.served_adapter)
    engines = [bundle(cfg.engine.tensor_parallel, _gpus(cfg))] * cfg.engine.num_engines
    # A second thread answers how far sampling is while the first one samples.
    with placed(EngineActor, engines, "PACK", max_concurrency=2) as new:
        actors = [actor.remote(*loading) for actor in new]
        with _ending(
            {f"{cfg.engine_name} {number + 1} of {len(actors)}": actor for number, actor in enumerate(actors)}
        ):
            yield RemoteEngines(actors, progress)
            if cfg.engine.tensor_parallel > 1:  # killed, it would leave its workers to notice, and to complain of it
                ray.get([actor.close.remote() for actor in actors])


@contextmanager
def reward_models_on_ray(cfg: RunConfig) -> Iterator[dict[str, Copies]]:
    """Starts an actor for every copy of the reward models that the reward asks for, by `Asked.key`."""
    asked = [one for one in cfg.reward.models for _ in range(one.actors)]
    with placed(RewardModelActor, [bundle(1, _gpus(cfg))] * len(asked), "PACK") as new:
        actors = [actor.remote(one) for actor, one in zip(new, asked, strict=True)]
        with _ending({f"reward model {number + 1} of {len(actors)}": actor for number, actor in enumerate(actors)}):
            by_key: dict[str, list[Any]] = {}
            for one, actor in zip(asked, actors, strict=True):
                by_key.setdefault(one.key, []).append(remote_copy(actor))
            with closing_all({key: Copies(copies) for key, copies in by_key.items()}) as models:
                yield models


@contextmanager
def trainer_on_ray(cfg: LearningRun, checkpoint: Path) -> Iterator[RemoteTrainer]:
    """Starts `trainer.num_ranks` actors, which meet in a store on the first one's machine and end with the block."""
    with placed(TrainerActor, [bundle(1, _gpus(cfg))] * cfg.trainer.num_ranks, "SPREAD") as new:
        ranks = [actor.remote(rank) for rank, actor in enumerate(new)]
        with _ending({f"trainer rank {rank} of {len(ranks)}": actor for rank, actor in enumerate(ranks)}):
            store = ranks[0].host_store.remote(cfg.trainer.num_ranks)
            loading = (cfg.trainer, checkpoint, cfg.model.kind, cfg.needs_reference, cfg.seed, store)
            starting = [actor.start.remote(*loading) for actor in ranks]
            yield RemoteTrainer(ranks, starting, num_stages=cfg.trainer.pipeline)


@contextmanager
def _ending(parts: Mapping[str, Any]) -> Iterator[None]:
    """Ends actors with the block, whoever still holds a handle, so that what starts next has their cores and memory."""
    with named_parts(parts):
        yield
    # A block that raises ends the run, and with it Ray: nothing is asked of a Ray that may be what has failed.
    for actor in parts.values():
        ray.kill(actor)


def _gpus(cfg: BaseRun) -> float:
    """Computes the GPUs of each process on this cluster; raises UserError if it has no room for all of them."""
    machines = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    gpus = gpu_share(int(sum(machine.get("GPU", 0) for machine in machines)), cfg.demand, share=cfg.cluster.share_gpus)
    check_room(machines, cfg.demand, gpus)
    return gpus


def _init_ray(cfg: BaseRun, weight_bytes: int) -> None:
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    # Ray runs its workers at niceness 15: beside any other busy program the run would all but stand still.
    os.environ.setdefault("RAY_worker_niceness", "0")
    # Nor does a run use the workers that Ray would start in advance, one for each core: every actor starts its own.
    os.environ.setdefault("RAY_prestart_worker_first_driver", "0")
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
        with _told(f"cluster.address={cfg.cluster.address}", "correct it, or start a cluster there with `ray start`"):
            ray.init(address=cfg.cluster.address, runtime_env={"env_vars": ACTOR_ENV}, **settings)
        return
    for name, value in ACTOR_ENV.items():
        os.environ.setdefault(name, value)
    busy = "start the command again when this machine is less busy, or try cluster=local engine=torch trainer=torch"
    with _told("cluster=ray", busy):
        ray.init(
            address="local",
            # Cores are counted, not tied: sampling and training take turns, so each may use all of them.
            num_cpus=max(cfg.demand.processes, os.cpu_count() or 1),
            num_gpus=torch.cuda.device_count(),
            include_dashboard=False,
            object_store_memory=cfg.cluster.object_store_bytes(weight_bytes),
            **settings,
        )


@contextmanager
def _told(setting: str, fix: str) -> Iterator[None]:
    """Raises UserError if Ray does not start, which it says in exceptions of many kinds, a bare Exception among
    them."""
    try:
        yield
    except Exception as error:
        raise UserError(f"{setting}: Ray did not start: {error}; {fix}") from error
