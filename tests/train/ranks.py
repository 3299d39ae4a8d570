"""Starts ranks as processes that meet in torch.distributed; the libraries are loaded once, and all ranks forked there.

A program is a module with functions that take a `Rank` and return what it saw.

python -m tests.train.ranks PROGRAM FOLDER FUNCTION:NUMBER ...
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import distributed
from torch.multiprocessing.spawn import start_processes

from rlkit.build import build_trainer
from rlkit.config import TrainerConfig
from rlkit.train.trainer import ModelTrainer


class Rank(NamedTuple):
    """One of so many processes."""

    folder: Path
    index: int
    number: int
    store: distributed.Store

    def new(self, cfg: TrainerConfig, checkpoint: str, *, keep_reference: bool = True) -> ModelTrainer:
        """A trainer of the model of that name in the folder."""
        met = {"store": self.store, "rank": self.index}
        return build_trainer(cfg, self.folder / checkpoint, "deepseek", keep_reference=keep_reference, seed=0, **met)

    def from_all(self, value: Any) -> list[Any]:
        found: list[Any] = [None] * self.number
        distributed.all_gather_object(found, value)
        return found


def run_ranks(program: str, folder: Path, *launches: tuple[str, int]) -> tuple[list[Any], str]:
    """One launch after the other, each a function on so many new processes: what rank 0 saw of each, and all that was
    printed. Ends them all as soon as one fails, or when this call is interrupted."""
    words = [f"{function}:{number}" for function, number in launches]
    command = [sys.executable, "-W", "ignore", "-m", "tests.train.ranks", f"tests.train.{program}", str(folder), *words]
    piped: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    with subprocess.Popen(command, **piped, start_new_session=True) as launcher:
        try:
            printed, _ = launcher.communicate()
        finally:
            with suppress(ProcessLookupError):
                os.killpg(launcher.pid, signal.SIGKILL)
    assert launcher.returncode == 0, printed
    return [torch.load(seen_by_rank_0(folder, word), weights_only=False) for word in words], printed


def seen_by_rank_0(folder: Path, launch: str) -> Path:
    return folder / f"{launch}.pt"


def one_rank(index: int, function: Callable[[Rank], Any], folder: Path, number: int, out: Path) -> None:
    torch.set_num_threads(1)
    store = distributed.FileStore(f"{out}.store", number)
    seen = function(Rank(folder, index, number, store))
    if index == 0:
        torch.save(seen, out)
    if distributed.is_initialized():
        distributed.barrier()
        distributed.destroy_process_group()


def main(program: str, folder: Path, launches: list[str]) -> None:
    module = import_module(program)
    for library in ("torch._dynamo", "peft"):  # which DeepSpeed's engine and adapters would load in every rank
        import_module(library)
    for launch in launches:
        function, _, number = launch.partition(":")
        given = (getattr(module, function), folder, int(number), seen_by_rank_0(folder, launch))
        start_processes(one_rank, given, nprocs=int(number), start_method="fork")


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), sys.argv[3:])
