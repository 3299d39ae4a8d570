"""A rank of `test_scorer_ranks.py`: takes a step of a reward model in each layout, from new, on its share."""

from __future__ import annotations

from typing import Any

from torch import distributed

from rlkit.algo import shard
from tests.train.one_rank import moments
from tests.train.ranks import Rank
from tests.train.test_scorer_ranks import LAYOUTS, SEQUENCES, batch_of


def steps(rank: Rank) -> dict[str, Any]:
    seen: dict[str, Any] = {}
    for name, layout in LAYOUTS.items():
        cfg = layout.cfg(rank.number)
        trainer = rank.new(cfg, "scorer", keep_reference=False)
        scores = trainer.scores(SEQUENCES)
        batch, loss = batch_of(layout.kind, 24)
        numbers = trainer.update(shard(batch, rank.number)[rank.index], loss, 1e-3)
        seen[name] = {"scores": scores, "numbers": dict(numbers), "moments": moments(rank, trainer)}
        if name == "resumed":
            (rank.folder / "saved").mkdir(exist_ok=True)
            trainer.save(rank.folder / "saved")
            distributed.barrier()
            again = rank.new(cfg, "scorer", keep_reference=False)
            again.load(rank.folder / "saved")
            scores = [each.scores(SEQUENCES) for each in (trainer, again)]
            seen[name]["same bits"] = scores[0] == scores[1] != seen[name]["scores"]
    return seen
