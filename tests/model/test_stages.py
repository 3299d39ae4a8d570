"""Stages of a pipeline: together they are the model, each reads no more than its own layers."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from rlkit.model import DeepseekV3
from rlkit.model.experts import ExpertShare
from rlkit.model.files.folder import Checkpoint
from rlkit.model.ragged import lay_out_pack
from rlkit.model.stages import WHOLE, Stage
from tests.model.tiny import BASE, seeded

CONFIG = replace(BASE, num_hidden_layers=5, num_nextn_predict_layers=1)
SHARES = [ExpertShare(rank=rank, size=2) for rank in range(2)]


@pytest.mark.parametrize(("num_layers", "size"), [(4, 2), (5, 2), (6, 3), (61, 16), (61, 8), (64, 4), (8, 4)])
def test_every_layer_is_in_one_chunk_and_rank_0_has_both_ends(num_layers: int, size: int) -> None:
    stages = [Stage(rank=rank, size=size) for rank in range(size)]
    chunks = [stage.chunks(num_layers)[0] for stage in stages]
    chunks += [stage.chunks(num_layers)[1] for stage in reversed(stages)]
    assert [layer for chunk in chunks for layer in chunk] == list(range(num_layers))
    lengths = [len(chunk) for chunk in chunks]
    assert min(lengths) >= 1 and max(lengths) - min(lengths) <= 1
    assert [stage.first for stage in stages] == [True] + [False] * (size - 1)
    for stage in stages:
        held = [layer for layer in range(num_layers) if stage.holds(layer, num_layers)]
        assert held == [layer for chunk in stage.chunks(num_layers) for layer in chunk]


def test_one_stage_is_the_whole_model() -> None:
    assert [layer for chunk in WHOLE.chunks(5) for layer in chunk] == [0, 1, 2, 3, 4]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("stages") / "model"
    seeded(CONFIG).save_checkpoint(folder, dtype="fp32")
    return folder


def test_a_rank_reads_its_own_layers_and_experts_alone(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And the ranks together every weight of the checkpoint once."""
    reads: list[str] = []
    read = Checkpoint.weight
    monkeypatch.setattr(Checkpoint, "copy_faults", lambda _self, _table: iter(()))  # it compares the embedding's copies
    monkeypatch.setattr(Checkpoint, "weight", lambda self, name: reads.append(name) or read(self, name))
    stages = [Stage(rank=rank, size=2) for rank in range(2)]
    held: list[str] = []
    for stage in stages:
        for share in SHARES:
            reads.clear()
            model = DeepseekV3.from_checkpoint(checkpoint, share=share, stage=stage)
            assert sorted(reads) == sorted(model.published())
            weights = dict(model.checkpoint_weights())
            assert weights.keys() == model.published().keys()
            rank = stage.rank * 2 + share.rank
            assert [name for name in model.all_published() if rank in model.holders(name, 4)] == list(weights)
            held += [name for name in weights if share.rank == 0 or ".experts." in name]
    assert sorted(held) == sorted(DeepseekV3(CONFIG).published())
    layers = {name.split(".")[2] for name in held if name.startswith("model.layers.")}
    assert layers == {"0", "1", "2", "3", "4", "5"}


def test_chunk_after_chunk_computes_what_the_model_does(checkpoint: Path) -> None:
    stages = [Stage(rank=rank, size=2) for rank in range(2)]
    models = [DeepseekV3.from_checkpoint(checkpoint, stage=stage) for stage in stages]
    tokens_T, lengths = torch.arange(2, 13), (7, 4)
    ragged = lay_out_pack(tokens_T, lengths)
    x_TD = None
    for rank, way in ((0, 0), (1, 0), (1, 1), (0, 1)):
        chunk = stages[rank].chunks(CONFIG.num_hidden_layers)[way]
        x_TD = models[rank].model.run(chunk, x_TD, tokens_T, ragged)
    whole = DeepseekV3.from_checkpoint(checkpoint)
    assert x_TD is not None and torch.equal(x_TD, whole.hidden(tokens_T, lengths))
    assert whole.routers() == models[1].routers() == {f"model.layers.{i}.mlp.gate": 8 for i in (1, 2, 3, 4, 5)}


def test_a_part_is_not_taken_for_the_whole(checkpoint: Path) -> None:
    for rank in range(2):
        model = DeepseekV3.from_checkpoint(checkpoint, stage=Stage(rank=rank, size=2))
        with pytest.raises(RuntimeError, match="this layer is on another rank of the pipeline; run the model through"):
            model.hidden(torch.arange(5))
