"""The router's bias and the balance loss in the trainer: what counts, what does not, where the bias must survive."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, distributed, nn

from rlkit.algo import GrpoLoss, SftLoss, pack_demonstrations
from rlkit.engine.local import TorchEngine
from rlkit.model import DeepseekV3
from rlkit.model.moe import Router
from rlkit.train.policy import Policy, frozen_copy
from rlkit.train.steppers.deepspeed import DeepSpeedStepper, join_ranks
from rlkit.train.steppers.torch import TorchStepper
from rlkit.train.trainer import ModelTrainer
from rlkit.types import Batch, Demonstration, Numbers
from tests.train.test_trainer import ARCHITECTURE, CFG, demonstrations, difference, make_model, rollouts

SPEED, COEF = 0.01, 0.3
SLOW = pytest.mark.slow
KINDS = ("torch", pytest.param("deepspeed", marks=SLOW), pytest.param("deepspeed bf16", marks=SLOW))
BIAS = "mlp.gate.e_score_correction_bias"


def make_trainer(kind: str = "torch", *, model: DeepseekV3 | None = None, **balance: float) -> ModelTrainer:
    balance = balance or {"bias_update_speed": SPEED}
    model = make_model() if model is None else model
    if kind == "torch":
        return ModelTrainer(model, TorchStepper(model, CFG), reference=frozen_copy(model), **balance)
    join_ranks(distributed.HashStore(), 0, 1)
    dtype = "bf16" if kind.endswith("bf16") else "fp32"
    model = model.to(torch.bfloat16) if dtype == "bf16" else model
    cfg = replace(CFG, kind="deepspeed", dtype=dtype)
    return ModelTrainer(model, DeepSpeedStepper(model, cfg), reference=frozen_copy(model), **balance)


def load_of(numbers: Numbers) -> dict[str, float]:
    """What a step says of the experts."""
    kinds = ("max_violation", "mean_violation", "load_entropy", "balance_loss")
    return {name: value for name, value in numbers.items() if name.startswith(kinds)}


def biases(named: Iterator[tuple[str, Tensor]] | DeepseekV3) -> dict[str, Tensor]:
    pairs = named.checkpoint_weights() if isinstance(named, DeepseekV3) else named
    found = {name: tensor.clone() for name, tensor in pairs if name.endswith(BIAS)}
    assert len(found) == 2 and all(tensor.dtype == torch.float32 for tensor in found.values())
    return found


def same(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> bool:
    return ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)


@contextmanager
def choices(model: nn.Module) -> Iterator[dict[str, list[Tensor]]]:
    """The experts of every call of every router, counted without the code under test."""
    seen: dict[str, list[Tensor]] = {}
    hooks = [
        module.register_forward_hook(lambda _m, _a, out, name=name: seen.setdefault(name, []).append(out.experts_TK))
        for name, module in model.named_modules()
        if isinstance(module, Router)
    ]
    yield seen
    for hook in hooks:
        hook.remove()


@pytest.mark.parametrize("kind", KINDS)
def test_one_step_moves_every_bias_by_the_speed_against_its_load(kind: str) -> None:
    """Every expert's tokens are counted one by one; the bias is that of the paper, bit for bit, also in bf16."""
    trainer = make_trainer(kind)
    assert same(biases(trainer.model), biases(make_model())), "wrapping changes no bit"
    [batch] = rollouts(max_tokens=40)
    assert len(batch.packs) > 2
    before = biases(trainer.model)
    with choices(trainer.model) as seen:
        stats = trainer.update(batch, GrpoLoss(kl_coef=0.1), 1e-3)
    worst = []
    for name, calls in seen.items():
        chosen = [expert for experts_TK in calls for expert in experts_TK.flatten().tolist()]
        assert len(chosen) == 2 * batch.num_tokens, "prompt tokens count like all others"
        loads = [chosen.count(expert) for expert in range(8)]
        signs = [(sum(loads) / 8 > load) - (sum(loads) / 8 < load) for load in loads]
        steps = torch.tensor([SPEED * sign for sign in signs], dtype=torch.float32)
        assert set(signs) >= {-1, 1}
        key = f"{name}.e_score_correction_bias"
        assert torch.equal(biases(trainer.model)[key], before[key] + steps)
        worst.append(max(loads) / (sum(loads) / 8))
    assert stats["max_violation"] == pytest.approx(max(worst))
    assert [stats[f"max_violation/{layer}"] for layer in (1, 2)] == pytest.approx(worst)
    assert "balance_loss" not in stats


