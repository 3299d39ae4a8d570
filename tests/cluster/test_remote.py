"""The trainer's ranks behind one `Trainer`, on a real Ray: as many as they are, they are one trainer."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from rlkit.algo import GrpoLoss, shard
from rlkit.assemble import trainer
from rlkit.cluster.start import on_ray
from rlkit.config import GrpoRun
from rlkit.config.compose import load_config
from rlkit.errors import PartDiedError
from rlkit.train.base import Trainer
from rlkit.train.policy import frozen_copy
from rlkit.train.rounding import UNIT, Rounding
from rlkit.train.steppers.torch import TorchStepper
from rlkit.train.trainer import ModelTrainer
from rlkit.types import Batch, Numbers, PolicyPack
from tests.train.test_trainer import difference, make_model, rollouts

pytestmark = pytest.mark.slow
RANKS = {
    "1": (1, 1, 1),
    "2": (2, 1, 1),
    "4, two copies of experts": (4, 2, 2),
    "4, pipeline of experts": (4, 2, 1, 2),
}
"""How many ranks there are, how many share out the experts, the ZeRO stage, and how many share out the layers.

Every layout of its own is tried in `tests/train`; here it matters who of them answers, and for whom.
"""
SEVERAL = [name for name in RANKS if name != "1"]
LOSS, LR = GrpoLoss(kl_coef=0.05), 1e-3
BIAS = "e_score_correction_bias"
Seen = dict[str, Any]


def config(ranks: str) -> GrpoRun:
    num_ranks, expert_parallel, stage, *pipeline = RANKS[ranks]
    return load_config("grpo", GrpoRun, [
        "cluster=ray", f"trainer.num_ranks={num_ranks}", f"trainer.expert_parallel={expert_parallel}",
        f"trainer.zero_stage={stage}", f"trainer.pipeline={next(iter(pipeline), 1)}", "trainer.threads=1",
        "trainer.bias_update_speed=0.01", "trainer.balance_coef=0.1", "algo.loss.kl_coef=0.05",
    ])  # fmt: skip


def two_samples() -> Batch:
    """Fewer samples than some trainers have ranks."""
    [batch] = rollouts(7, max_tokens=1)
    packs = tuple(replace(pack, weights_T=pack.weights_T * 5) for pack in batch.packs[:2])
    return replace(batch, packs=packs, num_samples=2, num_tokens=sum(pack.lengths[0] for pack in packs))


BATCHES = {"many": rollouts(0, max_tokens=65)[0], "uneven": rollouts(0, max_tokens=25)[0], "two": two_samples()}


def spoiled(batch: Batch) -> Batch:
    """One sample has a log-prob that is no number, so that one rank alone has a loss that is none."""
    first, *others = batch.packs
    assert isinstance(first, PolicyPack)
    old_T = first.old_logprobs_T.clone()
    old_T[first.weights_T.nonzero()[0]] = torch.nan
    return replace(batch, packs=(replace(first, old_logprobs_T=old_T), *others))


SPOILED = spoiled(BATCHES["many"])


def lived(learner: Trainer, folder: Path) -> Seen:
    """Steps on batches that do not divide by the ranks, a new stage, a checkpoint and what follows it, twice."""
    seen: Seen = {name: learner.update(batch, LOSS, LR) for name, batch in BATCHES.items()}
    learner.refresh_reference()
    seen["after a refresh"] = learner.update(BATCHES["uneven"], LOSS, LR)
    learner.begin_stage()
    seen["first of a stage"] = learner.update(BATCHES["many"], LOSS, LR)
    folder.mkdir()
    learner.save(folder)
    for life in ("weights", "resumed"):
        learner.update(BATCHES["two"], LOSS, LR)
        seen[life] = {name: tensor.clone() for name, tensor in learner.weights()}
        learner.load(folder)
    before = {name: tensor.clone() for name, tensor in learner.weights()}
    numbers = learner.update(SPOILED, LOSS, LR)
    unmoved = all(torch.equal(tensor, before[name]) for name, tensor in learner.weights())
    seen["skipped"] = (numbers["skipped"], unmoved, learner.update(BATCHES["two"], LOSS, LR)["skipped"])
    sequences = [(5, 6, 7, 8), (9, 10)]
    seen["logprobs"] = [learner.logprobs(sequences), learner.logprobs(sequences, Rounding(unit=UNIT["bf16"], seed=0))]
    seen["trace"] = learner.trace(sequences[0])
    return seen


@pytest.fixture(scope="module")
def seen(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Seen]:
    """What trainers of two and four ranks say of the same life, and one in this process, which knows of no ranks."""
    folder = tmp_path_factory.mktemp("remote")
    model = make_model(num_hidden_layers=4)
    model.save_checkpoint(folder / "model", dtype="fp32")
    alone = ModelTrainer(
        model,
        TorchStepper(model, config("1").trainer),
        reference=frozen_copy(model),
        bias_update_speed=0.01,
        balance_coef=0.1,
    )
    found = {"1": lived(alone, folder / "1")}
    with on_ray(config("4, two copies of experts"), folder / "model"):
        for ranks in SEVERAL:
            with trainer(replace(config(ranks), output_dir=folder), folder / "model") as learner:
                found[ranks] = lived(learner, folder / ranks)
            with pytest.raises(PartDiedError):  # who still held two ranks would have no core for the next four
                learner.trace((5, 6))
    return found


def of_experts(numbers: Numbers) -> dict[str, float]:
    return {name: value for name, value in numbers.items() if name.startswith(("max_viol", "mean_viol", "load_"))}


@pytest.mark.parametrize("ranks", SEVERAL)
@pytest.mark.parametrize("step", [*BATCHES, "after a refresh", "first of a stage"])
def test_every_number_is_that_of_one_rank(step: str, ranks: str, seen: dict[str, Seen]) -> None:
    """No token counts that nobody sampled, although ranks without enough packs run empty ones."""
    one, several = seen["1"][step], seen[ranks][step]
    assert several.keys() == one.keys() >= {"loss", "kl", "entropy", "clip_fraction", "logprob_gap", "balance_loss"}
    assert several == pytest.approx(one, rel=1e-4, abs=1e-6)
    assert of_experts(several) == of_experts(one) != {}, "whole numbers of tokens have no rounding"


def test_these_batches_need_empty_packs() -> None:
    def empty(batch: Batch, num_ranks: int) -> int:
        return sum(not pack.weights_T.any() for share in shard(batch, num_ranks) for pack in share.packs)

    assert empty(BATCHES["two"], 4) == 2
    assert all(empty(BATCHES["uneven"], num_ranks) for num_ranks in (2, 4))


@pytest.mark.parametrize("ranks", RANKS)
def test_a_stage_begins_on_every_rank(ranks: str, seen: dict[str, Seen]) -> None:
    """The policy is the reference of each rank's share; before that the two differ."""
    for step in ("after a refresh", "first of a stage"):
        assert seen[ranks][step]["kl"] == pytest.approx(0, abs=1e-8)
    assert seen[ranks]["uneven"]["kl"] > 1e-7


