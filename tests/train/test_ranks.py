"""Neither packs nor ranks change what is learned, in any layout: real DeepSpeed in processes, against autograd."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from itertools import combinations, product
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

from rlkit.algo import NO_MTP, GrpoLoss, Loss, LossTerms, MtpTerm, SftLoss, shard
from rlkit.algo.packing import _join
from rlkit.config import LoraConfig, TrainerConfig
from rlkit.model import DeepseekV3
from rlkit.model.base import CausalLM
from rlkit.model.lora import add_lora
from rlkit.model.precision import compute_in_float8
from rlkit.quant.fp8 import FLOAT8
from rlkit.train.policy import Policy, frozen_copy
from rlkit.train.trainer import ModelTrainer
from rlkit.types import Batch, Pack
from tests.model.float8 import TILED
from tests.model.tiny import seeded
from tests.train.ranks import run_ranks
from tests.train.test_float8 import sentences
from tests.train.test_trainer import ARCHITECTURE, CFG, make_model, rollouts

pytestmark = pytest.mark.slow
LORA = LoraConfig(rank=2, alpha=4)
SPEED, COEF = 0.01, 0.1


class Layout(NamedTuple):
    """One way to take the same step."""

    dtype: str
    zero_stage: int
    kind: str
    """"grpo", "few" (fewer samples than ranks, so that one has nothing to do but must not be waited for), "lora",
    "mtp" (SFT with multi-token prediction), "mtp few", "sft" (other samples, in FP8's widths)."""
    max_tokens: int
    """80: three packs, of which two ranks have two and one; 1000: one."""
    expert_parallel: int = 1
    offload: str = "none"
    recompute: bool = False
    optimizer: str = "adamw"
    fp8_dispatch: bool = False

    def cfg(self, num_ranks: int) -> TrainerConfig:
        """With AdamW no clipping and no decay, so that its first moment is a tenth of the gradient."""
        lora = LORA if self.kind == "lora" else None
        clip, decay = (1e9, 0.0) if self.optimizer == "adamw" else (0.5, 0.1)
        return replace(
            CFG, kind="deepspeed", num_ranks=num_ranks, zero_stage=self.zero_stage, dtype=self.dtype, lora=lora,
            expert_parallel=self.expert_parallel, offload=self.offload, recompute=self.recompute,
            optimizer=self.optimizer, grad_clip=clip, weight_decay=decay,
            bias_update_speed=0.0 if lora else SPEED, balance_coef=COEF, fp8_dispatch=self.fp8_dispatch,
        )  # fmt: skip

    def batch(self) -> Batch:
        """The same samples for every layout of a kind; few: one of them."""
        if self.kind == "sft":
            return sentences(0)
        [batch] = rollouts(max_tokens=self.max_tokens)
        if not self.kind.endswith("few"):
            return batch
        first = batch.packs[0]
        size = first.lengths[0]
        names = ("tokens_T", "weights_T", "advantages_T", "old_logprobs_T")
        only = replace(first, lengths=(size,), **{name: getattr(first, name)[:size] for name in names})
        return replace(batch, packs=(only,), num_samples=1)

    def loss(self) -> tuple[GrpoLoss | SftLoss, MtpTerm]:
        """What is minimised."""
        if self.kind.startswith("mtp"):
            return SftLoss(), MtpTerm(weight=0.3, detached=False)
        return SftLoss() if self.kind == "sft" else GrpoLoss(kl_coef=0.05), NO_MTP

    def architecture(self) -> str:
        """Which of the checkpoints the model comes from."""
        if self.kind == "sft":
            return "tiled"
        return "mtp" if self.kind.startswith("mtp") else "plain"

    def __str__(self) -> str:
        more = {"experts": self.expert_parallel > 1, f"offload {self.offload}": self.offload != "none"}
        more |= {"recomputed": self.recompute, "rows in FP8": self.fp8_dispatch}
        words = [word for word, said in more.items() if said]
        return " ".join(map(str, (*self[:4], *words)))

    def runs_on(self, num_ranks: int) -> bool:
        """Experts cannot be shared out among more ranks than there are."""
        return num_ranks % self.expert_parallel == 0


LAYOUTS = [
    Layout("fp32", 1, "grpo", 1000),
    Layout("fp32", 1, "grpo", 80),
    Layout("bf16", 1, "few", 80, offload="optimizer", recompute=True),
    Layout("fp32", 1, "lora", 80, offload="optimizer"),
    Layout("bf16", 1, "mtp", 80),
    Layout("fp32", 1, "mtp few", 80, recompute=True),
    Layout("bf16", 1, "grpo", 80, 2, offload="optimizer"),
    Layout("fp32", 1, "few", 80, 2, recompute=True),
    Layout("bf16", 1, "lora", 80, 2),
    Layout("fp32", 1, "mtp", 80, 2, offload="optimizer"),
    Layout("bf16", 1, "mtp few", 80, 2, recompute=True),
    Layout("bf16", 2, "grpo", 1000),
    Layout("bf16", 2, "grpo", 80, recompute=True),
    Layout("fp32", 2, "few", 80),
    Layout("bf16", 2, "lora", 80, offload="optimizer", recompute=True),
    Layout("fp32", 2, "mtp", 80, offload="optimizer", recompute=True),
    Layout("bf16", 2, "mtp few", 80),
    Layout("fp32", 2, "grpo", 80, 2, offload="optimizer"),
    Layout("bf16", 2, "few", 80, 2),
    Layout("fp32", 2, "lora", 80, 2, recompute=True),
    Layout("bf16", 2, "mtp", 80, 2, offload="optimizer", recompute=True),
    Layout("fp32", 2, "mtp few", 80, 2, offload="optimizer"),
    Layout("fp32", 3, "grpo", 80),
    Layout("bf16", 3, "few", 80, offload="optimizer"),
    Layout("bf16", 3, "mtp", 80, offload="all", recompute=True),
    Layout("fp32", 3, "mtp few", 80, offload="all", recompute=True),
    Layout("bf16", 3, "grpo", 80, 2),
    Layout("fp32", 3, "grpo", 80, 2, offload="all"),
    Layout("fp32", 3, "few", 80, 2, offload="all", recompute=True),
    Layout("fp32", 3, "mtp", 80, 2, offload="optimizer"),
    Layout("bf16", 3, "mtp few", 80, 2, offload="all", recompute=True),
]
"""Not the product of all switches: see `test_switches_meet`. LoRA goes without ZeRO-3."""


def is_spoiled(layout: Layout) -> bool:
    """Whether steps are also tried with a gradient that is no number."""
    return layout.kind in ("grpo", "lora", "mtp") and layout.max_tokens == 80


def no_number(loss: Loss) -> Loss:
    """A loss that is no number, with the gradient of another one and what it measures."""

    def spoiled(logprobs_T: Tensor, pack: Pack) -> LossTerms:
        terms = loss(logprobs_T, pack)
        return replace(terms, loss=terms.loss + float("nan"))

    return spoiled


Seen = dict[Layout, dict[str, Any]]
"""What rank 0 saw of one optimiser step in each layout."""


def save_models(folder: Path) -> None:
    make_model().save_checkpoint(folder / "plain", dtype="fp32")
    seeded(replace(ARCHITECTURE, num_hidden_layers=2, num_nextn_predict_layers=1)).save_checkpoint(
        folder / "mtp", dtype="fp32"
    )
    seeded(TILED).save_checkpoint(folder / "tiled", dtype="fp32")


def spoil(model: CausalLM, layout: Layout, value: float) -> torch.utils.hooks.RemovableHandle:
    """Put one such number into the gradient of one matrix; with MTP into that of a module, which is a group apart."""
    inside = {"grpo": "lm_head.weight", "lora": "lora_B", "mtp": "eh_proj.weight"}[layout.kind]
    parameter = next(parameter for name, parameter in model.named_parameters() if inside in name)

    def change(grad: Tensor) -> Tensor:
        return grad.index_put((torch.tensor(0), torch.tensor(0)), torch.tensor(value, dtype=grad.dtype))

    return parameter.register_hook(change)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("ranks")
    save_models(folder)
    return folder


@pytest.fixture(scope="module")
def seen(models: Path) -> dict[int, Seen]:
    """By number of ranks, each of which takes the steps of all layouts."""
    (one, two), printed = run_ranks("one_rank", models, ("steps", 1), ("steps", 2))
    assert "GB" not in printed, "DeepSpeed's reports of the machine's memory belong in nobody's run"
    return {1: one, 2: two}


def on(*num_ranks: int, layouts: Sequence[Layout] = LAYOUTS) -> Any:
    """All layouts on so many ranks, but for those that need more."""
    pairs = [(layout, n) for layout in layouts for n in num_ranks if layout.runs_on(n)]
    return pytest.mark.parametrize(("layout", "num_ranks"), pairs, ids=str)


class Summing:
    """A stepper that only adds up: the gradient of each pack as autograd gives it, the sum in fp32."""

    def __init__(self, model: CausalLM) -> None:
        self.module, self.sums = Policy(model), dict[str, Tensor]()

    def backward(self, loss: Tensor) -> None:
        loss.backward()
        for name, parameter in self.module.model.named_parameters():
            if parameter.grad is not None:
                self.sums[name] = self.sums.get(name, torch.zeros(())) + parameter.grad.float()
                parameter.grad = None

    def step(self, lr: float, mtp_lr: float) -> float:
        return 0.0

    def forget(self) -> None: ...
    def tensors(self) -> dict[str, Tensor]: ...
    def state(self, parameter: Any) -> dict[str, Tensor]: ...
    def restore(self, parameter: Any, state: Any) -> None: ...


@cache
def expected(models: Path, layout: Layout, num_ranks: int) -> dict[str, Tensor]:
    """The gradient of the batch when it is dealt to so many ranks, one pack after the other in this process.

    Where ranks share out the experts, an expert multiplies the tokens of all ranks' packs at once, so that its gradient
    is rounded to bf16 once for them together.
    """
    shares = shard(layout.batch(), num_ranks)
    sums = summed(models, layout, shares)
    if layout.expert_parallel > 1 and not layout.kind.endswith("few"):
        met = [_join(packs) for packs in zip(*(share.packs for share in shares), strict=True)]
        together = summed(models, layout, [replace(shares[0], packs=tuple(met))])
        sums |= {name: together[name] for name in sums if ".experts." in name}
    return sums


def summed(models: Path, layout: Layout, batches: list[Batch]) -> dict[str, Tensor]:
    """The fp32 sum of the gradients of all packs."""
    dtype = torch.float32 if layout.dtype == "fp32" else torch.bfloat16
    model = DeepseekV3.from_checkpoint(models / layout.architecture(), dtype)
    if layout.dtype in FLOAT8:
        compute_in_float8(model, layout.dtype)
    if layout.kind == "lora":
        add_lora(model, rank=LORA.rank, alpha=LORA.alpha, targets=LORA.targets, seed=0)
    stepper = Summing(model)
    trainer = ModelTrainer(model, stepper, reference=frozen_copy(model), balance_coef=COEF)
    loss, mtp = layout.loss()
    for batch in batches:
        trainer.update(batch, loss, 0.0, mtp)
    return stepper.sums


def error(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> float:
    """The largest relative difference over the parameters; one whose gradient is almost nothing has little to say."""
    assert ours.keys() == theirs.keys()
    floor = torch.cat([tensor.flatten() for tensor in theirs.values()]).norm() / 100
    return max(float((ours[name] - theirs[name]).norm() / theirs[name].norm().clamp(min=floor)) for name in ours)


def assert_adds_up(layout: Layout, num_ranks: int, found: dict[str, Any], models: Path) -> None:
    gradient = {name: 10 * moment for name, moment in found["moments"].items()}
    alike = Layout(layout.dtype, 1, layout.kind, layout.max_tokens, layout.expert_parallel)
    # In bf16 torch multiplies a row that is alone with an expert otherwise than one among others; the few rows of MTP
    # modules are alone in this process, and not where the ranks' rows meet.
    alone = layout.dtype == "bf16" and layout.expert_parallel > 1 and layout.kind == "mtp"
    assert error(gradient, expected(models, alike, num_ranks)) <= (1e-2 if alone else 2e-6)
    whole = error(gradient, expected(models, alike._replace(max_tokens=100_000, expert_parallel=1), 1))
    print(f"against one pack {whole:.1e}")
    # FP8 rounds tokens in groups of 128, which are others in another pack.
    assert whole <= {"fp32": 1e-5, "bf16": 3e-2, "fp8": 1e-1, "fp8_weights": 3e-2}[layout.dtype]
    assert len(shard(layout.batch(), num_ranks)[0].packs) > 1 or layout.max_tokens > 80 or "few" in layout.kind


def assert_skipped(num_ranks: int, found: dict[str, Any]) -> None:
    """Neither weights nor biases nor moments have moved, and nothing of it is left in the step that follows."""
    assert found["skipped"] == [[1, 1, 0]] * num_ranks
    assert found["unmoved"] == [True] * num_ranks
    for name, moment in found["moments"].items():
        assert torch.equal(moment, found["moments after"][name]), name


SWITCHES = ("dtype", "zero_stage", "kind", "expert_parallel", "offload", "recompute")
MEET = [*combinations(SWITCHES, 2), *combinations(SWITCHES[:4], 3), ("dtype", "zero_stage", "offload")]


@pytest.mark.parametrize("switches", MEET, ids=" ".join)
def test_switches_meet(switches: tuple[str, ...]) -> None:
    """Every value of a switch with every one of another, and of some three, in a layout that is tried here."""
    values = {name: {getattr(layout, name) for layout in LAYOUTS} for name in SWITCHES}
    tried = {tuple(getattr(layout, name) for name in switches) for layout in LAYOUTS}
    for chosen in product(*(values[name] for name in switches)):
        lora, zero_3, all_away = ("lora" in chosen, 3 in chosen, "all" in chosen)
        refused = (lora and (zero_3 or all_away)) or (all_away and "zero_stage" in switches and not zero_3)
        assert refused or chosen in tried


@on(1, 2)
def test_packs_and_ranks_add_up_to_one_gradient(
    layout: Layout, num_ranks: int, seen: dict[int, Seen], models: Path
) -> None:
    """The optimiser gets the exact fp32 sum of the packs' gradients, in bf16 too; and that is the one of a single pack.

    A sum in bf16, in memory or on the way between ranks, would be wrong by 1e-3.
    """
    assert_adds_up(layout, num_ranks, seen[num_ranks][layout], models)


@on(1, 2, layouts=[layout for layout in LAYOUTS if is_spoiled(layout)])
def test_a_gradient_or_loss_that_is_no_number_on_one_rank_skips_the_step_on_all(
    layout: Layout, num_ranks: int, seen: dict[int, Seen]
) -> None:
    assert_skipped(num_ranks, seen[num_ranks][layout])


@pytest.mark.parametrize("layout", [each for each in LAYOUTS if each.dtype == "fp32"], ids=str)
def test_two_ranks_have_the_numbers_the_load_and_the_biases_of_one(layout: Layout, seen: dict[int, Seen]) -> None:
    size = (layout.dtype, layout.kind, layout.max_tokens)
    one = next(found for tried, found in seen[1].items() if (tried.dtype, tried.kind, tried.max_tokens) == size)
    two = seen[2][layout]
    policy = {"kl", "clip_fraction", "logprob_gap"}
    mtp = layout.kind.startswith("mtp")
    names = {"loss", "entropy", "grad_norm", "max_violation", "balance_loss"} | ({"mtp_loss"} if mtp else policy)
    assert two["numbers"].keys() == one["numbers"].keys() >= names
    assert two["numbers"] == pytest.approx(one["numbers"], rel=1e-5, abs=1e-7)
    [alone], [first, second] = one["biases"], two["biases"]
    assert torch.equal(first, alone) and torch.equal(second, alone), "bit for bit, on both ranks"
    if layout.kind != "lora":
        assert ((alone - one["before"]).abs() > 0.009).any(dim=1).all(), "the biases of every layer moved"
