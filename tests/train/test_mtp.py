"""The loss of multi-token prediction in the trainer: a float64 reference, splits, what it may and may not change."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, distributed

from rlkit.algo import NO_MTP, GrpoLoss, Loss, MtpTerm, SftLoss
from rlkit.model import DeepseekV3
from rlkit.train.policy import Policy, frozen_copy
from rlkit.train.steppers.deepspeed import DeepSpeedStepper, join_ranks
from rlkit.train.steppers.torch import TorchStepper
from rlkit.train.trainer import ModelTrainer
from rlkit.types import Batch, Pack
from tests.model.mtp_reference import Reference
from tests.model.tiny import relative, seeded
from tests.train.test_trainer import ARCHITECTURE, CFG, demonstrations, difference, referred, rollouts

DEEP = replace(ARCHITECTURE, num_nextn_predict_layers=2)
SFT = MtpTerm(weight=0.3, detached=False)
RL = MtpTerm(weight=0.3, detached=True)


def gradients(model: DeepseekV3, batch: Batch, loss: Loss, mtp: MtpTerm) -> tuple[dict[str, Tensor], float, float]:
    """By name, with the sums of both losses over the packs."""
    policy, total, mtp_total = Policy(model), 0.0, 0.0
    for pack in batch.packs:
        output = policy(pack, batch.temperature, mtp)
        main = loss(output.logprobs_T, pack).loss
        term = torch.zeros(()) if output.mtp_loss is None else output.mtp_loss
        (main + mtp.weight * term).backward()
        total, mtp_total = total + float(main.detach()), mtp_total + float(term.detach())
    named = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    return named, total, mtp_total


def joined(grads: dict[str, Tensor]) -> Tensor:
    return torch.cat([grads[name].flatten() for name in sorted(grads)])


def of_modules(name: str) -> bool:
    return name.startswith(("model.layers.3.", "model.layers.4."))


def trainer(kind: str, mtp_depth: int = 2) -> ModelTrainer:
    model = seeded(replace(ARCHITECTURE, num_nextn_predict_layers=mtp_depth))
    if kind == "torch":
        return ModelTrainer(model, TorchStepper(model, CFG), reference=frozen_copy(model))
    join_ranks(distributed.HashStore(), 0, 1)
    return ModelTrainer(model, DeepSpeedStepper(model, CFG), reference=frozen_copy(model))


@pytest.mark.slow
@pytest.mark.parametrize("max_tokens", [1, 1000])
@pytest.mark.parametrize("weight", [0.3, 1.7])
def test_main_plus_lambda_mtp_equals_a_float64_reference(weight: float, max_tokens: int) -> None:
    """L + lambda / D sum_k L^k, token by token, sample by sample, on transformers' layers; and its whole gradient."""
    model = seeded(DEEP)
    [batch] = rollouts(max_tokens=max_tokens)
    batch = replace(batch, packs=tuple(plain(pack) for pack in batch.packs))
    ours, main, mtp = gradients(model, batch, SftLoss(), MtpTerm(weight=weight, detached=False))
    reference = Reference(model)
    total = torch.zeros((), dtype=torch.float64)
    for pack in batch.packs:
        rows = (t.split(list(pack.lengths)) for t in (pack.tokens_T, pack.weights_T))
        for tokens, weights in zip(*rows, strict=True):
            total = total + reference.loss(tokens.tolist(), weights.tolist(), weight, batch.temperature)
    total.backward()
    expected = total.item()
    print(f"L + lambda / D sum L^k: {main + weight * mtp:.8f} here, {expected:.8f} in float64")
    assert main + weight * mtp == pytest.approx(expected, rel=1e-6)
    theirs = {name: p.grad for name, p in reference.main.named_parameters()}
    for name in (
        "model.embed_tokens.weight",
        "lm_head.weight",
        "model.layers.1.mlp.experts.down_proj",
        "model.norm.weight",
    ):
        assert relative(ours[name].double(), theirs[name]) <= 1e-5, name
    for depth in (1, 2):
        for name in ("enorm", "hnorm", "eh_proj", "shared_head.norm"):
            expected = reference.extra_of(depth, name).grad
            assert relative(ours[f"model.layers.{depth + 2}.{name}.weight"].double(), expected) <= 1e-5, (depth, name)
        for name, parameter in reference.blocks[depth - 1].named_parameters():
            assert relative(ours[f"model.layers.{depth + 2}.{name}"].double(), parameter.grad) <= 1e-5, (depth, name)


