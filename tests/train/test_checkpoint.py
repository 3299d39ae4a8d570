"""A trainer goes on from what was saved, bit for bit in the same layout, and with the same losses in another one."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, distributed

from rlkit.build import build_trainer
from rlkit.errors import UserError
from rlkit.train.trainer import ModelTrainer
from tests.model.tiny import relative
from tests.train.ranks import run_ranks
from tests.train.test_ranks import Layout, save_models


class Ranks(NamedTuple):
    """A layout and the number of its ranks."""

    number: int
    layout: Layout


def _mtp(dtype: str, zero_stage: int, expert_parallel: int = 1, offload: str = "none", optimizer: str = "") -> Layout:
    return Layout(dtype, zero_stage, "mtp", 80, expert_parallel, offload, optimizer=optimizer or "adamw")


def _muon(number: int, zero_stage: int, expert_parallel: int = 1, offload: str = "none", dtype: str = "fp32") -> Ranks:
    return Ranks(number, _mtp(dtype, zero_stage, expert_parallel, offload, "muon"))


LAYOUTS = {
    "one rank": Ranks(1, _mtp("fp32", 1)),
    "one rank, ZeRO-3, offload": Ranks(1, _mtp("fp32", 3, offload="all")),
    "two ranks": Ranks(2, _mtp("fp32", 2)),
    "experts": Ranks(2, _mtp("fp32", 1, 2)),
    "experts, offload": Ranks(2, _mtp("fp32", 2, 2, "optimizer")),
    "experts, ZeRO-3": Ranks(2, _mtp("fp32", 3, 2)),
    "bf16": Ranks(2, _mtp("bf16", 1, 2)),
    "bf16, offload": Ranks(2, _mtp("bf16", 2, 2, "optimizer")),
    "bf16, ZeRO-3": Ranks(2, _mtp("bf16", 3, 2)),
    "lora": Ranks(2, Layout("fp32", 1, "lora", 80, 2)),
    "lora, one rank": Ranks(1, Layout("fp32", 2, "lora", 80)),
    "muon, one rank": _muon(1, 2),
    "muon": _muon(2, 1),
    "muon, experts": _muon(2, 1, 2),
    "muon, experts, offload": _muon(2, 2, 2, "optimizer"),
    "muon, ZeRO-3": _muon(2, 3),
    "muon, experts, ZeRO-3, offload": _muon(2, 3, 2, "all"),
    "muon, bf16": _muon(2, 1, 2, dtype="bf16"),
    "muon, bf16, ZeRO-3": _muon(2, 3, dtype="bf16"),
}
REPLICATED = {f"muon, four ranks, ZeRO-{stage}": _muon(4, stage, 2) for stage in (1, 3)}
"""Two copies of each expert, each cut in two; they take their steps and save nothing."""
OTHER = [
    ("one rank", "experts, ZeRO-3"),
    ("one rank, ZeRO-3, offload", "two ranks"),
    ("two ranks", "experts"),
    ("experts", "one rank"),
    ("experts", "experts, offload"),
    ("experts, offload", "experts, ZeRO-3"),
    ("experts, ZeRO-3", "one rank"),
    ("experts, ZeRO-3", "two ranks"),
    ("bf16", "bf16, ZeRO-3"),
    ("bf16, ZeRO-3", "bf16, offload"),
    ("lora", "lora, one rank"),
    ("lora, one rank", "lora"),
    ("muon, one rank", "muon, experts"),
    ("muon, experts", "muon, ZeRO-3"),
    ("muon, ZeRO-3", "muon"),
    ("muon, experts, ZeRO-3, offload", "muon, one rank"),
    ("muon, bf16", "muon, bf16, ZeRO-3"),
]
GOES_ON = [*((name, name) for name in LAYOUTS), *OTHER]


Lived = dict[Any, tuple[float, dict[str, Tensor]]]
"""The loss and the weights of the third step, by the name of a layout, or by those of two: of what was saved and of
what went on."""


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("lives")
    save_models(folder)
    return folder


@pytest.fixture(scope="module")
def lived(models: Path) -> Lived:
    """Nothing but files goes from one process to another."""
    launches = [("before", 1), ("before", 2), ("before", 4), ("after", 1), ("after", 2)]
    found, _ = run_ranks("one_life", models, *launches)
    return {name: seen for launch in found for name, seen in launch.items()}


@pytest.mark.slow
@pytest.mark.parametrize("name", LAYOUTS)
def test_the_same_layout_goes_on_bit_for_bit(name: str, lived: Lived) -> None:
    loss, weights = lived[name]
    resumed_loss, resumed = lived[name, name]
    assert resumed_loss == loss
    assert resumed.keys() == weights.keys()
    for key, tensor in weights.items():
        assert torch.equal(resumed[key], tensor), key


@pytest.mark.slow
@pytest.mark.parametrize(("before", "after"), OTHER)
def test_another_layout_goes_on_with_the_same_losses(before: str, after: str, lived: Lived) -> None:
    """In fp32 weights are the same too, up to the order of sums; in bf16 a step's rounding is all that may differ."""
    loss, weights = lived[before]
    resumed_loss, resumed = lived[before, after]
    exact = "bf16" not in before
    assert resumed_loss == pytest.approx(loss, rel=1e-6 if exact else 3e-3)
    for key, tensor in weights.items():
        error = relative(resumed[key].float(), tensor.float())
        assert error <= (1e-5 if exact else 1e-2), f"{key}: {error:.1e}"


