"""Timed steps, what they amount to, and the table that shows it."""

from __future__ import annotations

import os
import platform
import statistics
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import psutil

from benchmarks.job import Job

PHASES = ("sample", "score", "train", "sync", "outside")


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One full step of one side: from the prompts to new weights where the next sampling finds them."""

    seconds: float
    phases: Mapping[str, float]
    tokens: int
    grad_norm: float
    foreign: float
    """Share of the machine that everything else used meanwhile, the waiting side included."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Summary:
    """The timed steps of one side."""

    low: float
    median: float
    high: float
    tokens_per_second: float
    phases: Mapping[str, float]
    """Median seconds of each."""
    foreign: float
    """The largest."""


def busy_seconds() -> float:
    """CPU seconds that were not idle since the machine started, all cores together; those a host kept count, too."""
    times = psutil.cpu_times()
    return times.user + times.nice + times.system + times.steal


def used_by(*processes: psutil.Process) -> float:
    """CPU seconds of running processes, those of finished children included."""
    total = 0.0
    for process in processes:
        with suppress(psutil.NoSuchProcess):  # a worker that has just ended
            times = process.cpu_times()
            total += times.user + times.system + times.children_user + times.children_system
    return total


def summarise(steps: Sequence[Step]) -> Summary:
    """Smallest, median and largest seconds of the timed steps, and the medians of their phases."""
    seconds = [step.seconds for step in steps]
    median = statistics.median(seconds)
    return Summary(
        low=min(seconds),
        median=median,
        high=max(seconds),
        tokens_per_second=steps[0].tokens / median,
        phases={name: statistics.median(step.phases[name] for step in steps) for name in steps[0].phases},
        foreign=max(step.foreign for step in steps),
    )


def check_steps(job: Job, taken: Mapping[str, Sequence[Step]]) -> None:
    """Raise RuntimeError if a side did not sample exactly what the job says, or learned nothing."""
    for name, steps in taken.items():
        for step in steps:
            if step.tokens != job.tokens or not step.grad_norm > 0:
                raise RuntimeError(
                    f"{name} sampled {step.tokens} tokens in a step that should have {job.tokens}, with gradient norm "
                    f"{step.grad_norm}: the sides do not do the same work"
                )


def report(results: Mapping[int, Mapping[str, Summary]]) -> str:
    """The table of RESULTS.md: one row per length and side."""
    lines = [
        f"| new tokens | side | s/step: min | median | max | tokens/s | {' | '.join(PHASES)} | others' CPU |",
        "|---" * (7 + len(PHASES)) + "|",
    ]
    for new_tokens, sides in results.items():
        for name, side in sides.items():
            phases = [f"{side.phases[p]:.2f}" if p in side.phases else "-" for p in PHASES]
            cells = [f"{side.low:.2f}", f"**{side.median:.2f}**", f"{side.high:.2f}", f"{side.tokens_per_second:,.0f}"]
            lines.append("| " + " | ".join([str(new_tokens), name, *cells, *phases, f"{side.foreign:.0%}"]) + " |")
    lines += [""] + [
        f"{new_tokens} new tokens: {sides['trl'].median / sides['rlkit'].median:.2f}x (TRL's median / rlkit's median)."
        for new_tokens, sides in results.items()
    ]
    return "\n".join(lines)


def machine() -> str:
    """CPU, cores and load of this machine."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    load = ", ".join(f"{value:.2f}" for value in os.getloadavg())
    return f"{names[0] if names else platform.processor()}, {os.cpu_count()} cores, load average {load}"