def test_the_bias_is_frozen_unless_asked_for() -> None:
    trainer = make_trainer(bias_update_speed=0.0)
    stats = trainer.update(demonstrations(), SftLoss(), 1e-2)
    assert same(biases(trainer.model), biases(make_model()))
    assert stats["max_violation"] > 1, "but the load is measured"


def busy(trainer: ModelTrainer, batch: Batch) -> None:
    """Everything but training that runs the model: the gate, the reference, a trace, an evaluation of a pack."""
    trainer.logprobs([(3, 4, 5), (6, 7)])
    trainer.trace((3, 4, 5, 6))
    with torch.no_grad():
        trainer.stepper.module(batch.packs[0], 1.0)


def test_only_training_counts() -> None:
    quiet, disturbed = make_trainer(), make_trainer()
    for step in range(3):
        [batch] = rollouts(step, max_tokens=40)
        busy(disturbed, batch)
        one, two = (t.update(batch, GrpoLoss(kl_coef=0.1), 1e-3) for t in (quiet, disturbed))
        assert load_of(one) == load_of(two) != {}
        busy(disturbed, batch)
    assert same(biases(quiet.model), biases(disturbed.model))


def test_what_backward_computes_again_does_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    plain, again = make_trainer(), make_trainer()
    for layer in again.model.model.blocks():
        forward = layer.forward
        monkeypatch.setattr(
            layer,
            "forward",
            lambda *args, forward=forward: torch.utils.checkpoint.checkpoint(forward, *args, use_reentrant=False),
        )
    with choices(again.model) as seen:
        ours, theirs = (t.update(demonstrations(), SftLoss(), 1e-3) for t in (again, plain))
    assert all(len(calls) == 2 * len(demonstrations().packs) for calls in seen.values()), "each pass ran twice"
    assert load_of(ours) == load_of(theirs) != {}
    assert same(biases(again.model), biases(plain.model))


@pytest.mark.parametrize("max_tokens", [1, 30])
def test_packs_change_neither_load_nor_bias(max_tokens: int) -> None:
    whole, split = make_trainer(), make_trainer()
    [one], [many] = rollouts(max_tokens=100_000), rollouts(max_tokens=max_tokens)
    assert len(one.packs) == 1 < len(many.packs)
    first, second = whole.update(one, GrpoLoss(), 1e-3), split.update(many, GrpoLoss(), 1e-3)
    assert load_of(first) == load_of(second) != {}
    assert same(biases(whole.model), biases(split.model))


def test_an_empty_pack_is_not_counted() -> None:
    """What a rank without samples runs, so that the others need not wait, is a token that nobody sampled."""
    plain, padded = (make_trainer(bias_update_speed=SPEED, balance_coef=COEF) for _ in range(2))
    batch = demonstrations()
    first = batch.packs[0]
    empty = replace(first, tokens_T=first.tokens_T[:1], lengths=(1,), weights_T=torch.zeros(1))
    one = plain.update(batch, SftLoss(), 1e-3)
    two = padded.update(replace(batch, packs=(*batch.packs, empty, empty)), SftLoss(), 1e-3)
    assert load_of(one) == load_of(two) != {}
    assert same(biases(plain.model), biases(padded.model))


