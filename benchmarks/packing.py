"""Tokens per second of SFT on GSM8K: samples packed end to end, or padded to the longest of their batch.

    .venv/bin/python -m benchmarks.packing                              about a minute on 2 idle cores
    .venv/bin/python -m benchmarks.packing model=deepseek_v3_1b trainer.max_tokens=32768       key=value: of recipe sft

Both sides are the trainer of `trainer=torch`, start every step from the same weights (Adam amplifies the roundings of
the steps before), take the same samples, in turns, and hold at most `trainer.max_tokens` tokens per forward, padding
included. The padded side takes samples in the order of the data, as many as fit when padded to the longest of them;
padding runs through the whole model but for the output head. Both sides must report the same loss, to 1e-5, at every
step. Only real tokens count in tokens per second; CPU seconds say what the work costs where the machine is shared.
Results: benchmarks/RESULTS.md.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from dataclasses import dataclass
from time import perf_counter

import psutil
import torch

from benchmarks.timing import Step, Summary, busy_seconds, machine, summarise, used_by
from rlkit.algo import SftLoss, pack_demonstrations
from rlkit.config import SftRun
from rlkit.config.compose import load_config
from rlkit.run.prepare import Task, prepare
from rlkit.train.steppers.torch import TorchStepper
from rlkit.train.trainer import ModelTrainer
from rlkit.types import Batch, Demonstration, Pack

SETTINGS = [
    *("data=gsm8k", "reward=number", "cluster=local", "engine=torch", "trainer=torch", "engine.max_model_len=1024"),
    *("model.architecture.vocab_size=512", "sft.batch_size=64", "trainer.max_tokens=16384"),
]
TOLERANCE = 1e-5


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """The timed steps of both sides, and what they computed."""

    sides: dict[str, Summary]
    places: dict[str, float]
    """Places computed per real token: 1 = no padding."""
    loss_gap: float
    """Largest relative difference of the losses of a step."""


def padded_batch(demonstrations: Sequence[Demonstration], max_tokens: int) -> Batch:
    """The batch of `pack_demonstrations` with samples in their order, each padded to the longest of its pack."""
    trained = sum(end - first for row in demonstrations for first, end in row.trained)
    packs: list[Pack] = []
    rows: list[Demonstration] = []
    for row in demonstrations:
        if rows and (len(rows) + 1) * _width([*rows, row]) > max_tokens:
            packs.append(_padded(rows, trained))
            rows = []
        rows.append(row)
    packs.append(_padded(rows, trained))
    real = sum(len(row.tokens) for row in demonstrations)
    return Batch(packs=tuple(packs), temperature=1.0, num_samples=len(demonstrations), num_tokens=real)


def _width(rows: Sequence[Demonstration]) -> int:
    return max(len(row.tokens) for row in rows)


def _padded(rows: Sequence[Demonstration], trained: int) -> Pack:
    tokens = torch.zeros(len(rows), _width(rows), dtype=torch.long)
    weights = torch.zeros(tokens.shape)
    for i, row in enumerate(rows):
        tokens[i, : len(row.tokens)] = torch.tensor(row.tokens)
        for first, end in row.trained:
            weights[i, first:end] = 1 / trained
    return Pack(tokens_T=tokens.flatten(), lengths=(tokens.shape[1],) * len(rows), weights_T=weights.flatten())


def compare(cfg: SftRun, task: Task, warmup: int, count: int) -> Comparison:
    """Take the same steps on both sides, in turns; RuntimeError if their losses differ by more than 1e-5."""
    layouts = {"packed": pack_demonstrations, "padded": padded_batch}
    trainers = {name: _trainer(cfg, task) for name in layouts}
    taken: dict[str, list[Step]] = {name: [] for name in layouts}
    places, real, loss_gap = dict.fromkeys(layouts, 0), 0, 0.0
    for number in range(warmup + count):
        shown = task.demonstrations.draw(number, cfg.sft.batch_size, cfg.seed)
        losses = []
        trainers["padded"].model.load_state_dict(trainers["packed"].model.state_dict())
        real += sum(len(row.tokens) for row in shown)
        for name, lay_out in layouts.items():
            own, busy, begin = used_by(psutil.Process()), busy_seconds(), perf_counter()
            batch = lay_out(shown, max_tokens=cfg.trainer.max_tokens)
            update = trainers[name].update(batch, SftLoss(), cfg.sft.schedule.at(number + 1, cfg.sft.steps))
            seconds = perf_counter() - begin
            cpu = used_by(psutil.Process()) - own
            foreign = (busy_seconds() - busy - cpu) / (seconds * (os.cpu_count() or 1))
            losses.append(update["loss"])
            places[name] += sum(len(pack.tokens_T) for pack in batch.packs)
            counted = {"tokens": batch.num_tokens, "grad_norm": update["grad_norm"], "foreign": foreign}
            step = Step(seconds=seconds, phases={"CPU": cpu}, **counted)
            taken[name].append(step)
        loss_gap = max(loss_gap, abs(losses[0] - losses[1]) / losses[0])
        if loss_gap > TOLERANCE:
            raise RuntimeError(f"step {number + 1}: the losses {losses} differ by more than {TOLERANCE}")
        print(f"step {number + 1}: loss {losses[0]:.6f}; " + _seconds(taken), flush=True)
    return Comparison(
        sides={name: summarise(steps[warmup:]) for name, steps in taken.items()},
        places={name: number / real for name, number in places.items()},
        loss_gap=loss_gap,
    )


def _trainer(cfg: SftRun, task: Task) -> ModelTrainer:
    torch.manual_seed(cfg.seed)
    model = task.architecture.new_model()
    return ModelTrainer(model, TorchStepper(model, cfg.trainer), reference=None)


def _seconds(taken: dict[str, list[Step]]) -> str:
    return ", ".join(f"{name} {steps[-1].seconds:.2f} s" for name, steps in taken.items())


def report(found: Comparison) -> str:
    """The table of RESULTS.md: one row per side, the spread of its steps, and the ratio of the medians."""
    columns = ("side", "s/step: min", "median", "max", "CPU s", "real tokens/s", "places per token", "others' CPU")
    lines = [f"| {' | '.join(columns)} |", "|---" * len(columns) + "|"]
    for name, side in found.sides.items():
        spread = f"{side.low:.2f} | **{side.median:.2f}** | {side.high:.2f}"
        rest = (
            f"{side.phases['CPU']:.2f} | {side.tokens_per_second:,.0f} | {found.places[name]:.2f} | {side.foreign:.0%}"
        )
        lines.append(f"| {name} | {spread} | {rest} |")
    packed, padded = found.sides["packed"], found.sides["padded"]
    speed, cpu = packed.tokens_per_second / padded.tokens_per_second, padded.phases["CPU"] / packed.phases["CPU"]
    said = f"{speed:.2f}x tokens per second, {cpu:.2f}x per CPU second; losses equal within {found.loss_gap:.1e}."
    return "\n".join([*lines, "", said])


def main(argv: Sequence[str] | None = None) -> None:
    """Compare and print the entry for RESULTS.md."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="settings of recipe sft")
    parser.add_argument("--steps", type=int, default=9, help="timed steps of each side")
    parser.add_argument("--warmup", type=int, default=2, help="steps of each side before them")
    args = parser.parse_intermixed_args(argv)
    before = machine()
    cfg = load_config("sft", SftRun, [*SETTINGS, *args.overrides])
    found = compare(cfg, prepare(cfg), args.warmup, args.steps)
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU"
    print(f"\n{report(found)}\n\nBefore: {before}\nAfter: {machine()}\n{device}, torch {torch.__version__}")
    print(
        f"{args.steps} timed steps of each side, in turns, after {args.warmup}: {' '.join(args.overrides) or 'as is'}"
    )


if __name__ == "__main__":
    main()