@pytest.mark.parametrize("ranks", SEVERAL)
def test_the_weights_are_those_of_one_rank(ranks: str, seen: dict[str, Seen]) -> None:
    one, several = seen["1"]["weights"], seen[ranks]["weights"]
    assert one.keys() == several.keys()
    start = dict(make_model(num_hidden_layers=4).checkpoint_weights())
    for name, tensor in one.items():
        if name.endswith(BIAS):
            assert torch.equal(several[name], tensor), name
        else:
            assert difference(several[name] - start[name], tensor - start[name]) <= 1e-2, name


@pytest.mark.parametrize("ranks", RANKS)
def test_what_one_rank_cannot_use_all_of_them_skip(ranks: str, seen: dict[str, Seen]) -> None:
    assert seen[ranks]["skipped"] == (1, True, 0)


@pytest.mark.parametrize("ranks", RANKS)
def test_every_rank_continues_from_its_checkpoint(ranks: str, seen: dict[str, Seen]) -> None:
    for name, tensor in seen[ranks]["weights"].items():
        assert torch.equal(seen[ranks]["resumed"][name], tensor), name


@pytest.mark.parametrize("ranks", RANKS)
def test_log_probs_and_traces_come_from_one_rank(ranks: str, seen: dict[str, Seen]) -> None:
    plain, rounded = (torch.tensor(rows[0]) for rows in seen[ranks]["logprobs"])
    assert 0 < float((plain - rounded).abs().max()) < 1
    one: dict[str, Tensor] = seen["1"]["trace"]
    for name, tensor in seen[ranks]["trace"].items():
        torch.testing.assert_close(tensor, one[name], rtol=1e-3, atol=1e-4)