def gradient(trainer: ModelTrainer, batch: Batch) -> Tensor:
    """The gradient that the optimiser is given, before clipping."""
    found: list[Tensor] = []
    stepper: Any = trainer.stepper
    step = stepper.step

    def spy(lr: float, mtp_lr: float) -> float:
        found.append(torch.cat([p.grad.flatten().clone() for p in trainer.model.parameters() if p.grad is not None]))
        return step(lr, mtp_lr)

    stepper.step = spy
    trainer.update(batch, SftLoss(), 1e-3)
    return found[0]


def written_out(scores_TE: Tensor, lengths: Sequence[int]) -> Tensor:
    """Equations 17 to 20 of arXiv:2412.19437 in float64, one sequence, expert and token after the other."""
    total = torch.zeros((), dtype=torch.float64)
    for rows_TE in scores_TE.double().split(list(lengths)):
        chosen = [row.topk(2).indices.tolist() for row in rows_TE.detach()]
        for expert in range(8):
            f = 8 / (2 * len(rows_TE)) * sum(expert in experts for experts in chosen)
            total = total + f * sum(row[expert] / row.sum() for row in rows_TE) / len(rows_TE)
    return total


@pytest.mark.parametrize("max_tokens", [1, 48, 100_000])
def test_balance_loss_and_its_gradient_are_those_of_the_formula(max_tokens: int) -> None:
    batch = demonstrations()
    packed = [
        (pack.tokens_T.split(list(pack.lengths)), pack.weights_T.split(list(pack.lengths))) for pack in batch.packs
    ]
    pairs = [
        Demonstration.of(t[w == 0].tolist(), t[w != 0].tolist()) for rows in packed for t, w in zip(*rows, strict=True)
    ]
    ours = make_trainer(bias_update_speed=0.0, balance_coef=COEF)
    found = gradient(ours, pack_demonstrations(pairs, max_tokens=max_tokens))
    stats = make_trainer(bias_update_speed=0.0, balance_coef=COEF).update(batch, SftLoss(), 1e-3)

    policy, total = Policy(make_model()), torch.zeros((), dtype=torch.float64)
    for pack in batch.packs:
        with routed(policy) as scores:
            loss = SftLoss()(policy(pack, 1.0).logprobs_T, pack).loss
        balance = COEF / batch.num_samples * torch.stack([written_out(s, pack.lengths) for s in scores]).sum()
        (loss + balance).backward()
        total += balance.detach()
    expected = torch.cat([p.grad.flatten() for p in policy.parameters() if p.grad is not None])
    off = gradient(make_trainer(bias_update_speed=0.0, balance_coef=0.0), batch)
    print(f"gradient differs by {difference(found, expected):.1e}; without the loss by {difference(off, expected):.1e}")
    assert difference(found, expected) <= 1e-5 < 1e-2 < difference(off, expected)
    assert stats["balance_loss"] == pytest.approx(float(total), rel=1e-6)


@contextmanager
def routed(model: nn.Module) -> Iterator[list[Tensor]]:
    scores: list[Tensor] = []
    hooks = [
        module.register_forward_hook(lambda _m, _a, out: scores.append(out.scores_TE))
        for module in model.modules()
        if isinstance(module, Router)
    ]
    yield scores
    for hook in hooks:
        hook.remove()


def skewed(step: int) -> Batch:
    """16 texts of 16 tokens, of which half are one of 4 tokens: the experts that these like get most of the load."""
    random = torch.Generator().manual_seed(step)
    common = torch.rand(16, 16, generator=random) < 0.5
    few, any_of = (torch.randint(2, high, (16, 16), generator=random) for high in (6, 64))
    return pack_demonstrations(
        [Demonstration.of(row[:8], row[8:]) for row in torch.where(common, few, any_of).tolist()], max_tokens=1024
    )


