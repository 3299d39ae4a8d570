"""One rank of a trainer, or an engine, in a process of its own: prints the peak of its memory in bytes.

The libraries are loaded and a tiny model takes a step (or writes a completion) first. Then the kernel's high-water mark
of resident memory is set back, and the model that is measured is loaded and takes two steps. What is printed is the new
high-water mark less what was resident before it: weights, gradients, optimiser, activations, and no library.

python -m tests.plan.peak FOLDER RANK KIND key=value ...        (KIND is trainer or engine; the keys are those of sft)
"""

from __future__ import annotations

import gc
import sys
from pathlib import Path

import torch
from torch import distributed

from rlkit.algo import shard
from rlkit.algo.losses import SftLoss
from rlkit.build import build_trainer
from rlkit.config import SftRun
from rlkit.config.compose import load_config
from rlkit.engine.local import TorchEngine
from rlkit.model import DeepseekV3
from rlkit.types import Batch, Pack, Prompt, Sampling

SAMPLE = 64
"""Tokens of a sample."""


def resident(name: str) -> int:
    """A line of /proc/self/status in bytes: VmRSS is what is resident now, VmHWM the most that ever was."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(f"{name}:"))


def batch(cfg: SftRun, vocabulary: int, max_tokens: int) -> Batch:
    """Two full packs for every rank, all of their tokens trained."""
    generator = torch.Generator().manual_seed(0)
    num_samples = max_tokens // SAMPLE
    num_packs = 2 * cfg.trainer.num_ranks  # in the second one, the gradients of the first are there
    total = num_samples * (SAMPLE - 1) * num_packs
    weights_T = torch.full((num_samples, SAMPLE), 1 / total)
    weights_T[:, 0] = 0  # nothing predicts the first token of a sample
    packs = tuple(
        Pack(
            tokens_T=torch.randint(vocabulary, (num_samples * SAMPLE,), generator=generator),
            lengths=(SAMPLE,) * num_samples,
            weights_T=weights_T.flatten(),
        )
        for _ in range(num_packs)
    )
    num = num_samples * len(packs)
    return Batch(packs=packs, temperature=1.0, num_samples=num, num_tokens=num * SAMPLE)


def train(cfg: SftRun, folder: Path, rank: int, store: distributed.Store, max_tokens: int, steps: int) -> None:
    trainer = build_trainer(
        cfg.trainer, folder, "deepseek", keep_reference=cfg.needs_reference, seed=0, store=store, rank=rank
    )
    share = shard(batch(cfg, 64, max_tokens), cfg.trainer.num_ranks)[rank]
    for _ in range(steps):
        trainer.update(share, SftLoss(), 1e-4)


def sample(cfg: SftRun, folder: Path, max_tokens: int) -> None:
    model = DeepseekV3.from_checkpoint(folder)
    engine = TorchEngine(model, 1, str, cfg.engine.max_num_seqs)
    del model
    prompts = [Prompt(id=str(i), text="", tokens=(5, 6, 7), meta={}) for i in range(cfg.engine.max_num_seqs)]
    sampling = Sampling(temperature=1.0, top_p=1.0, max_new_tokens=max_tokens - 3, seed=0)
    list(engine.generate(prompts, 1, sampling))


def main(folder: Path, rank: int, kind: str, words: list[str]) -> None:
    torch.set_num_threads(1)
    cfg = load_config("sft", SftRun, words)
    store = distributed.FileStore(str(folder / "store"), cfg.trainer.num_ranks)
    if kind == "trainer":
        train(cfg, folder / "tiny", rank, store, 2 * SAMPLE, 2)
    else:
        sample(cfg, folder / "tiny", 8)
    gc.collect()
    before = resident("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")
    if kind == "trainer":
        train(cfg, folder / "model", rank, store, cfg.trainer.max_tokens, 2)
    else:
        sample(cfg, folder / "model", cfg.engine.max_model_len)
    print(resident("VmHWM") - before)


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3], sys.argv[4:])
