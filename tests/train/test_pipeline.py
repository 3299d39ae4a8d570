"""A pipeline learns what one process does: real DualPipeV in processes, against torch's AdamW in this one."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

from rlkit.algo import NO_MTP, GrpoLoss, MtpTerm, ReverseKlLoss, SftLoss
from rlkit.config import TrainerConfig
from rlkit.model import DeepseekV3
from rlkit.model.precision import compute_in_float8
from rlkit.train.policy import frozen_copy
from rlkit.train.steppers.torch import TorchStepper
from rlkit.train.trainer import ModelTrainer
from rlkit.types import Batch, Pack, PolicyPack, TaughtPack
from tests.model.tiny import relative, seeded
from tests.train.ranks import run_ranks
from tests.train.test_ranks import Summing, error
from tests.train.test_trainer import ARCHITECTURE, CFG, demonstrations, rollouts

pytestmark = pytest.mark.slow
ARCHITECTURES = {
    "plain": replace(ARCHITECTURE, num_hidden_layers=5),
    "tied": replace(ARCHITECTURE, num_hidden_layers=4, tie_word_embeddings=True),
    # Of two stages the second one has no experts, and neither a module for multi-token prediction.
    "mtp": replace(ARCHITECTURE, num_hidden_layers=5, first_k_dense_replace=4, num_nextn_predict_layers=2),
    "wide": replace(
        ARCHITECTURE, num_hidden_layers=4, hidden_size=128, intermediate_size=256, moe_intermediate_size=128,
        q_lora_rank=128, kv_lora_rank=128, qk_nope_head_dim=64, qk_rope_head_dim=64, v_head_dim=64,
        initializer_range=0.03,
    ),
}  # fmt: skip
SPEED, COEF, CLIP, LR = 0.01, 0.1, 0.5, 1e-3
NUM_STEPS, SAVED_AFTER = 5, 3
SEQUENCES = [(5, 6, 7, 8, 40, 41, 42), (9, 10)]
Loss = GrpoLoss | ReverseKlLoss | SftLoss


class Case(NamedTuple):
    """What is learned."""

    architecture: str
    loss: Loss
    mtp: MtpTerm

    def batches(self) -> list[Batch]:
        """One for every step: packs of other lengths in each, once fewer samples than pipelines."""
        if isinstance(self.loss, SftLoss):
            return [demonstrations(seed) for seed in range(NUM_STEPS)]
        found = [rollouts(seed, max_tokens=max_tokens)[0] for seed, max_tokens in enumerate((80, 40, 64, 1000, 80))]
        if isinstance(self.loss, ReverseKlLoss):
            return [replace(batch, packs=tuple(map(taught, batch.packs))) for batch in found]
        pack = found[1].packs[0]
        size = pack.lengths[0]
        names = ("tokens_T", "weights_T", "advantages_T", "old_logprobs_T")
        only = replace(pack, lengths=(size,), **{name: getattr(pack, name)[:size] for name in names})
        return [found[0], replace(found[1], packs=(only,), num_samples=1), *found[2:]]


def taught(pack: Pack) -> TaughtPack:
    """The same rollouts with a teacher who thinks otherwise of them."""
    assert isinstance(pack, PolicyPack)
    shared = {name: getattr(pack, name) for name in ("tokens_T", "lengths", "weights_T", "ids", "old_logprobs_T")}
    return TaughtPack(**shared, teacher_logprobs_T=pack.old_logprobs_T + pack.advantages_T)


CASES = {
    "grpo": Case("plain", GrpoLoss(kl_coef=0.05), NO_MTP),
    "sft": Case("tied", SftLoss(), NO_MTP),
    "taught": Case("plain", ReverseKlLoss(), NO_MTP),
    "mtp": Case("mtp", SftLoss(), MtpTerm(weight=0.3, detached=False)),
}
WIDE_CASE = Case("wide", GrpoLoss(kl_coef=0.05), NO_MTP)
"""FP8 wants widths that are multiples of 128."""
LOW = {"bf16": CASES["grpo"], "fp8": WIDE_CASE, "fp8_weights": WIDE_CASE}
"""What is learned for one step in each of the low precisions."""


class Ranks(NamedTuple):
    """How many ranks there are, and how they share the model out."""

    number: int
    pipeline: int
    expert_parallel: int
    recompute: bool = False

    def cfg(self, dtype: str = "fp32", grad_clip: float = CLIP) -> TrainerConfig:
        return replace(
            CFG, kind="deepspeed", num_ranks=self.number, pipeline=self.pipeline, expert_parallel=self.expert_parallel,
            recompute=self.recompute, dtype=dtype, grad_clip=grad_clip, weight_decay=0.1, bias_update_speed=SPEED,
            balance_coef=COEF,
        )  # fmt: skip


LAYOUTS = {
    "two stages": Ranks(2, 2, 1),
    "two stages of experts": Ranks(4, 2, 2),
    "two stages, recomputed": Ranks(2, 2, 1, recompute=True),
    "two pipelines": Ranks(4, 2, 1),
}
TRIED = [(layout, case) for layout in LAYOUTS for case in ("grpo", "sft", "mtp")
         if case == "grpo" or layout == "two stages"]  # fmt: skip
TRIED += [("two stages of experts", "mtp"), ("two stages of experts", "taught")]
Seen = dict[str, Any]


@contextmanager
def one_thread() -> Iterator[None]:
    """As the ranks have."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def updated(trainer: ModelTrainer, case: Case, batches: list[Batch]) -> list[dict[str, float]]:
    return [dict(trainer.update(batch, case.loss, LR, case.mtp)) for batch in batches]