@pytest.mark.slow
def test_a_skewed_load_becomes_even_within_200_steps_and_not_with_the_bias_frozen() -> None:
    """Two layers, one of them with experts, trained on the same texts."""

    def run(speed: float) -> list[float]:
        torch.manual_seed(0)
        model = DeepseekV3(replace(ARCHITECTURE, num_hidden_layers=2))
        trainer = make_trainer(model=model, bias_update_speed=speed, balance_coef=0.0)
        return [trainer.update(skewed(0), SftLoss(), 1e-4)["max_violation"] for _ in range(200)]

    frozen, updated = run(0.0), run(0.002)
    print(f"max violation: {updated[0]:.3f} -> {updated[-1]:.3f}; frozen {frozen[0]:.3f} -> {frozen[-1]:.3f}")
    assert frozen[0] == updated[0] > 1.5
    assert min(frozen) > 1.2 > max(updated[-10:])


def moved(kind: str = "torch") -> ModelTrainer:
    """A trainer whose biases are no round numbers in bf16."""
    trainer = make_trainer(kind, bias_update_speed=0.001)
    for step in range(3):
        trainer.update(demonstrations(step), SftLoss(), 1e-3)
    found = biases(trainer.model)
    assert any(not torch.equal(tensor, tensor.bfloat16().float()) for tensor in found.values())
    assert not same(found, biases(make_model()))
    return trainer


@pytest.mark.parametrize("kind", ["torch", pytest.param("deepspeed bf16", marks=SLOW)])
def test_the_bias_survives_the_sync_to_an_engine(kind: str) -> None:
    trainer = moved(kind)
    engine = TorchEngine(make_model(seed=1), 1, lambda _tokens: "")
    engine.load(trainer.weights(), 1)
    assert same(biases(engine.model), biases(trainer.model))


@pytest.mark.parametrize("kind", KINDS)
def test_the_bias_survives_saving_loading_and_resuming(kind: str, tmp_path: Path) -> None:
    whole = moved(kind)
    whole.save(tmp_path)
    at_save = biases(whole.model)
    resumed = make_trainer(kind, model=make_model(seed=1), bias_update_speed=0.001)
    resumed.load(tmp_path)
    assert same(biases(resumed.model), at_save)
    assert resumed.reference is not None
    assert same(biases(resumed.reference.model), biases(make_model()))
    for step in range(3, 6):
        for each in (whole, resumed):
            each.update(demonstrations(step), SftLoss(), 1e-3)
    assert same(biases(resumed.model), biases(whole.model))
    assert not same(biases(resumed.model), at_save)


@pytest.mark.parametrize("dtype", ["fp32", "bf16", "fp8"])
def test_the_bias_survives_the_export(dtype: str, tmp_path: Path) -> None:
    trainer = moved()
    exported = DeepseekV3(ARCHITECTURE)
    exported.load_weights(trainer.weights())
    exported.save_checkpoint(tmp_path, dtype=dtype)
    read = DeepseekV3.from_checkpoint(tmp_path, torch.float32 if dtype == "fp32" else torch.bfloat16)
    assert same(biases(read), biases(trainer.model))


def test_the_reference_keeps_its_own_bias() -> None:
    trainer = moved()
    assert trainer.reference is not None
    assert same(biases(trainer.reference.model), biases(make_model()))
    trainer.refresh_reference()
    assert same(biases(trainer.reference.model), biases(trainer.model))
    trainer.update(demonstrations(), SftLoss(), 1e-3)
    assert not same(biases(trainer.reference.model), biases(trainer.model))


def test_models_without_a_bias_or_without_experts_train_as_before() -> None:
    torch.manual_seed(0)
    dense = make_trainer(model=DeepseekV3(replace(ARCHITECTURE, first_k_dense_replace=3)), balance_coef=COEF)
    assert load_of(dense.update(demonstrations(), SftLoss(), 1e-3)) == {}
    softmax = replace(ARCHITECTURE, scoring_func="softmax", norm_topk_prob=False)
    trainer = make_trainer(model=DeepseekV3(softmax), bias_update_speed=SPEED, balance_coef=COEF)
    stats = trainer.update(demonstrations(), SftLoss(), 1e-3)
    assert stats["balance_loss"] > 2 * COEF * 0.9, "about 1 for each of the two layers"
    assert not [name for name, _ in trainer.weights() if name.endswith(BIAS)]