@pytest.fixture(scope="module")
def muon_alone(models: Path) -> tuple[dict[str, float], dict[str, Tensor], dict[str, Tensor]]:
    """Muon in torch in this process, which `test_muon.py` holds against the equations; clipped, decayed, with MTP: the
    numbers of the third step, and the weights before the first and after it."""
    cfg = replace(_mtp("fp32", 1, optimizer="muon").cfg(1), kind="torch")
    loss, mtp = LAYOUTS["muon"].layout.loss()
    store = distributed.HashStore()
    alone = build_trainer(cfg, models / "mtp", "deepseek", keep_reference=False, seed=0, store=store, rank=0)
    start = {key: tensor.clone() for key, tensor in alone.model.state_dict().items()}
    for _ in range(3):
        numbers = alone.update(LAYOUTS["muon"].layout.batch(), loss, 1e-3, mtp)
    assert numbers["grad_norm"] > cfg.grad_clip
    return dict(numbers), start, alone.model.state_dict()


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in (*LAYOUTS, *REPLICATED) if "muon" in name])
def test_muon_takes_the_same_steps_in_every_layout(name: str, lived: Lived, muon_alone: Any) -> None:
    numbers, start, expected = muon_alone
    found, weights = lived[name]
    exact = "bf16" not in name
    assert found == pytest.approx(numbers["loss"], rel=1e-5 if exact else 2 * 2**-8)
    for key, tensor in expected.items() if exact else ():
        if "e_score" in key:
            assert torch.equal(weights[key], tensor), key
        else:
            moved = relative(weights[key] - start[key], tensor - start[key])
            assert moved <= 1e-3 and relative(weights[key], tensor) <= 1e-5, f"{key}: {moved:.1e}"


@pytest.fixture
def trainer(tmp_path: Path) -> ModelTrainer:
    save_models(tmp_path)
    return fresh(tmp_path)


def fresh(folder: Path) -> ModelTrainer:
    cfg = Layout("fp32", 1, "grpo", 80).cfg(1)
    store = distributed.HashStore()
    return build_trainer(cfg, folder / "plain", "deepseek", keep_reference=True, seed=0, store=store, rank=0)


def saved(trainer: ModelTrainer, folder: Path) -> Path:
    folder.mkdir()
    trainer.save(folder)
    [file] = folder.glob("state-*.safetensors")
    return file


def test_what_is_missing_or_belongs_to_another_model_is_named(trainer: ModelTrainer, tmp_path: Path) -> None:
    file = saved(trainer, tmp_path / "state")
    tensors = load_file(file)
    key = next(key for key in tensors if key.endswith("lm_head.weight") and key.startswith("weight"))
    save_file({name: tensor for name, tensor in tensors.items() if name != key}, file)
    with pytest.raises(UserError, match=r"state: weight of lm_head.weight should have the shape .*; there is none; it"):
        trainer.load(tmp_path / "state")
    save_file(tensors | {key: tensors[key][:, :5].contiguous()}, file)
    with pytest.raises(UserError, match=r"weight of lm_head.weight should have .*; there is \(64, 5\) from 0"):
        trainer.load(tmp_path / "state")
    file.write_bytes(file.read_bytes()[:1000])
    with pytest.raises(UserError, match=r"safetensors is no part of a trainer's state .*; it was torn, or belongs to"):
        trainer.load(tmp_path / "state")
    file.unlink()
    with pytest.raises(UserError, match="state holds no state of a trainer; it was torn, or belongs to another model"):
        trainer.load(tmp_path / "state")


def test_large_states_are_written_in_files_of_bounded_size(
    trainer: ModelTrainer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = load_file(saved(trainer, tmp_path / "one"))
    monkeypatch.setattr("rlkit.train.checkpoint.MAX_FILE_BYTES", 2**16)
    (tmp_path / "many").mkdir()
    trainer.save(tmp_path / "many")
    files = sorted((tmp_path / "many").glob("state-*.safetensors"))
    found = [load_file(file) for file in files]
    assert len(files) > 3
    assert all(len(tensors) == 1 or sum(t.nbytes for t in tensors.values()) <= 2**16 for tensors in found)
    together = {key: tensor for tensors in found for key, tensor in tensors.items()}
    assert together.keys() == whole.keys() and all(torch.equal(together[key], whole[key]) for key in whole)
