"""Measures programs per second and latency of our sandbox with all its layers, of `python3 -I -S`, and of bubblewrap.

`python -m benchmarks.sandbox [--jobs 200] [--rounds 3] [--workers 2]`. All sides run the same programs in the same
rounds, one after the other, from as many threads as there are workers; each job is one program from its text to its
output. The load says whether the machine was free; what else runs slows all sides.
"""

from __future__ import annotations

import argparse
import os
import platform
import shutil
import statistics
import subprocess
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field

from sandbox import Sandbox, paths

PROGRAM = "print(sum(int(word) for word in input().split()))"
IMPORTS_NUMPY = "import numpy\nprint(int(numpy.array(input().split(), dtype=int).sum()))"
STDIN, EXPECTED = "3 4 5", "12\n"
BWRAP = (
    "--unshare-all", "--die-with-parent", "--ro-bind", "/", "/", "--tmpfs", "/tmp", "--proc", "/proc", "--dev", "/dev",
)  # fmt: skip


@dataclass(slots=True, kw_only=True)
class Side:
    """A way to run a program, and what was measured of it."""

    name: str
    run: Callable[[], str]
    """Runs one job and returns what it printed."""
    latencies: list[float] = field(default_factory=list)
    """The seconds that each job took."""
    rates: list[float] = field(default_factory=list)
    """The jobs per second of each round."""


def command_side(name: str, prefix: list[str], code: str, flags: list[str]) -> Side:
    """Makes a side that starts a new interpreter for each job."""
    command = [*prefix, paths.executable(), *flags, "-c", code]

    def run() -> str:
        return subprocess.run(command, input=STDIN, capture_output=True, text=True, env={}, check=True).stdout

    return Side(name=name, run=run)


@contextmanager
def sandbox_side(name: str, workers: int, imports: tuple[str, ...], code: str) -> Iterator[Side]:
    """Makes a side that uses our fork servers at the level `namespaces`."""
    with Sandbox("namespaces", workers, imports) as box:
        yield Side(name=name, run=lambda: box.run(code, STDIN).stdout)


def measure(side: Side, jobs: int, workers: int) -> None:
    """Runs one round of one side; raises RuntimeError for a wrong output."""

    def job(_: int) -> float:
        start = time.perf_counter()
        if (printed := side.run()) != EXPECTED:
            raise RuntimeError(f"{side.name} printed {printed!r}, not {EXPECTED!r}")
        return time.perf_counter() - start

    start = time.perf_counter()
    with ThreadPoolExecutor(workers) as pool:
        side.latencies += pool.map(job, range(jobs))
    side.rates.append(jobs / (time.perf_counter() - start))


def table(sides: list[Side]) -> str:
    """Returns a table in Markdown, with the jobs per second of the median round, and latencies in ms."""
    rows = ["| | jobs/s | p50 ms | p99 ms |", "|---|---|---|---|"]
    for side in sides:
        cuts = statistics.quantiles(side.latencies, n=100)
        rate, median, tail = statistics.median(side.rates), cuts[49] * 1000, cuts[98] * 1000
        rows.append(f"| {side.name} | {rate:.0f} | {median:.1f} | {tail:.1f} |")
    return "\n".join(rows)


def main() -> None:
    """Times all sides, round by round, and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jobs", type=int, default=200, help="of each side in each round")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--workers", type=int, default=2)
    given = parser.parse_args()
    print(f"{platform.platform()}, Python {platform.python_version()}, {os.cpu_count()} cores")
    print(f"load before {os.getloadavg()[0]:.2f}")
    with ExitStack() as stack:
        sides = [
            stack.enter_context(sandbox_side("sandbox", given.workers, (), PROGRAM)),
            stack.enter_context(sandbox_side("sandbox, numpy loaded", given.workers, ("numpy",), PROGRAM)),
            stack.enter_context(
                sandbox_side("sandbox, numpy loaded and used", given.workers, ("numpy",), IMPORTS_NUMPY)
            ),
            command_side("python3 -I -S, no isolation", [], PROGRAM, ["-I", "-S"]),
        ]
        if bwrap := shutil.which("bwrap"):
            sides.append(command_side("bwrap python3 -I -S", [bwrap, *BWRAP], PROGRAM, ["-I", "-S"]))
        else:
            print("bwrap is not installed: that side is left out")
        for _ in range(given.rounds):
            for side in sides:
                measure(side, given.jobs, given.workers)
    print(table(sides))
    print(f"load after {os.getloadavg()[0]:.2f}")


if __name__ == "__main__":
    main()
