"""Kills a run at random moments, again and again, and compares what it ends with to the run that nobody killed.

    .venv/bin/python -m benchmarks.kills                                    20 kills, about 20 minutes on 2 idle cores
    .venv/bin/python -m benchmarks.kills --kills 5 trainer.dtype=fp8 model=...     key=value: of recipe grpo

A GRPO run on Ray, with vLLM and experts on two DeepSpeed ranks, takes a checkpoint after every step. While it runs, the
driver or one of the ranks gets SIGKILL, at a moment drawn from the time that a whole run takes; then the same command
goes on, until it too is killed or ends. The final weights must be those of the whole run, bit for bit, after every
series of kills. Results: benchmarks/RESULTS.md.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from time import monotonic, sleep

import psutil
import torch
from safetensors.torch import load_file

from benchmarks.timing import machine

SETTINGS = [
    *("data.train_size=200", "data.eval_size=4", "algo.steps=6", "algo.prompts_per_step=4", "algo.group_size=4"),
    *("data.tasks.chain_sum={min_terms: 3, max_terms: 3, min_digits: 1, max_digits: 1, bare: true}",),
    *("engine.max_model_len=64", "engine.memory=0.1", "evaluation.sampling.max_new_tokens=24"),
    *("algo.sampling.max_new_tokens=24", "checkpoint.every=1", "logging.tensorboard=false"),
    *("trainer.num_ranks=2", "trainer.expert_parallel=2", "trainer.bias_update_speed=0.001"),
]
REWARD = """
def spread(completion: str, answer: str) -> float:
    return (sum(completion.encode()) % 97) / 97  # differs between almost any two completions
"""
A_SERIES = 5
"""Kills of one run before it may end."""


def start(folder: Path, settings: Sequence[str]) -> subprocess.Popen[str]:
    """Starts the run, or goes on with it."""
    command = [sys.executable, "-m", "recipes.grpo", *settings, f"output_dir={folder}"]
    with (folder.parent / f"{folder.name}.log").open("a") as log:
        return subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, text=True)


def victims(driver: int) -> dict[str, psutil.Process]:
    """The driver and those of its trainer ranks that live."""
    process = psutil.Process(driver)
    found = {"driver": process}
    for child in process.children(recursive=True):
        try:
            if "TrainerActor" in " ".join(child.cmdline()):
                found[f"rank process {len(found)}"] = child
        except psutil.NoSuchProcess:
            continue
    return found


def kill(run: subprocess.Popen[str], after: float, draw: random.Random) -> str:
    """Waits so long, kills the driver or a rank and waits for the end; returns who it was, "" if the run had ended."""
    end = monotonic() + after
    while monotonic() < end and run.poll() is None:
        sleep(0.05)
    if run.poll() is not None:
        if run.returncode:
            raise RuntimeError(f"a run that nobody had killed ended with {run.returncode}")
        return ""
    living = victims(run.pid)
    name = draw.choice(sorted(living))
    os.kill(living[name].pid, signal.SIGKILL)
    run.wait()
    return name


def differences(whole: Path, killed: Path) -> list[str]:
    """The weights that are not the same bits."""
    expected, found = (load_file(folder / "model" / "model.safetensors") for folder in (whole, killed))
    if expected.keys() != found.keys():
        return sorted(expected.keys() ^ found.keys())
    return [name for name, tensor in expected.items() if not torch.equal(found[name], tensor)]


def finish(folder: Path, settings: Sequence[str]) -> float:
    """Lets a run come to its end and returns its seconds; RuntimeError if it fails."""
    begin = monotonic()
    if start(folder, settings).wait():
        raise RuntimeError(f"{folder.name} failed:\n{(folder.parent / f'{folder.name}.log').read_text()[-3000:]}")
    return monotonic() - begin


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs once whole, then kills series of runs; ends with 1 if any weight differs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("settings", nargs="*", help="key=value of recipe grpo")
    given = parser.parse_args(arguments)
    draw, before = random.Random(given.seed), machine()
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        (folder / "plugin.py").write_text(REWARD)
        settings = [*SETTINGS, f"reward={folder}/plugin.py:spread", *given.settings]
        seconds = finish(folder / "whole", settings)
        print(f"the whole run: {seconds:.0f} s", flush=True)
        done, wrong, series = 0, 0, 0
        while done < given.kills:
            series += 1
            run = folder / f"killed-{series}"
            for _ in range(min(A_SERIES, given.kills - done)):
                after = draw.uniform(0, seconds)
                if not (who := kill(start(run, settings), after, draw)):
                    break  # what earlier kills had left to do was done sooner; the next series goes on counting
                done += 1
                print(f"kill {done}: after {after:.1f} s, {who}", flush=True)
            finish(run, settings)
            differing = differences(folder / "whole", run)
            wrong += bool(differing)
            print(
                f"{run.name} ends {'as the whole run' if not differing else f'otherwise: {differing[:3]}'}", flush=True
            )
    print(f"{done} kills, {wrong} runs that ended otherwise. Before: {before}; after: {machine()}")
    raise SystemExit(1 if wrong else 0)


if __name__ == "__main__":
    main()