def alone(folder: Path, case: Case) -> ModelTrainer:
    model = DeepseekV3.from_checkpoint(folder / case.architecture)
    cfg = replace(Ranks(1, 1, 1).cfg(), kind="torch")
    stepper = TorchStepper(model, cfg)
    return ModelTrainer(model, stepper, reference=frozen_copy(model), bias_update_speed=SPEED, balance_coef=COEF)


def lived_alone(folder: Path, name: str) -> Seen:
    """What one process sees of the same steps, and its state after some of them."""
    case = CASES[name]
    trainer, batches = alone(folder, case), case.batches()
    seen: Seen = {"start": {key: tensor.clone() for key, tensor in trainer.weights()}}
    numbers = updated(trainer, case, batches[:1])
    seen["moments"] = {
        key: trainer.stepper.state(parameter)["exp_avg"].clone() for key, parameter in trainer.model.named_parameters()
    }
    numbers += updated(trainer, case, batches[1:SAVED_AFTER])
    (folder / f"alone, {name}").mkdir()
    trainer.save(folder / f"alone, {name}")
    seen["numbers"] = numbers + updated(trainer, case, batches[SAVED_AFTER:])
    seen["weights"] = {key: tensor.clone() for key, tensor in trainer.weights()}
    asked = {"logprobs": trainer.logprobs(SEQUENCES), "routes": trainer.routes(SEQUENCES)}
    return seen | asked | {"trace": trainer.trace(SEQUENCES[0])}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("pipeline")
    for name, config in ARCHITECTURES.items():
        seeded(config).save_checkpoint(made / name, dtype="fp32")
    return made


@pytest.fixture(scope="module")
def one(folder: Path) -> dict[str, Seen]:
    with one_thread():
        return {case: lived_alone(folder, case) for case in CASES}


@pytest.fixture(scope="module")
def seen(folder: Path, one: dict[str, Seen]) -> Seen:
    """By layout and case, or by what else was tried; of each what all ranks saw."""
    assert one
    (two, four), printed = run_ranks("one_stage", folder, ("stages", 2), ("stages", 4))
    said = [line for line in printed.splitlines() if "OVERFLOW! Skipping step" not in line]
    assert not said, f"DeepSpeed's reports belong in nobody's run: {said}"
    return two | four


