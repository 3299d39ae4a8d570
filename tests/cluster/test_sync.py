"""From the ranks to the engines, on a real Ray: every rank sends its share, and what arrives wrong stops the run."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
import ray
import torch
from ray import ObjectRef
from torch import Tensor

from rlkit.assemble import parts, trainer
from rlkit.cluster.buckets import Contents
from rlkit.cluster.transfer import Publication, RemoteWeights, publish
from rlkit.config import GrpoRun
from rlkit.config.compose import load_config
from rlkit.engine.whole import HalfLoadedError
from rlkit.errors import PartDiedError
from rlkit.model.files.sent import ADAPTER
from rlkit.parts import Parts, SyncError
from rlkit.quant.fp8 import quantise_blocks
from tests.hf_reference import make_model, save_checkpoint

pytestmark = pytest.mark.slow
SEQUENCES = [(5, 60, 7, 80, 9, 10, 11, 3), (20, 4, 15, 6)]
WORDS = ["cluster=ray", "engine=torch", "trainer.num_ranks=2", "trainer.threads=1", "engine.threads=1"]


@pytest.fixture(scope="module")
def joined(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Parts]:
    """Two DeepSpeed ranks and an engine."""
    folder = tmp_path_factory.mktemp("sync")
    save_checkpoint(make_model(), folder)
    with parts(load_config("grpo", GrpoRun, [*WORDS, "reward.workers=1"]), folder, SEQUENCES) as found:
        yield found


def published(trainer_weights: object) -> RemoteWeights:
    assert isinstance(trainer_weights, RemoteWeights)
    return trainer_weights


def lists(weights: RemoteWeights) -> list[Contents]:
    return ray.get([publication.contents for publication in weights.publications])


def flip(weights: RemoteWeights, name: str) -> tuple[int, str]:
    """Changes one bit in the object store itself; returns the rank of the tensor and its dtype."""
    for contents in lists(weights):
        for entry in contents.entries:
            if entry.name == name:
                bucket: ObjectRef = weights.publications[contents.rank].buckets[entry.bucket]
                array = ray.get(bucket).data[entry.place]
                assert not array.flags.writeable
                ctypes.c_uint8.from_address(array.ctypes.data + array.nbytes // 2).value ^= 4
                return contents.rank, str(entry.dtype)
    raise AssertionError(name)


def test_an_adapter_travels_like_weights(tmp_path: Path) -> None:
    """One wrong byte is named. The first test: the parts of the others leave no core for its ranks."""
    save_checkpoint(make_model(), tmp_path)
    lora = ["trainer.lora={rank: 2}", "trainer.bias_update_speed=0", "algo.mtp_weight=0", f"output_dir={tmp_path}"]
    with trainer(load_config("grpo", GrpoRun, [*WORDS, *lora]), tmp_path) as learner:
        adapter, weights = learner.adapter(), published(learner.weights(4, ADAPTER))
        assert weights.version == 4 and [len(found.entries) for found in lists(weights)] == [len(adapter), 0]
        for name, tensor in weights:
            assert torch.equal(tensor, adapter[name])
        name = next(name for name in adapter if "lora_A" in name)
        flip(weights, name)
        with pytest.raises(SyncError, match=f"{name}: the bytes that arrived are not those that rank 0 published in "):
            list(weights)


def test_both_ranks_send_about_half_and_the_gate_passes(joined: Parts) -> None:
    assert joined.sync(1).gap <= 1e-4
    weights = published(joined.trainer.weights(2))
    sent = [sum(entry.dtype.itemsize * torch.Size(entry.shape).numel() for entry in found.entries)
            for found in lists(weights)]  # fmt: skip
    assert len(sent) == 2 and min(sent) > 0.4 * sum(sent)
    expected = dict(make_model().state_dict())
    for name, tensor in weights:
        if name in expected:  # transformers stacks the experts
            assert torch.equal(tensor, expected[name]), name


FLIPPED = {
    "a dense weight": ("model.layers.0.mlp.down_proj.weight", "torch.float32"),
    "an expert": ("model.layers.1.mlp.experts.1.up_proj.weight", "torch.float32"),
    "a bias": ("model.layers.1.mlp.gate.e_score_correction_bias", "torch.float32"),
}


@pytest.mark.parametrize("what", FLIPPED)
def test_one_wrong_byte_in_the_store_stops_the_run_and_the_engine(what: str, joined: Parts) -> None:
    name, dtype = FLIPPED[what]
    weights = published(joined.trainer.weights(7))
    rank, found = flip(weights, name)
    assert found == dtype
    with pytest.raises(SyncError, match=f"{name}: the bytes that arrived are not those that rank {rank} published in "):
        joined.engine.load(weights, 7)
    for ask in (lambda: joined.engine.logprobs(SEQUENCES), lambda: joined.engine.trace(SEQUENCES[0])):
        with pytest.raises(HalfLoadedError, match="the load of version 7 broke off .*" + name):
            ask()
    assert joined.sync(8).gap <= 1e-4, "a whole one heals"


@pytest.mark.parametrize("name", ["fp8.weight", "fp8.weight_scale_inv"])
def test_one_wrong_byte_in_codes_or_scales_of_fp8(name: str, joined: Parts) -> None:
    codes, scales = quantise_blocks(torch.randn(300, 200, generator=torch.Generator().manual_seed(0)))
    pair: Mapping[str, Tensor] = {"fp8.weight": codes, "fp8.weight_scale_inv": scales}
    weights = RemoteWeights(version=3, publications=(published_pair(pair),))
    for sent, tensor in weights:
        assert torch.equal(tensor.view(torch.uint8), pair[sent].view(torch.uint8))
    flip(weights, name)
    with pytest.raises(SyncError, match=f"{name}: the bytes that arrived .* rank 0 published in version 3"):
        list(weights)


def published_pair(pair: Mapping[str, Tensor]) -> Publication:
    return publish(pair.items(), pair.keys(), table=tuple(pair), rank=0, version=3)


def test_what_was_published_does_not_change_with_the_weights(joined: Parts) -> None:
    weight = torch.zeros(64)
    sent = RemoteWeights(version=3, publications=(published_pair({"w": weight}),))
    weight += 1
    [(_, found)] = sent
    assert not found.any()


def test_weights_of_another_version_are_not_loaded(joined: Parts) -> None:
    with pytest.raises(SyncError, match="the weights are of version 4, but version 5 is to be loaded"):
        joined.engine.load(joined.trainer.weights(4), 5)
    old, new = published(joined.trainer.weights(4)), published(joined.trainer.weights(5))
    mixed = RemoteWeights(version=5, publications=(new.publications[0], old.publications[1]))
    with pytest.raises(SyncError, match="rank 1 publishes version 4 of the weights, but version 5 was announced"):
        joined.engine.load(mixed, 5)
    assert joined.sync(6).gap <= 1e-4


def test_a_rank_that_dies_before_its_share_has_arrived(joined: Parts) -> None:
    """The last test: this trainer is dead after it. Until Ray has noticed, its share can still be had, whole."""
    weights = published(joined.trainer.weights(9))
    ray.kill(joined.trainer.trainer._ranks[1])  # type: ignore[attr-defined]
    with pytest.raises(PartDiedError, match="trainer rank 1 of 2"):
        for _ in range(10_000):
            joined.engine.load(weights, 9)
    with pytest.raises(PartDiedError) as died:  # who has died matters more than what the engine says
        joined.engine.logprobs(SEQUENCES)
    assert isinstance(died.value.__cause__, HalfLoadedError)
    assert "the load of version 9 broke off" in str(died.value.__cause__)
