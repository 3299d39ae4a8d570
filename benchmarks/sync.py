"""Seconds and memory of a sync: two trainer ranks publish, one engine loads, through Ray as a run does.

    .venv/bin/python -m benchmarks.sync                  DeepSeek-V3 shapes, 1 GB in bf16: 2 minutes and 8 GB of memory
    .venv/bin/python -m benchmarks.sync --model tiny     the quickstart's model in fp32
    .venv/bin/python -m benchmarks.sync --engine torch   the engine without vLLM

The ranks share out the experts (EP=2) and are those of a run but for their optimiser, which a sync does not touch;
driver and engine are a run's own.
Seconds are medians; CPU s are those of ranks and engine, and say what the work costs where the machine is shared.
Memory is what a process has for itself (RssAnon of /proc, read every 2 ms), as growth over what it had before the first
sync, so the pages of Ray's store, which all processes share and which hold the published weights once, are not in it.
Before that each process hands back what it has freed, or its heap could take a copy without growing.
Results: benchmarks/RESULTS.md.
"""

from __future__ import annotations

import argparse
import ctypes
import os
import statistics
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from threading import Event, Thread
from time import perf_counter
from typing import Any

import psutil
import ray
import torch
from ray import cloudpickle

from benchmarks.timing import machine, used_by
from rlkit.cluster.actors import EngineActor, TrainerActor
from rlkit.cluster.reaper import reaped
from rlkit.cluster.remote import RemoteEngines, RemoteTrainer
from rlkit.cluster.start import on_ray
from rlkit.cluster.transfer import BUCKET_BYTES, RemoteWeights
from rlkit.config import EngineConfig, GrpoRun, TrainerConfig
from rlkit.config.compose import load_config
from rlkit.data.tokenizer import read_decoder
from rlkit.engine.local import TorchEngine
from rlkit.model.experts import ExpertShare
from rlkit.model.files.end_tokens import end_tokens
from rlkit.model.load import load_model
from rlkit.run.prepare import initial_checkpoint, prepare
from rlkit.train.steppers.torch import TorchStepper
from rlkit.train.trainer import ModelTrainer

MODELS = {
    "tiny": ["engine.dtype=fp32", "trainer.dtype=fp32"],
    "200 MB": ["model=deepseek_v3_1b", "model.architecture.num_hidden_layers=3", "model.architecture.vocab_size=320"],
    "1 GB": ["model=deepseek_v3_1b", "model.architecture.num_hidden_layers=10", "model.architecture.vocab_size=320"],
}
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
NUM_RANKS = 2
POLL_S = 0.002
PHASES = ("publish", "load", "cpu")


class Rank(TrainerActor):
    """A trainer rank that holds the policy and no optimiser's state."""

    def begin(self, cfg: TrainerConfig, folder: Path, kind: str) -> None:
        """Loads this rank's share; the ranks need not meet, because they publish without asking each other."""
        torch.set_num_threads(1)
        self.num_ranks = cfg.num_ranks
        share = ExpertShare(rank=self.rank, size=cfg.expert_parallel)
        model = load_model(folder, DTYPES[cfg.dtype], kind, share)
        self.trainer = ModelTrainer(model, TorchStepper(model, cfg), reference=None)

    def process(self) -> int:
        """Hands freed memory back to the system; returns the number of this process."""
        return trimmed()


class Host(EngineActor):
    """An engine; the one without vLLM in the dtype that is asked for, which a run makes in fp32 only."""

    def __init__(self, cfg: EngineConfig, folder: Path, kind: str, dtype: str) -> None:
        if cfg.kind == "vllm":
            super().__init__(cfg, folder, kind, None)
            return
        torch.set_num_threads(1)
        model = load_model(folder, DTYPES[dtype], kind)
        self.engine = TorchEngine(model, end_tokens(folder), read_decoder(folder))

    def process(self) -> int:
        """Hands freed memory back to the system; returns the number of this process."""
        return trimmed()


