"""Seconds of an optimiser step, however the trainer's ranks share the model out; all layouts have the same threads.

    .venv/bin/python -m benchmarks.layouts                  about five minutes on 2 idle cores
    .venv/bin/python -m benchmarks.layouts --rounds 1 --steps 3

A DeepSeek-V3 of 16 million parameters (5 layers, 16 experts) takes the same SFT step on 2,048 tokens again and again,
in fp32. One process has all threads of the machine; N ranks have an N-th of them each. A layout runs in processes of
its own, in turns with the others over several rounds; the first steps of each are not counted. Results:
benchmarks/RESULTS.md.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from time import perf_counter

import torch
from torch import distributed

from benchmarks.timing import machine
from rlkit.algo import SftLoss, pack_demonstrations, shard
from rlkit.build import build_trainer
from rlkit.config import SftRun, TrainerConfig
from rlkit.config.compose import load_config
from rlkit.model import DeepseekV3, DeepseekV3Config
from rlkit.types import Demonstration

LAYOUTS: dict[str, list[str]] = {
    "one process": [],
    "one process, recomputed": ["trainer.recompute=true"],
    "2 ranks, ZeRO-1": ["trainer.num_ranks=2"],
    "2 ranks, ZeRO-2": ["trainer.num_ranks=2", "trainer.zero_stage=2"],
    "2 ranks, ZeRO-3": ["trainer.num_ranks=2", "trainer.zero_stage=3"],
    "EP=2, ZeRO-1": ["trainer.num_ranks=2", "trainer.expert_parallel=2"],
    "EP=2, ZeRO-2": ["trainer.num_ranks=2", "trainer.expert_parallel=2", "trainer.zero_stage=2"],
    "EP=2, ZeRO-3": ["trainer.num_ranks=2", "trainer.expert_parallel=2", "trainer.zero_stage=3"],
}
MODEL = DeepseekV3Config(
    vocab_size=512,
    hidden_size=256,
    intermediate_size=768,
    moe_intermediate_size=256,
    num_hidden_layers=5,
    num_attention_heads=8,
    n_routed_experts=16,
    n_shared_experts=1,
    num_experts_per_tok=4,
    n_group=4,
    topk_group=2,
    first_k_dense_replace=1,
    q_lora_rank=128,
    kv_lora_rank=128,
    qk_nope_head_dim=32,
    qk_rope_head_dim=16,
    v_head_dim=32,
    max_position_embeddings=1024,
)
SAMPLES, LENGTH, WARMUP = 32, 64, 2


def trainer_config(layout: str, threads: int) -> TrainerConfig:
    """The trainer of a layout; its ranks share `threads`."""
    cfg = load_config(
        "sft", SftRun, ["cluster=ray", f"trainer.max_tokens={SAMPLES * LENGTH}", *LAYOUTS[layout]]
    ).trainer
    return replace(cfg, threads=max(1, threads // cfg.num_ranks))


def one_rank(folder: Path, layout: str, rank: int, steps: int, threads: int) -> None:
    """Takes the steps of one rank; rank 0 prints the seconds of each."""
    cfg = trainer_config(layout, threads)
    store = distributed.FileStore(str(folder / "store"), cfg.num_ranks)
    trainer = build_trainer(
        cfg, folder.parent / "model", "deepseek", keep_reference=False, seed=0, store=store, rank=rank
    )
    random = torch.Generator().manual_seed(0)
    rows = torch.randint(MODEL.vocab_size, (SAMPLES, LENGTH), generator=random).tolist()
    batch = pack_demonstrations([Demonstration.of(row[:8], row[8:]) for row in rows], max_tokens=SAMPLES * LENGTH)
    share = shard(batch, cfg.num_ranks)[rank]
    for _ in range(WARMUP + steps):
        begin = perf_counter()
        trainer.update(share, SftLoss(), 1e-4)
        if rank == 0:
            print(perf_counter() - begin, flush=True)
    if cfg.num_ranks > 1:
        distributed.barrier()
        distributed.destroy_process_group()


def measure(folder: Path, layout: str, steps: int, threads: int) -> list[float]:
    """Runs a layout in processes of its own; returns the seconds of the counted steps."""
    folder.mkdir()
    ranks = trainer_config(layout, threads).num_ranks
    command = [sys.executable, "-W", "ignore", "-m", "benchmarks.layouts", "--folder", str(folder), "--layout", layout]
    command += ["--steps", str(steps), "--threads", str(threads)]
    running = [
        subprocess.Popen([*command, "--rank", str(rank)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for rank in range(ranks)
    ]
    printed = [process.communicate() for process in running]
    for process, (_, errors) in zip(running, printed, strict=True):
        if process.returncode:
            raise RuntimeError(f"{layout}: a rank has failed:\n{errors}")
    return [float(line) for line in printed[0][0].split()][WARMUP:]


def report(taken: dict[str, list[float]]) -> str:
    """The table of RESULTS.md: seconds of each layout, and how often those of one process they are."""
    alone = statistics.median(taken["one process"])
    lines = ["| layout | s/step: min | median | max | of one process |", "|---|---|---|---|---|"]
    for layout, seconds in taken.items():
        median = statistics.median(seconds)
        lines.append(
            f"| {layout} | {min(seconds):.2f} | **{median:.2f}** | {max(seconds):.2f} | {median / alone:.2f} |"
        )
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> None:
    """Measures all layouts in turns, or is one rank of one of them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=5, help="counted steps of a layout in a round")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    for name in ("--folder", "--layout", "--rank"):
        parser.add_argument(name, help=argparse.SUPPRESS)
    given = parser.parse_args(arguments)
    if given.rank is not None:
        one_rank(Path(given.folder), given.layout, int(given.rank), given.steps, given.threads)
        return
    taken: dict[str, list[float]] = {layout: [] for layout in LAYOUTS}
    before = machine()
    with tempfile.TemporaryDirectory() as place:
        torch.manual_seed(0)
        DeepseekV3(MODEL).save_checkpoint(Path(place) / "model", dtype="fp32")
        for turn in range(given.rounds):
            for number, layout in enumerate(LAYOUTS):
                taken[layout] += measure(Path(place) / f"{turn}-{number}", layout, given.steps, given.threads)
                print(f"round {turn + 1}: {layout} {statistics.median(taken[layout]):.2f} s", flush=True)
    print(f"\n{report(taken)}\n\n{given.rounds * given.steps} steps of each. Before: {before}; after: {machine()}")


if __name__ == "__main__":
    main()
