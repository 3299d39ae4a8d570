"""Compares the math reward with math-verify: wrong verdicts, the time of each, and answers like those of GSM8K.

    python -m benchmarks.verifier [--answers 10000] [--limit 10]

Both judge the same completions one at a time, taking turns on a warm process, and the same rows of
tests/rewards/math/cases.jsonl: those with settings, a prompt or no verdict are left out, because math-verify has
nothing to match them. Ours is the default `MathVerifier`; theirs the default `verify(parse(gold), parse(completion))`
on the main thread of a process of its own, with its own timeouts armed; a bare gold is put between dollar signs for
it. That process is killed after `--limit` seconds, which counts as a wrong verdict and as that much time. The times
leave out what it takes to start a process and, for math-verify, the pipe; ours include the pipe to our worker.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import select
import statistics
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from rewards import Sample
from rewards.math import MathVerifier

CASES = Path(__file__).resolve().parents[1] / "tests" / "rewards" / "math" / "cases.jsonl"
UNUSUAL = ("safety", "adversarial")
START_SECONDS = 60.0
BATCH = 64
_SERVE = """
import json, os, sys, time, logging
from math_verify import parse, verify
logging.disable(logging.CRITICAL)
verdicts = os.fdopen(os.dup(1), "w", buffering=1)
os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
verify(parse(r"\\boxed{1}"), parse(r"\\boxed{\\frac{2}{2}}"))
print("ready", file=verdicts)
for line in sys.stdin:
    gold, completion = json.loads(line)
    start = time.perf_counter()
    try:
        verdict = float(verify(parse(gold), parse(completion)))
    except BaseException as error:
        verdict = type(error).__name__
    print(json.dumps([verdict, time.perf_counter() - start]), file=verdicts)
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Judged:
    """One verdict of one side. Example: `Judged(verdict=1.0, seconds=0.0002)`."""

    verdict: float | str
    """1 or 0; else what kept it from one: "killed", or the name of an exception."""
    seconds: float


class KillableMathVerify:
    """math-verify in a process that is killed when it takes too long, and then started anew."""

    def __init__(self, limit: float) -> None:
        """Start it; `limit` is in seconds per verdict."""
        self.limit = limit
        self.process = self._start()

    def judge(self, gold: Any, completion: str) -> Judged:
        """The verdict on a completion, or "killed" after `limit` seconds."""
        assert self.process.stdin is not None
        gold = str(gold)
        text = gold if "\\boxed" in gold or "####" in gold or "$" in gold else f"${gold}$"
        self.process.stdin.write(json.dumps([text, completion]) + "\n")
        self.process.stdin.flush()
        line = self._line(self.limit)
        if not line:
            self.close()
            self.process = self._start()
            return Judged(verdict="killed", seconds=self.limit)
        verdict, seconds = json.loads(line)
        return Judged(verdict=verdict, seconds=seconds)

    def close(self) -> None:
        """Kill the process."""
        self.process.kill()
        self.process.communicate()

    def _start(self) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, "-c", _SERVE], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1
        )
        self.process = process
        if self._line(START_SECONDS).strip() != "ready":
            raise RuntimeError("math-verify does not start: pip install math-verify==0.9.0")
        return process

    def _line(self, seconds: float) -> str:
        assert self.process.stdout is not None
        ready, _, _ = select.select([self.process.stdout], [], [], seconds)
        return self.process.stdout.readline() if ready else ""


def judge_ours(verifier: MathVerifier, gold: Any, completion: str) -> Judged:
    """The verdict of the math reward, timed; its reason where it has none."""
    start = time.perf_counter()
    [reward] = verifier([Sample("", completion, meta={"answer": gold})])
    seconds = time.perf_counter() - start
    return Judged(verdict=reward.reason if reward.value is None else reward.value, seconds=seconds)


def load_cases(path: Path = CASES) -> list[dict[str, Any]]:
    """The cases that both sides can judge, each with its whole `completion`."""
    cases = []
    for case in map(json.loads, path.read_text().splitlines()):
        if "settings" in case or "prompt" in case or case["verdict"] is None:
            continue
        text = case.get("completion", case.get("answer"))
        text = "".join(piece * times for piece, times in text) if isinstance(text, list) else text
        boxed = rf"\boxed{{{text}}}" if "$" in text else rf"$\boxed{{{text}}}$"  # math-verify reads the latter better
        completion = text if "completion" in case else boxed
        cases.append({**case, "completion": completion})
    return cases


def gsm8k_style(num_answers: int, seed: int = 0) -> list[tuple[str, str, float]]:
    """Gold, completion and verdict of made-up answers: half of them right, in the ways models write numbers."""
    rng = random.Random(seed)
    answers = []
    for _ in range(num_answers):
        gold = rng.choice([rng.randint(0, 100), rng.randint(100, 10_000), rng.randint(10_000, 5_000_000)])
        is_right = rng.random() < 0.5
        value = gold if is_right else gold + rng.choice([-10, -1, 1, 2, 10, 100])
        written = rng.choice([f"{value}", f"{value:,}", f"{value}.00", f"${value:,}", f"{value} dollars"])
        steps = f"First {gold} / 2 = {gold / 2}, and twice that is what is asked. " * rng.randint(1, 5)
        end = rng.choice(["#### {}", "\\boxed{{{}}}", "<answer>{}</answer>"]).format(written)
        answers.append((f"{steps}\n#### {gold:,}", f"<think>{steps}</think>{steps}\n{end}", float(is_right)))
    return answers