@dataclass(frozen=True, slots=True, kw_only=True)
class Sync:
    """The seconds of one sync."""

    publish: float
    load: float
    cpu: float
    """CPU seconds of ranks and engine."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """What the syncs of one model took."""

    num_bytes: int
    syncs: tuple[Sync, ...]
    growth: Mapping[str, int]
    """Bytes by which each process grew at most, over what it had before the first sync."""


def trimmed() -> int:
    """Hands freed memory back to the system; returns the number of this process."""
    ctypes.CDLL(None).malloc_trim(0)
    return os.getpid()


def private_bytes(process: int) -> int:
    """Memory that a process shares with nobody and no file."""
    status = Path(f"/proc/{process}/status").read_text()
    return int(status.partition("RssAnon:")[2].split()[0]) * 1024


@contextmanager
def watched(processes: Mapping[str, int]) -> Iterator[dict[str, int]]:
    """Fills in, while the block runs, by how much each process has grown at most."""
    before = {name: private_bytes(process) for name, process in processes.items()}
    growth, done = dict.fromkeys(processes, 0), Event()

    def watch() -> None:
        while not done.wait(POLL_S):
            for name, process in processes.items():
                growth[name] = max(growth[name], private_bytes(process) - before[name])

    thread = Thread(target=watch)
    thread.start()
    try:
        yield growth
    finally:
        done.set()
        thread.join()


def measure(model: str, engine: str, count: int, folder: Path) -> Found:
    """Starts ranks and engine on Ray and syncs `count` times."""
    words = [f"engine={engine}", "cluster=ray", "engine.threads=1"]
    words += [f"trainer.num_ranks={NUM_RANKS}", f"trainer.expert_parallel={NUM_RANKS}"]
    dtype = "fp32" if model == "tiny" or engine == "torch" else "bf16"
    cfg = load_config("grpo", GrpoRun, [*MODELS[model], *words, f"engine.dtype={dtype}", f"output_dir={folder}"])
    checkpoint = initial_checkpoint(cfg, prepare(cfg)).absolute()
    trainer = replace(cfg.trainer, dtype="fp32" if model == "tiny" else "bf16")
    if __name__ != "__main__":
        cloudpickle.register_pickle_by_value(sys.modules[__name__])  # workers do not find this folder
    new: Any = ray.remote
    with reaped(), on_ray(cfg, checkpoint):
        host = new(Host).options(num_cpus=0).remote(cfg.engine, checkpoint, cfg.model.kind, trainer.dtype)
        ranks = [new(Rank).options(num_cpus=0).remote(rank) for rank in range(NUM_RANKS)]
        ray.get([rank.begin.remote(trainer, checkpoint, cfg.model.kind) for rank in ranks])
        learner, sampler = RemoteTrainer(ranks), RemoteEngines([host])
        numbers = ray.get([actor.process.remote() for actor in (*ranks, host)])
        names = [*(f"rank {rank}" for rank in range(NUM_RANKS)), "engine"]
        working = [psutil.Process(number) for number in numbers]
        with watched({"driver": trimmed(), **dict(zip(names, numbers, strict=True))}) as growth:
            taken = [one_sync(learner, sampler, version, working) for version in range(1, count + 1)]
        return Found(num_bytes=num_bytes(learner.weights(0)), syncs=tuple(taken), growth=growth)


def one_sync(learner: RemoteTrainer, sampler: RemoteEngines, version: int, working: Sequence[psutil.Process]) -> Sync:
    """Publishes and loads once."""
    cpu, begin = used_by(*working), perf_counter()
    weights = learner.weights(version)
    published = perf_counter()
    sampler.load(weights, version)
    loaded = perf_counter()
    return Sync(publish=published - begin, load=loaded - published, cpu=used_by(*working) - cpu)


def num_bytes(weights: RemoteWeights) -> int:
    """Bytes of all tensors, by the lists of the ranks."""
    lists = ray.get([publication.contents for publication in weights.publications])
    return sum(torch.Size(e.shape).numel() * e.dtype.itemsize for contents in lists for e in contents.entries)


def report(model: str, engine: str, found: Found) -> str:
    """The table of RESULTS.md."""
    whole = [sync.publish + sync.load for sync in found.syncs]
    seconds = [f"{statistics.median(getattr(sync, what) for sync in found.syncs):.3f}" for what in PHASES]
    seconds += [f"{min(whole):.3f}", f"**{statistics.median(whole):.3f}**", f"{max(whole):.3f}"]
    cells = [model, engine, f"{found.num_bytes / 1e6:,.1f}", *seconds]
    columns = ["model", "engine", "MB sent", "publish s", "load s", "CPU s", "sync s: min", "median", "max"]
    columns += [f"{name} + MB" for name in found.growth]
    cells += [f"{growth / 1e6:.1f}" for growth in found.growth.values()]
    return "\n".join([f"| {' | '.join(columns)} |", "|---" * len(columns) + "|", f"| {' | '.join(cells)} |"])


def main(argv: Sequence[str] | None = None) -> None:
    """Measure and print the entry for RESULTS.md."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", choices=MODELS, default="1 GB")
    parser.add_argument("--engine", choices=("vllm", "torch"), default="vllm")
    parser.add_argument("--syncs", type=int, default=5)
    args = parser.parse_args(argv)
    before = machine()
    with tempfile.TemporaryDirectory() as folder:
        found = measure(args.model, args.engine, args.syncs, Path(folder))
    print(f"\n{report(args.model, args.engine, found)}\n\nBefore: {before}\nAfter: {machine()}")
    print(
        f"{args.syncs} syncs, {NUM_RANKS} ranks, buckets of {BUCKET_BYTES / 2**20:.0f} MiB; torch {torch.__version__}"
    )


if __name__ == "__main__":
    main()
