"""A rank that holds a part of the experts reads these alone, and needs no memory for the others."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from rlkit.model import DeepseekV3
from rlkit.model.experts import ExpertShare
from rlkit.model.files.names import published_names
from rlkit.model.files.shards import ShardWriter
from tests.model.files.test_convert import LARGE, run
from tests.model.tiny import BASE, seeded

RANKS = 4
CONFIG = replace(LARGE, num_hidden_layers=3)
LOAD = """
import sys, torch
from pathlib import Path
from rlkit.model import DeepseekV3
from rlkit.model.experts import ExpertShare
from tests.model.files.test_convert import resident
DeepseekV3.from_checkpoint(Path(sys.argv[1]).with_name("small"))  # what the first model costs for good
before = resident("VmRSS")
share = ExpertShare(rank=int(sys.argv[2]), size=int(sys.argv[3]))
model = DeepseekV3.from_checkpoint(sys.argv[1], torch.bfloat16, share)
print(before, resident("VmHWM"))
"""


def shares(size: int) -> list[ExpertShare]:
    return [ExpertShare(rank=rank, size=size) for rank in range(size)]


@pytest.mark.parametrize("size", [1, 2, 4, 8])
def test_the_shares_of_all_ranks_are_the_model(size: int, tmp_path: Path) -> None:
    """Every expert is in one share, everything else in all, byte for byte."""
    config = replace(BASE, num_nextn_predict_layers=1)
    whole = seeded(config)
    whole.save_checkpoint(tmp_path, dtype="fp32")
    expected, found = dict(whole.checkpoint_weights()), []
    for share in shares(size):
        held = dict(DeepseekV3.from_checkpoint(tmp_path, share=share).checkpoint_weights())
        assert all(torch.equal(tensor, expected[name]) for name, tensor in held.items())
        found += held
    experts = [name for name in expected if ".experts." in name]
    assert len(experts) == 3 * 3 * config.n_routed_experts
    assert all(found.count(name) == (1 if name in experts else size) for name in expected)


def test_experts_that_do_not_divide_are_refused() -> None:
    with pytest.raises(ValueError, match="8 experts cannot be divided among 3 ranks"):
        DeepseekV3(BASE, ExpertShare(rank=0, size=3))


@pytest.mark.slow
def test_loading_takes_the_memory_of_the_share_and_one_tensor(tmp_path: Path) -> None:
    (tmp_path / "large").mkdir()
    noise = torch.randn(8192 * 1024, generator=torch.Generator().manual_seed(0)).bfloat16()
    writer = ShardWriter(tmp_path / "large", 200_000_000)
    for name, place in published_names(CONFIG).items():
        writer.add({name: noise[: math.prod(place.shape)].view(place.shape).clone()})
    writer.finish()
    (tmp_path / "large" / "config.json").write_text(json.dumps(CONFIG.to_hf()))
    seeded(BASE).save_checkpoint(tmp_path / "small", dtype="fp32")
    sizes = {name: 2 * math.prod(place.shape) for name, place in published_names(CONFIG).items()}
    largest = max(sizes.values())
    for share in shares(RANKS)[:: RANKS - 1]:
        own = sum(sizes[name] for name in published_names(CONFIG, share))
        assert own + largest < sum(sizes.values()) / 2, "the share must be small beside the model"
        before, peak = map(int, run(LOAD, tmp_path / "large", str(share.rank), str(share.size)).split())
        taken, ratio = peak - before, (peak - before) / (own + largest)
        print(f"rank {share.rank} of {share.size}: {taken / 1e6:.0f} MB for a share of {own / 1e6:.0f} MB: {ratio:.2f}")
        assert ratio <= 1.2
