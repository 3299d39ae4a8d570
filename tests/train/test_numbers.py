"""What a step says it measured: means over the tokens of the whole batch, whatever the packs."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import distributed

from rlkit.algo import NO_MTP, GrpoLoss, MtpTerm, SftLoss
from rlkit.build import build_trainer
from rlkit.config import LoraConfig, TrainerConfig
from rlkit.model import DeepseekV3
from rlkit.train.steppers.torch import TorchStepper
from rlkit.train.trainer import ModelTrainer
from rlkit.types import Batch, Numbers
from tests.model.tiny import seeded
from tests.train.test_trainer import ARCHITECTURE, CFG, demonstrations, make_model, make_trainer, rollouts

TEMPERATURE = 0.9
DEEP = replace(ARCHITECTURE, num_nextn_predict_layers=2)


def token_by_token(trainer: ModelTrainer, batch: Batch) -> dict[str, float]:
    """The numbers of a batch from plain forward passes over one sample at a time, in Python floats."""
    assert trainer.reference is not None
    sums = {"loss": 0.0, "entropy": 0.0, "kl": 0.0, "clip_fraction": 0.0, "logprob_gap": 0.0}
    for pack in batch.packs:
        names = ("tokens_T", "weights_T", "advantages_T", "old_logprobs_T")
        for tokens, weights, advantages, olds in zip(
            *(getattr(pack, name).split(list(pack.lengths)) for name in names), strict=True
        ):
            ours, theirs = (
                torch.distributions.Categorical(logits=model(tokens.unsqueeze(0))[0].detach() / TEMPERATURE)
                for model in (trainer.model, trainer.reference.model)
            )
            logprobs, references = (which.log_prob(tokens.roll(-1)).tolist() for which in (ours, theirs))
            entropies = ours.entropy().tolist()
            for t in weights.nonzero().flatten().tolist():
                w, new, old = float(weights[t]), logprobs[t - 1], float(olds[t])
                ratio = 2.718281828459045 ** (new - old)
                log_r = references[t - 1] - new
                k3 = 2.718281828459045**log_r - 1 - log_r
                gain = min(ratio * float(advantages[t]), min(max(ratio, 0.8), 1.2) * float(advantages[t]))
                sums["loss"] -= w * (gain - 0.05 * k3)
                sums["entropy"] += w * entropies[t - 1]
                sums["kl"] += w * k3
                sums["clip_fraction"] += w * (min(max(ratio, 0.8), 1.2) * advantages[t] < ratio * advantages[t])
                sums["logprob_gap"] = max(sums["logprob_gap"], abs(new - old))
    return {name: float(value) for name, value in sums.items()}


@pytest.mark.slow
@pytest.mark.parametrize("aggregate", ["token", "sequence"])
@pytest.mark.parametrize("max_tokens", [1, 40, 100_000])
def test_the_numbers_of_a_step_are_those_of_its_tokens(max_tokens: int, aggregate: str) -> None:
    """With weights that differ from token to token, and a reference that the policy has left."""
    trainer = make_trainer("torch")
    trainer.update(demonstrations(), SftLoss(), 1e-2)
    [batch] = rollouts(max_tokens=max_tokens)
    if aggregate == "sequence":
        uneven = tuple(replace(p, weights_T=p.weights_T * (1 + p.tokens_T % 3)) for p in batch.packs)
        batch = replace(batch, packs=uneven)
    expected = token_by_token(trainer, batch)
    assert expected["kl"] > 0.01 and expected["clip_fraction"] > 0
    found = trainer.update(batch, GrpoLoss(kl_coef=0.05), 1e-3)
    for name, value in expected.items():
        assert found[name] == pytest.approx(value, rel=1e-3, abs=1e-5), name


def test_without_a_reference_no_divergence_is_reported() -> None:
    trainer = make_trainer("torch", keep_reference=False)
    found = trainer.update(rollouts()[0], GrpoLoss(kl_coef=0.0), 1e-3)
    assert "kl" not in found and {"loss", "entropy", "clip_fraction", "logprob_gap", "grad_norm"} <= found.keys()


def test_a_batch_of_demonstrations_has_no_numbers_of_rollouts() -> None:
    found = make_trainer("torch").update(demonstrations(), SftLoss(), 1e-3)
    assert not {"kl", "clip_fraction", "logprob_gap", "mtp_loss"} & found.keys()


def router_gradients(coef: float, batch: Batch, mtp: MtpTerm) -> tuple[Numbers, dict[str, torch.Tensor]]:
    model = seeded(DEEP)
    trainer = ModelTrainer(model, TorchStepper(model, CFG), reference=None, balance_coef=coef)
    found: dict[str, torch.Tensor] = {}
    for name, parameter in model.named_parameters():
        parameter.register_hook(lambda grad, name=name: found.__setitem__(name, found.get(name, 0) + grad))
    return trainer.update(batch, SftLoss(), 1e-3, mtp), found


@pytest.mark.parametrize("mtp", [MtpTerm(weight=0.3, detached=False), MtpTerm(weight=0.3, detached=True)])
def test_the_balance_loss_is_that_of_the_main_model(mtp: MtpTerm) -> None:
    """MTP modules have routers and a load of their own, but see sequences without their ends."""
    batch = demonstrations()
    with_loss, pulled = router_gradients(0.3, batch, mtp)
    without, free = router_gradients(0.0, batch, mtp)
    alone, _ = router_gradients(0.3, batch, NO_MTP)
    assert with_loss["balance_loss"] == pytest.approx(alone["balance_loss"], rel=1e-6)
    assert "balance_loss" not in without
    assert {"max_violation/3", "max_violation/4"} <= with_loss.keys() - alone.keys(), "but their load is counted"
    modules = [name for name in free if name.startswith(("model.layers.3.", "model.layers.4."))]
    assert any(name.endswith("mlp.gate.weight") for name in modules)
    for name in modules:
        torch.testing.assert_close(pulled[name], free[name], rtol=1e-5, atol=1e-8, msg=name)
    assert not torch.allclose(pulled["model.layers.2.mlp.gate.weight"], free["model.layers.2.mlp.gate.weight"])


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    make_model().save_checkpoint(folder, dtype="fp32")
    return folder


def built(checkpoint: Path, cfg: TrainerConfig, *, keep_reference: bool = True, seed: int = 0) -> ModelTrainer:
    store = distributed.HashStore()
    return build_trainer(cfg, checkpoint, "deepseek", keep_reference=keep_reference, seed=seed, store=store, rank=0)


def biases(trainer: ModelTrainer) -> torch.Tensor:
    assert isinstance(trainer.model, DeepseekV3)
    return torch.cat([b for name, b in trainer.model.named_buffers() if name.endswith("e_score_correction_bias")])


@pytest.mark.parametrize("kind", ["torch", "deepspeed"])
def test_a_trainer_is_built_as_it_is_configured(kind: str, checkpoint: Path) -> None:
    """Each setting does what it says and nothing else does."""
    cfg = replace(CFG, kind=kind)
    [batch] = rollouts()
    plain = built(checkpoint, cfg, keep_reference=False)
    before = biases(plain).clone()
    numbers = plain.update(batch, GrpoLoss(kl_coef=0.0), 1e-3)
    assert torch.equal(biases(plain), before) and not {"kl", "balance_loss"} & numbers.keys()
    stepped = built(checkpoint, replace(cfg, bias_update_speed=0.25))
    numbers = stepped.update(batch, GrpoLoss(kl_coef=0.1), 1e-3)
    assert "kl" in numbers and "balance_loss" not in numbers
    moved = (biases(stepped) - before).abs()
    assert set(moved.round(decimals=5).tolist()) <= {0.0, 0.25} and moved.max() > 0
    balanced = built(checkpoint, replace(cfg, balance_coef=0.25))
    assert balanced.update(batch, GrpoLoss(kl_coef=0.1), 1e-3)["balance_loss"] > 0.25
    assert torch.equal(biases(balanced), before)


def test_adapters_start_from_the_seed(checkpoint: Path) -> None:
    cfg = replace(CFG, lora=LoraConfig(rank=2, alpha=4, targets=("o_proj",)))
    one, same, other = (built(checkpoint, cfg, seed=seed).adapter() for seed in (1, 1, 2))
    assert all("o_proj" in name for name in one)
    down = [name for name in one if "lora_A" in name]
    assert all(torch.equal(one[name], same[name]) and not torch.equal(one[name], other[name]) for name in down)


def test_a_trainer_in_bf16_holds_bf16(checkpoint: Path) -> None:
    cfg = replace(CFG, kind="deepspeed", dtype="bf16")
    assert built(checkpoint, cfg).model.lm_head.weight.dtype == torch.bfloat16
    assert built(checkpoint, replace(cfg, dtype="fp32")).model.lm_head.weight.dtype == torch.float32