def times(name: str, judged: Sequence[Judged]) -> str:
    """One row of the table: mean, median and 99th percentile in milliseconds."""
    seconds = sorted(one.seconds * 1e3 for one in judged)
    p99 = seconds[min(len(seconds) - 1, int(0.99 * len(seconds)))]
    cells = [statistics.mean(seconds), statistics.median(seconds), p99, seconds[-1]]
    return f"| {name} | {' | '.join(f'{cell:.3f}' for cell in cells)} |"


def compare_cases(verifier: MathVerifier, other: KillableMathVerify) -> str:
    """Wrong verdicts by theme, and times, of both on every case."""
    cases = load_cases()
    sides: dict[str, list[Judged]] = {"rlkit": [], "math-verify": []}
    for case in cases:
        sides["rlkit"].append(judge_ours(verifier, case["gold"], case["completion"]))
        sides["math-verify"].append(other.judge(case["gold"], case["completion"]))
    themes = Counter(case["theme"] for case in cases)
    lines = ["| theme | cases | rlkit wrong | math-verify wrong | false accepts | false rejects | killed or raised |"]
    lines.append("|---" * 7 + "|")
    for theme in [*themes, "all"]:
        at = [index for index, case in enumerate(cases) if theme in (case["theme"], "all")]
        ours, theirs = ([(cases[i]["verdict"], side[i].verdict) for i in at] for side in sides.values())
        kinds = [
            sum(given != wanted for wanted, given in ours),
            sum(given != wanted for wanted, given in theirs),
            sum(given == 1 and wanted == 0 for wanted, given in theirs),
            sum(given == 0 and wanted == 1 for wanted, given in theirs),
            sum(isinstance(given, str) for _, given in theirs),
        ]
        lines.append(f"| {theme} | {len(at)} | {' | '.join(map(str, kinds))} |")
    ordinary = [index for index, case in enumerate(cases) if case["theme"] not in UNUSUAL]
    lines += ["", "| ms per verdict | mean | p50 | p99 | max |", "|---" * 5 + "|"]
    for name, side in sides.items():
        lines.append(times(f"{name}, {len(ordinary)} ordinary cases", [side[index] for index in ordinary]))
        lines.append(times(f"{name}, all {len(cases)}", side))
    return "\n".join(lines)


def compare_throughput(verifier: MathVerifier, other: KillableMathVerify, num_answers: int) -> str:
    """Seconds for GSM8K-style answers: ours for all of them in batches, theirs for a tenth, one at a time."""
    answers = gsm8k_style(num_answers)
    samples = [Sample("", completion, meta={"answer": gold}) for gold, completion, _ in answers]
    start, cpu = time.perf_counter(), time.process_time()
    rewards = [reward for at in range(0, len(samples), BATCH) for reward in verifier(samples[at : at + BATCH])]
    seconds, cpu = time.perf_counter() - start, time.process_time() - cpu
    wrong = sum(reward.value != verdict for reward, (_, _, verdict) in zip(rewards, answers, strict=True))
    tenth = answers[: max(1, num_answers // 10)]
    theirs = [other.judge(gold, completion) for gold, completion, _ in tenth]
    their_wrong = sum(one.verdict != verdict for one, (_, _, verdict) in zip(theirs, tenth, strict=True))
    mean = statistics.mean(one.seconds for one in theirs)
    each = seconds / len(answers)
    return (
        f"{len(answers)} GSM8K-style answers: rlkit {seconds:.2f} s ({cpu:.2f} s of CPU), {each * 1e3:.3f} ms each, "
        f"{wrong} wrong; math-verify {mean * 1e3:.3f} ms each over {len(tenth)} of them, {their_wrong} wrong: "
        f"{mean / each:.1f}x our time."
    )


def main() -> None:
    """Print the machine, the versions and both comparisons."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--answers", type=int, default=10_000, help="GSM8K-style answers")
    parser.add_argument("--limit", type=float, default=10.0, help="seconds after which math-verify is killed")
    options = parser.parse_args()
    load = ", ".join(f"{value:.2f}" for value in os.getloadavg())
    print(f"{platform.machine()}, {os.cpu_count()} cores, load average {load}, Python {platform.python_version()}, ")
    print(f"math-verify {version('math-verify')}, sympy {version('sympy')}\n")
    verifier, other = MathVerifier(), KillableMathVerify(options.limit)
    try:
        verifier.judge("2", r"\sqrt{4}")
        verifier.judge("3", r"\sum_{k=1}^{2} k")  # both sides start with what they need imported
        print(compare_cases(verifier, other) + "\n")
        print(compare_throughput(verifier, other, options.answers))
    finally:
        verifier.close()
        other.close()


if __name__ == "__main__":
    main()
