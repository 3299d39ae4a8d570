"""What emulating FP8 costs on this machine: a step of the trainer in each precision, in turns, against bf16.

    .venv/bin/python -m benchmarks.fp8                  a minute or two on 2 idle cores

The same model of inner widths 256 and 512, the same batch; every step starts from the optimiser state of the one
before. The emulation is the specification of the kernels, not a way to train: see `benchmarks.gpu` for those. Results:
benchmarks/RESULTS.md.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from time import perf_counter

import torch
from torch import distributed

from benchmarks.timing import machine
from rlkit.algo import SftLoss, pack_demonstrations
from rlkit.build import build_trainer
from rlkit.config import TrainerConfig
from rlkit.config.compose import load_config
from rlkit.config.runs import SftRun
from rlkit.model import DeepseekV3, DeepseekV3Config
from rlkit.types import Batch, Demonstration

DTYPES = ("fp32", "bf16", "fp8_weights", "fp8")
MODEL = DeepseekV3Config(
    vocab_size=512,
    hidden_size=256,
    intermediate_size=512,
    moe_intermediate_size=256,
    num_hidden_layers=4,
    first_k_dense_replace=1,
    num_attention_heads=4,
    n_routed_experts=8,
    num_experts_per_tok=2,
    n_group=4,
    topk_group=2,
    q_lora_rank=128,
    kv_lora_rank=256,
    qk_nope_head_dim=64,
    qk_rope_head_dim=32,
    v_head_dim=64,
    initializer_range=0.02,
)


def batch_of(num_samples: int, length: int, vocabulary: int) -> Batch:
    """Random samples in one pack; what they say does not matter for the time."""
    rows = torch.randint(vocabulary, (num_samples, length), generator=torch.Generator().manual_seed(0)).tolist()
    return pack_demonstrations(
        [Demonstration.of(row[: length // 2], row[length // 2 :]) for row in rows], max_tokens=2**20
    )


def compare(cfg: TrainerConfig, model: DeepseekV3Config, batch: Batch, steps: int) -> dict[str, list[float]]:
    """Seconds of each step after the first, by dtype; the dtypes take turns."""
    seconds: dict[str, list[float]] = {dtype: [] for dtype in DTYPES}
    with tempfile.TemporaryDirectory() as folder:
        torch.manual_seed(0)
        DeepseekV3(model).save_checkpoint(folder, dtype="fp32")
        learners = {
            dtype: build_trainer(
                replace(cfg, dtype=dtype),
                Path(folder),
                "deepseek",
                keep_reference=False,
                seed=0,
                store=distributed.HashStore(),
                rank=0,
            )
            for dtype in DTYPES
        }
    for _ in range(steps + 1):
        for dtype, learner in learners.items():
            begin = perf_counter()
            learner.update(batch, SftLoss(), 1e-4)
            seconds[dtype].append(perf_counter() - begin)
    return {dtype: taken[1:] for dtype, taken in seconds.items()}


def report(seconds: dict[str, list[float]]) -> str:
    """The table of RESULTS.md: the spread of the steps, and the median of their ratios to bf16 in the same turn."""
    lines = ["| trainer.dtype | s/step: min | median | max | x bf16 |", "|---|---|---|---|---|"]
    for dtype, taken in seconds.items():
        ratio = statistics.median(own / plain for own, plain in zip(taken, seconds["bf16"], strict=True))
        middle = f"{min(taken):.2f} | **{statistics.median(taken):.2f}** | {max(taken):.2f}"
        lines.append(f"| {dtype} | {middle} | {ratio:.2f} |")
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> None:
    """Compare and print the entry for RESULTS.md."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--steps", type=int, default=5, help="timed steps of each dtype")
    args = parser.parse_args(argv)
    before = machine()
    cfg = load_config("sft", SftRun, ["trainer=deepspeed"]).trainer
    found = compare(cfg, MODEL, batch_of(16, 128, MODEL.vocab_size), args.steps)
    print(f"{report(found)}\n\nBefore: {before}\nAfter: {machine()}\ntorch {torch.__version__}, 2,048 tokens a step")


if __name__ == "__main__":
    main()