def plain(pack: Pack) -> Pack:
    return Pack(tokens_T=pack.tokens_T, lengths=pack.lengths, weights_T=pack.weights_T)


def test_tokens_without_enough_before_them_have_no_part_in_it() -> None:
    """The first of a two-token prompt's completion is the third token: depth 1 predicts it, depth 2 only the next."""
    model = seeded(DEEP)
    first = Pack(tokens_T=torch.tensor([5, 6, 7, 8]), lengths=(4,), weights_T=torch.tensor([0.0, 0.0, 1.0, 0.0]))
    second = replace(first, weights_T=torch.tensor([0.0, 0.0, 0.0, 1.0]))
    for pack, depths in ((first, 1), (second, 2)):
        hidden = Reference(model).hidden(pack.tokens_T.tolist())
        place = int(pack.weights_T.argmax())
        terms = [
            -(hidden[k][place - k - 1] @ model.lm_head.weight.double().t()).log_softmax(-1)[pack.tokens_T[place]]
            for k in range(1, depths + 1)
        ]
        found = Policy(model)(pack, 1.0, SFT).mtp_loss
        assert found is not None and found.item() == pytest.approx(sum(term.item() for term in terms) / 2, rel=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("mtp", [SFT, RL], ids=["sft", "rl"])
@pytest.mark.parametrize("max_tokens", [1, 20, 60])
def test_splitting_into_packs_does_not_change_the_gradient(max_tokens: int, mtp: MtpTerm) -> None:
    model, loss = seeded(DEEP), GrpoLoss(kl_coef=0.05)
    [whole], [split] = rollouts(max_tokens=100_000), rollouts(max_tokens=max_tokens)
    one, _, mtp_one = gradients(model, referred(whole), loss, mtp)
    two, _, mtp_two = gradients(model, referred(split), loss, mtp)
    assert one.keys() == two.keys() and mtp_two == pytest.approx(mtp_one, rel=1e-5)
    assert difference(joined(two), joined(one)) <= 1e-5


def test_in_rl_the_policys_own_gradient_is_bitwise_the_one_without() -> None:
    model, loss = seeded(DEEP), GrpoLoss(kl_coef=0.05)
    batch = referred(rollouts()[0])
    without, main, _ = gradients(model, batch, loss, NO_MTP)
    detached, main_too, mtp = gradients(model, batch, loss, RL)
    flowing, _, mtp_too = gradients(model, batch, loss, replace(RL, detached=False))
    assert main == main_too and mtp == mtp_too > 0
    assert not any(of_modules(name) for name in without), "with weight 0 the modules do not run"
    for name, grad in without.items():
        assert torch.equal(detached[name], grad), name
    apart = [name for name in detached if of_modules(name)]
    assert apart and all(torch.equal(detached[name], flowing[name]) for name in apart)
    assert any(not torch.equal(flowing[name], grad) for name, grad in without.items()), "in SFT it reaches the backbone"


@pytest.mark.parametrize("kind", ["torch", "deepspeed"])
def test_modules_are_left_alone_in_rl_and_trained_in_sft(kind: str) -> None:
    """With weight decay, which must not reach them either."""
    assert CFG.weight_decay > 0
    each = trainer(kind)

    def modules() -> dict[str, Tensor]:
        return {name: t.clone() for name, t in each.model.state_dict().items() if of_modules(name)}

    before = modules()
    [batch] = rollouts(old=each)
    stats = each.update(batch, GrpoLoss(kl_coef=0.05), 1e-2)
    assert "mtp_loss" not in stats
    assert all(torch.equal(tensor, before[name]) for name, tensor in modules().items())
    assert "mtp_loss" in each.update(batch, GrpoLoss(kl_coef=0.05), 1e-2, RL)
    trained = modules()
    assert not torch.equal(trained["model.layers.4.eh_proj.weight"], before["model.layers.4.eh_proj.weight"])
    assert "mtp_loss" in each.update(demonstrations(), SftLoss(), 1e-2, SFT)
    assert not torch.equal(modules()["model.layers.3.eh_proj.weight"], trained["model.layers.3.eh_proj.weight"])


@pytest.mark.slow
def test_deepspeed_equals_torch() -> None:
    ours, theirs = trainer("deepspeed"), trainer("torch")
    for mtp in (NO_MTP, SFT, RL):
        for step in range(2):
            [batch] = rollouts(step, old=theirs)
            for each in (ours, theirs):
                each.update(batch, GrpoLoss(kl_coef=0.05), 3e-3, mtp)
            one, two = (t.update(demonstrations(step), SftLoss(), 3e-3, mtp) for t in (ours, theirs))
            assert one.get("mtp_loss") == (None if mtp is NO_MTP else pytest.approx(two["mtp_loss"], rel=1e-4))
            assert one["grad_norm"] == pytest.approx(two["grad_norm"], rel=1e-4)
        for each in (ours, theirs):
            each.begin_stage()
    expected = theirs.model.state_dict()
    for name, tensor in ours.model.state_dict().items():
        if not name.endswith("e_score_correction_bias"):
            assert difference(tensor, expected[name]) <= 1e-4, name


@pytest.mark.slow
def test_saved_state_continues_bit_for_bit(tmp_path: Path) -> None:
    """DeepSpeed holds the modules in a group of their own; both come back."""

    def steps(each: ModelTrainer, numbers: range) -> None:
        for step in numbers:
            each.update(demonstrations(step), SftLoss(), 1e-2, SFT)

    whole, first, second = trainer("deepspeed"), trainer("deepspeed"), trainer("deepspeed")
    steps(whole, range(4))
    steps(first, range(2))
    first.save(tmp_path)
    second.load(tmp_path)
    steps(second, range(2, 4))
    found = second.model.state_dict()
    assert all(torch.equal(tensor, found[name]) for name, tensor in whole.model.state_dict().items())


def test_an_empty_pack_changes_nothing_and_still_has_a_path_to_the_modules() -> None:
    model, batch = seeded(DEEP), demonstrations()
    empty = Pack(tokens_T=torch.tensor([5]), lengths=(1,), weights_T=torch.zeros(1))
    one, _, _ = gradients(model, batch, SftLoss(), SFT)
    two, _, _ = gradients(model, replace(batch, packs=(*batch.packs, empty)), SftLoss(), SFT)
    assert difference(joined(two), joined(one)) <= 1e-6
    alone, main, mtp = gradients(model, replace(batch, packs=(empty,)), SftLoss(), SFT)
    assert (main, mtp) == (0.0, 0.0)
    assert {name for name in alone if of_modules(name)} == {n for n, _ in model.named_parameters() if of_modules(n)}
    assert not joined(alone).any()


def test_a_model_without_modules_takes_no_notice() -> None:
    with_weight, without = trainer("torch", mtp_depth=0), trainer("torch", mtp_depth=0)
    stats = with_weight.update(demonstrations(), SftLoss(), 1e-2, SFT)
    assert "mtp_loss" not in stats
    assert stats == without.update(demonstrations(), SftLoss(), 1e-2)


def test_a_term_that_is_no_number_skips_the_step() -> None:
    each = trainer("torch")
    with torch.no_grad():
        each.model.get_parameter("model.layers.3.eh_proj.weight").fill_(float("nan"))
    before = each.model.lm_head.weight.clone()
    numbers = each.update(demonstrations(), SftLoss(), 1e-2, SFT)
    assert numbers["skipped"] == 1 and numbers["mtp_loss"] != numbers["mtp_loss"] and numbers["loss"] > 0
    assert torch.equal(each.model.lm_head.weight, before)