def joined(parts: list[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """What the ranks hold, together: what several have must be the same bit for bit."""
    found: dict[str, Tensor] = {}
    for part in parts:
        for name, tensor in part.items():
            assert torch.equal(found.setdefault(name, tensor), tensor), name
    return found


def stacked(parts: list[Mapping[str, tuple[int, Tensor]]]) -> dict[str, Tensor]:
    """The same of tensors under our names, of which experts are there in parts, with the first expert's number."""
    found: dict[str, dict[int, Tensor]] = {}
    for part in parts:
        for name, (first, tensor) in part.items():
            assert torch.equal(found.setdefault(name, {}).setdefault(first, tensor), tensor), name
    return {name: torch.cat([there[first] for first in sorted(there)]) for name, there in found.items()}


@pytest.mark.parametrize(("layout", "case"), TRIED)
def test_the_gradient_of_a_step_is_that_of_one_process(
    layout: str, case: str, seen: Seen, one: dict[str, Seen]
) -> None:
    """Clipped by the norm over all stages, the balance loss of every layer in it."""
    theirs = one[case]["moments"]
    found = error(stacked([rank["moments"] for rank in seen[layout, case]]), theirs)
    print(f"gradient {found:.1e}")
    assert found <= 1e-5
    assert one[case]["numbers"][0]["grad_norm"] > CLIP


@pytest.mark.parametrize(("layout", "case"), TRIED)
def test_the_weights_after_some_steps_are_those_of_one_process(
    layout: str, case: str, seen: Seen, one: dict[str, Seen]
) -> None:
    theirs, found = one[case]["weights"], joined([rank["weights"] for rank in seen[layout, case]])
    assert found.keys() == theirs.keys()
    worst = max(theirs, key=lambda name: relative(found[name], theirs[name]))
    print(f"weights {relative(found[worst], theirs[worst]):.1e}")
    assert relative(found[worst], theirs[worst]) <= 1e-5, worst
    assert relative(one[case]["start"][worst], theirs[worst]) > 1e-3, "five steps move every matrix"
    for name, tensor in theirs.items():
        if name.endswith("e_score_correction_bias"):
            assert torch.equal(found[name], tensor), name
            assert not torch.equal(one[case]["start"][name], tensor), name


@pytest.mark.parametrize(("layout", "case"), TRIED)
def test_all_ranks_have_the_numbers_of_one_process(layout: str, case: str, seen: Seen, one: dict[str, Seen]) -> None:
    [first, *others] = [rank["numbers"] for rank in seen[layout, case]]
    assert all(other == first for other in others)
    for step, (found, theirs) in enumerate(zip(first, one[case]["numbers"], strict=True)):
        assert found.keys() == theirs.keys() > {"loss", "entropy", "grad_norm", "balance_loss", "max_violation"}
        assert found == pytest.approx(theirs, rel=1e-5, abs=1e-6), step
        assert {name: found[name] for name in found if "violation" in name} == {
            name: theirs[name] for name in theirs if "violation" in name
        }, "whole numbers of tokens have no rounding"


@pytest.mark.parametrize(("layout", "case"), TRIED)
def test_log_probs_and_traces_are_those_of_one_process(
    layout: str, case: str, seen: Seen, one: dict[str, Seen]
) -> None:
    for rank in seen[layout, case]:
        for ours, theirs in zip(rank["logprobs"], one[case]["logprobs"], strict=True):
            assert ours == pytest.approx(theirs, abs=1e-5)
        assert list(rank["routes"]) == list(one[case]["routes"])
        for name, experts_TK in one[case]["routes"].items():
            assert torch.equal(rank["routes"][name], experts_TK), name
        assert list(rank["trace"]) == list(one[case]["trace"])
        for name, tensor in one[case]["trace"].items():
            torch.testing.assert_close(rank["trace"][name], tensor, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize(("layout", "case"), TRIED)
def test_a_pipeline_goes_on_bit_for_bit(layout: str, case: str, seen: Seen) -> None:
    for rank in seen[layout, case]:
        assert rank["resumed numbers"] == rank["numbers"][SAVED_AFTER:]
        assert rank["resumed"].keys() == rank["weights"].keys()
        for name, tensor in rank["weights"].items():
            assert torch.equal(rank["resumed"][name], tensor), name


@pytest.mark.parametrize(("layout", "case"), TRIED)
def test_a_run_goes_on_with_a_pipeline_and_without(
    layout: str, case: str, seen: Seen, one: dict[str, Seen], folder: Path
) -> None:
    """What one process has saved the stages continue, and the other way round, with the same losses."""
    theirs = one[case]["numbers"][SAVED_AFTER:]
    for ours in seen[layout, case][0]["taken over numbers"], went_on(folder, f"{layout}, {case}", CASES[case]):
        for found, expected in zip(ours, theirs, strict=True):
            assert found == pytest.approx(expected, rel=1e-5, abs=1e-6)


def went_on(folder: Path, saved: str, case: Case) -> list[dict[str, float]]:
    with one_thread():
        trainer = alone(folder, case)
        trainer.load(folder / saved)
        return updated(trainer, case, case.batches()[SAVED_AFTER:])


def test_recomputing_changes_no_bit(seen: Seen) -> None:
    for kept, again in zip(seen["two stages", "grpo"], seen["two stages, recomputed", "grpo"], strict=True):
        assert again["numbers"] == kept["numbers"]
        assert all(torch.equal(again["weights"][name], tensor) for name, tensor in kept["weights"].items())


@pytest.mark.parametrize("dtype", LOW)
def test_the_gradient_in_low_precision_is_the_exact_sum_of_the_packs(dtype: str, seen: Seen, folder: Path) -> None:
    """A sum in bf16 would be wrong by 1e-3; what the reference and its KL penalty add is in it."""
    case = LOW[dtype]
    model = DeepseekV3.from_checkpoint(folder / case.architecture, torch.bfloat16)
    if dtype != "bf16":
        compute_in_float8(model, dtype)
    stepper = Summing(model)
    trainer = ModelTrainer(model, stepper, reference=frozen_copy(model), balance_coef=COEF)
    trainer.update(case.batches()[0], case.loss, 0.0)
    gradient = stacked([rank["moments"] for rank in seen[dtype]])
    found = error({name: 10 * moment for name, moment in gradient.items()}, stepper.sums)
    print(f"{dtype} {found:.1e}")
    assert found <= 2e-6


def test_a_gradient_that_is_no_number_on_one_stage_is_dropped_on_all(seen: Seen) -> None:
    for rank in seen["spoiled"]:
        assert rank["numbers"]["skipped"] == 1 and rank["numbers"]["grad_norm"] == float("inf")
        assert rank["unmoved"]
        assert rank["numbers after"] == rank["numbers without"], "nothing of it is left in the step that follows"
