"""Steps that were skipped: what is said, what is written, when the run ends, and that a resume counts on."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from rlkit.algo import GrpoLoss, SftLoss, shard
from rlkit.errors import DivergedError
from rlkit.train.skipped import COUNTS, WatchedTrainer, read_batch
from rlkit.train.trainer import ModelTrainer
from rlkit.types import Batch, Pack, PolicyPack
from tests.train.test_trainer import CFG, demonstrations, make_trainer, no_number, rollouts, weights

LR = 1e-3
SPEEDY = {"bias_update_speed": 0.01, "balance_coef": 0.1}


def watched(folder: Path, most: int = 3, num_ranks: int = 2) -> tuple[WatchedTrainer, list[str]]:
    said: list[str] = []
    inner = make_trainer("torch")
    trainer = ModelTrainer(inner.model, inner.stepper, reference=None, **SPEEDY)
    there = folder / "skipped"
    tokenizer = folder / "model"
    return WatchedTrainer(
        trainer, folder=there, most=most, num_ranks=num_ranks, tokenizer=tokenizer, say=said.append
    ), said


def state(trainer: WatchedTrainer) -> dict[str, Tensor]:
    """Weights, biases of the routers and moments."""
    inner = trainer.trainer
    assert isinstance(inner, ModelTrainer)
    found = {name: tensor.clone() for name, tensor in inner.model.state_dict().items()}
    for name, parameter in inner.model.named_parameters():
        found |= {f"{kind}:{name}": tensor.clone() for kind, tensor in inner.stepper.state(parameter).items()}
    return found


def same(one: dict[str, Tensor], two: dict[str, Tensor]) -> bool:
    return one.keys() == two.keys() and all(torch.equal(tensor, two[name]) for name, tensor in one.items())


def test_a_skipped_step_leaves_everything_as_it_was(tmp_path: Path) -> None:
    """The biases too: the step after it is bit for bit the one that would have come without it."""
    (trainer, said), (quiet, silent) = watched(tmp_path), watched(tmp_path / "quiet")
    for each in (trainer, quiet):
        each.update(demonstrations(1), SftLoss(), LR)
    before = state(trainer)
    numbers = trainer.update(demonstrations(2), no_number, LR)
    assert numbers["skipped"] == 1 and same(state(trainer), before)
    assert numbers["max_violation"] > 1, "its load was counted all the same"
    for each in (trainer, quiet):
        assert each.update(demonstrations(3), SftLoss(), LR)["skipped"] == 0
    assert same(state(trainer), state(quiet)) and not same(state(trainer), before)
    assert silent == [] and not (tmp_path / "quiet").exists()
    [line] = said
    file = tmp_path / "skipped" / "000002.safetensors"
    assert line.startswith(
        "warning: the loss of update 2 is nan, so it was skipped (1 in a row; the run ends after more than 3); "
        f"weights, moments and router biases stay; the batch is in {file}: if it happens again, look at it, at the "
    )
    assert line.endswith("with a lower learning rate (sft.schedule.lr, algo.schedule.lr or on_policy.schedule.lr)")


@pytest.mark.parametrize("most", [0, 1, 3])
def test_one_more_in_a_row_ends_the_run_with_the_name_of_the_file(most: int, tmp_path: Path) -> None:
    trainer, said = watched(tmp_path, most)
    if most:
        trainer.update(demonstrations(), no_number, LR)
    trainer.update(demonstrations(), SftLoss(), LR)  # begins the count anew
    for _ in range(most):
        trainer.update(demonstrations(), no_number, LR)
    last = 2 * bool(most) + most + (1 if most else 2)
    words = rf"the loss of update {last} is nan"
    words += rf", and those before it were skipped too: trainer\.max_skipped={most}" if most else ""
    words += r"; no step was taken, and the weights are those of the step before; the batch is in "
    with pytest.raises(DivergedError, match=words + re.escape(str(tmp_path / "skipped" / f"{last:06}.safetensors"))):
        trainer.update(demonstrations(), no_number, LR)
    assert len(said) == most + bool(most)


def test_the_gradient_is_named_where_the_loss_is_a_number(tmp_path: Path) -> None:
    trainer, [*said] = watched(tmp_path, most=0)
    inner = trainer.trainer
    assert isinstance(inner, ModelTrainer)
    inner.model.lm_head.weight.register_hook(lambda grad: grad * torch.inf)
    with pytest.raises(DivergedError, match=r"the gradient norm of update 1 is (inf|nan); no step was taken"):
        trainer.update(demonstrations(), SftLoss(), LR)
    assert said == []


def test_a_resume_counts_on_and_a_stage_begins_at_0(tmp_path: Path) -> None:
    trainer, _ = watched(tmp_path, most=2)
    for loss in (SftLoss(), no_number, no_number):
        trainer.update(demonstrations(), loss, LR)
    (tmp_path / "state").mkdir()
    trainer.save(tmp_path / "state")
    resumed, said = watched(tmp_path, most=2)
    resumed.load(tmp_path / "state")
    assert same(state(resumed), state(trainer))
    with pytest.raises(DivergedError, match=r"update 4 .* trainer\.max_skipped=2"):
        resumed.update(demonstrations(), no_number, LR)
    resumed.load(tmp_path / "state")
    resumed.begin_stage()
    resumed.update(demonstrations(), no_number, LR)
    assert "update 4 is nan, so it was skipped (1 in a row" in said[0]
    (tmp_path / "state" / COUNTS).unlink()
    resumed.load(tmp_path / "state")
    resumed.update(demonstrations(), no_number, LR)
    assert "update 1 is nan, so it was skipped (1 in a row" in said[1], "a state without counts begins at 0"


def named(batch: Batch) -> Batch:
    """Every sample has an id of its own."""
    packs = [replace(p, ids=tuple(f"{i}/{j}" for j in range(len(p.lengths)))) for i, p in enumerate(batch.packs)]
    return replace(batch, packs=tuple(packs))


def test_what_is_written_is_what_every_rank_had_and_can_be_taken_again(tmp_path: Path) -> None:
    [batch] = rollouts()
    first, *others = batch.packs
    assert isinstance(first, PolicyPack)
    old_T = first.old_logprobs_T.clone()
    old_T[first.weights_T.nonzero()[0]] = torch.nan
    spoiled = named(replace(batch, packs=(replace(first, old_logprobs_T=old_T), *others)))
    trainer, _ = watched(tmp_path)
    trainer.update(spoiled, GrpoLoss(kl_coef=0.0), LR)
    shares, told = read_batch(tmp_path / "skipped" / "000001.safetensors")
    for share, expected in zip(shares, shard(spoiled, 2), strict=True):
        assert (share.temperature, share.num_samples, share.num_tokens) == (0.9, 16, batch.num_tokens)
        assert len(share.packs) == len(expected.packs)
        for pack, other in zip(share.packs, expected.packs, strict=True):
            assert isinstance(pack, PolicyPack) and isinstance(other, PolicyPack)
            assert (pack.lengths, pack.ids) == (other.lengths, other.ids)
            for name in ("tokens_T", "weights_T", "advantages_T", "old_logprobs_T"):
                torch.testing.assert_close(getattr(pack, name), getattr(other, name), equal_nan=True, rtol=0, atol=0)
    assert told["update"] == 1 and told["lr"] == LR and "kl_coef=0.0" in told["loss"]
    assert told["num_ranks"] == 2 and told["numbers"]["skipped"] == 1
    ids = [sample["id"] for pack in told["packs"] for sample in pack["samples"]]
    assert sorted(set(ids)) == sorted(name for pack in spoiled.packs for name in pack.ids)
    again = replace(batch, packs=tuple(pack for share in shares for pack in share.packs))
    assert trainer.update(again, GrpoLoss(kl_coef=0.0), LR)["skipped"] == 1
    mended = tuple(replace(p, old_logprobs_T=p.old_logprobs_T.nan_to_num(-4.0)) for p in again.packs)  # type: ignore[call-arg, attr-defined]
    assert trainer.update(replace(again, packs=mended), GrpoLoss(kl_coef=0.0), LR)["skipped"] == 0


def test_samples_keep_the_ids_of_their_prompts(tmp_path: Path) -> None:
    """Through packing, and through dealing to ranks, where empty packs fill up."""
    [batch] = rollouts(max_tokens=30)
    ours = sorted(name for pack in batch.packs for name in pack.ids)
    assert ours == sorted(str(i) for i in range(4) for _ in range(4))
    for number in (1, 2, 3, 5):
        packs = [pack for share in shard(batch, number) for pack in share.packs]
        assert all(len(pack.ids) == len(pack.lengths) for pack in packs)
        assert sorted(name for pack in packs if pack.weights_T.any() for name in pack.ids) == ours
        assert {sample: name for sample, name in owners(packs).items() if len(sample) > 1} == owners(batch.packs)


def owners(packs: Sequence[Pack]) -> dict[tuple[int, ...], str]:
    """The prompt's id by the tokens of a sample."""
    pairs = ((pack.tokens_T.split(list(pack.lengths)), pack.ids) for pack in packs)
    return {tuple(tokens_T.tolist()): name for parts, ids in pairs for tokens_T, name in zip(parts, ids, strict=True)}


def test_counts_are_json_that_a_person_can_read(tmp_path: Path) -> None:
    trainer, _ = watched(tmp_path)
    trainer.update(demonstrations(), no_number, LR)
    trainer.save(tmp_path)
    assert json.loads((tmp_path / COUNTS).read_text()) == {"updates": 1, "in_row": 1}


def test_weights_and_questions_go_through(tmp_path: Path) -> None:
    trainer, _ = watched(tmp_path)
    inner = trainer.trainer
    assert isinstance(inner, ModelTrainer)
    assert dict(trainer.weights()).keys() == weights(inner).keys() and trainer.adapter() == {}
    assert trainer.logprobs([(5, 6, 7)]) == inner.logprobs([(5, 6, 7)])
    assert trainer.trace((5, 6)).keys() == inner.trace((5, 6)).keys()
    trainer.refresh_reference()
    assert CFG.max_skipped == 3
