"""One rank of `test_scorer_ranks.py`: takes a step of a reward model in each layout, from new, on its share of a batch.

python -m tests.train.one_scorer_rank FOLDER RANK WORLD_SIZE OUT
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from torch import distributed

from rlkit.algo import shard
from rlkit.build import build_trainer
from tests.train.one_rank import moments
from tests.train.test_scorer_ranks import LAYOUTS, SEQUENCES, batch_of


def main(folder: Path, rank: int, world_size: int, out: str) -> None:
    torch.set_num_threads(1)
    store = distributed.FileStore(str(folder / "store"), world_size)
    seen = {}
    for name, layout in LAYOUTS.items():
        cfg = layout.cfg(world_size)
        checkpoint, store_of = folder / "scorer", dict(keep_reference=False, seed=0, store=store, rank=rank)
        trainer = build_trainer(cfg, checkpoint, "deepseek", **store_of)
        scores = trainer.scores(SEQUENCES)
        batch, loss = batch_of(layout.kind, 24)
        numbers = trainer.update(shard(batch, world_size)[rank], loss, 1e-3)
        seen[name] = {"scores": scores, "numbers": dict(numbers), "moments": moments(trainer)}
        if name == "resumed":
            (folder / "saved").mkdir(exist_ok=True)
            trainer.save(folder / "saved")
            distributed.barrier()
            again = build_trainer(cfg, checkpoint, "deepseek", **store_of)
            again.load(folder / "saved")
            scores = [each.scores(SEQUENCES) for each in (trainer, again)]
            seen[name]["same bits"] = scores[0] == scores[1] != seen[name]["scores"]
    if rank == 0:
        torch.save(seen, out)
    distributed.barrier()
    distributed.destroy_process_group()


if __name__ == "__main__":
    folder, rank, world_size, out = sys.argv[1:]
    main(Path(folder), int(rank), int(world_size), out)
