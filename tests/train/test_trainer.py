"""The trainer on real parts: DeepSpeed against torch, split batches against whole ones, saved state against none."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import distributed

from rlkit.algo import GrpoLoss, LossTerms, SftLoss, pack_demonstrations, pack_rollouts
from rlkit.config import TrainerConfig
from rlkit.model import DeepseekV3, DeepseekV3Config
from rlkit.train.policy import Policy, frozen_copy
from rlkit.train.steppers.deepspeed import DeepSpeedStepper, join_ranks
from rlkit.train.steppers.torch import TorchStepper
from rlkit.train.trainer import ModelTrainer
from rlkit.types import Batch, Demonstration, Pack, PolicyPack, Prompt, Rollout, Score, ScoredGroup

ARCHITECTURE = DeepseekV3Config(
    vocab_size=64,
    hidden_size=32,
    intermediate_size=48,
    moe_intermediate_size=16,
    num_hidden_layers=3,
    first_k_dense_replace=1,
    num_attention_heads=2,
    n_routed_experts=8,
    num_experts_per_tok=2,
    n_group=4,
    topk_group=2,
    q_lora_rank=16,
    kv_lora_rank=16,
    qk_nope_head_dim=8,
    qk_rope_head_dim=8,
    v_head_dim=8,
    initializer_range=0.1,
)
CFG = TrainerConfig(
    kind="torch",
    num_ranks=1,
    expert_parallel=1,
    pipeline=1,
    zero_stage=1,
    offload="none",
    recompute=False,
    dtype="fp32",
    optimizer="adamw",
    threads=1,
    max_tokens=64,
    weight_decay=0.1,
    beta2=0.95,
    grad_clip=1.0,
    max_skipped=3,
    bias_update_speed=0.0,
    balance_coef=0.0,
    fp8_dispatch=False,
)


def make_model(seed: int = 0, **sizes: int) -> DeepseekV3:
    torch.manual_seed(seed)
    model = DeepseekV3(replace(ARCHITECTURE, **sizes))
    for name, buffer in model.named_buffers():
        if name.endswith("e_score_correction_bias"):
            buffer.normal_(std=0.05)
    return model


def make_trainer(kind: str, *, keep_reference: bool = True, cfg: TrainerConfig = CFG) -> ModelTrainer:
    model = make_model()
    if kind == "deepspeed":
        join_ranks(distributed.HashStore(), 0, 1)
        return ModelTrainer(
            model, DeepSpeedStepper(model, cfg), reference=frozen_copy(model) if keep_reference else None
        )
    return ModelTrainer(model, TorchStepper(model, cfg), reference=frozen_copy(model) if keep_reference else None)


def rollouts(seed: int = 0, max_tokens: int = 64, num_batches: int = 1, old: ModelTrainer | None = None) -> list[Batch]:
    """Four groups of four rollouts of different lengths; the first group has advantages by hand."""
    random = torch.Generator().manual_seed(seed)

    def ids(low: int, high: int) -> tuple[int, ...]:
        size = int(torch.randint(low, high, (1,), generator=random))
        return tuple(torch.randint(2, 64, (size,), generator=random).tolist())

    groups = []
    for i in range(4):
        prompt = Prompt(id=str(i), tokens=ids(3, 9), text="", meta={})
        made = []
        for j in range(4):
            tokens = ids(2, 14)
            gaps = torch.randn(len(tokens), generator=random) * 0.2 - 4.0
            made.append(
                Rollout(
                    tokens=tokens,
                    logprobs=tuple(gaps.tolist())
                    if old is None
                    else tuple(old.logprobs([prompt.tokens + tokens])[0][len(prompt.tokens) - 1 :]),
                    text="",
                    finish_reason="stop",
                    weight_version=0,
                    seed=j,
                )
            )
        scores = tuple(Score(value=float(j == i), reason="") for j in range(4))
        groups.append(ScoredGroup(prompt=prompt, rollouts=tuple(made), scores=scores))
    advantages = [torch.tensor([1.5 if j == i else -0.5 for j in range(4)]) for i in range(4)]
    return pack_rollouts(groups, advantages, max_tokens=max_tokens, temperature=0.9, num_batches=num_batches)


def demonstrations(seed: int = 0) -> Batch:
    random = torch.Generator().manual_seed(seed)
    rows = torch.randint(2, 64, (12, 11), generator=random).tolist()
    return pack_demonstrations(
        [Demonstration.of(row[:4], row[4 : 6 + i % 5]) for i, row in enumerate(rows)], max_tokens=48
    )


def referred(batch: Batch) -> Batch:
    """The same batch with the sampler as its reference, for losses that are called without a trainer."""
    packs = tuple(replace(p, ref_logprobs_T=p.old_logprobs_T) if isinstance(p, PolicyPack) else p for p in batch.packs)
    return replace(batch, packs=packs)


def gradient(batch: Batch, loss: GrpoLoss | SftLoss) -> torch.Tensor:
    """The gradient of a whole batch by autograd alone, without a trainer."""
    policy = Policy(make_model())
    for pack in batch.packs:
        loss(policy(pack, batch.temperature).logprobs_T, pack).loss.backward()
    return torch.cat([p.grad.flatten() for p in policy.parameters() if p.grad is not None])


def weights(trainer: ModelTrainer) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in trainer.model.checkpoint_weights()}


def difference(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    return float((ours - theirs).norm() / theirs.norm())


@pytest.mark.parametrize("max_tokens", [1, 20, 60])
def test_splitting_into_packs_does_not_change_the_gradient(max_tokens: int) -> None:
    [whole], [split] = rollouts(max_tokens=100_000), rollouts(max_tokens=max_tokens)
    assert len(whole.packs) == 1 < len(split.packs)
    loss = GrpoLoss(kl_coef=0.05)
    assert difference(gradient(referred(split), loss), gradient(referred(whole), loss)) <= 1e-5


def test_log_probs_of_a_pack_equal_those_of_a_plain_forward() -> None:
    trainer = make_trainer("torch")
    [batch] = rollouts()
    for pack in batch.packs:
        output = trainer.stepper.module(pack, 0.9)
        for tokens, ours, entropies, weights_T in zip(
            *(
                t.split(list(pack.lengths))
                for t in (pack.tokens_T, output.logprobs_T, output.entropy_T, pack.weights_T)
            ),
            strict=True,
        ):
            logits_TV = trainer.model(tokens.unsqueeze(0))[0] / 0.9
            expected = torch.distributions.Categorical(logits=logits_TV[:-1])
            trained = weights_T[1:] != 0
            torch.testing.assert_close(ours[1:][trained], expected.log_prob(tokens[1:])[trained], rtol=1e-5, atol=1e-5)
            torch.testing.assert_close(entropies[1:][trained], expected.entropy()[trained], rtol=1e-5, atol=1e-5)
            assert not ours[1:][~trained].any()


def test_torch_trainer_equals_adamw_written_out() -> None:
    """Three steps against AdamW (Loshchilov and Hutter 2019, algorithm 2) in float64, with gradient clipping."""
    trainer = make_trainer("torch")
    batch, loss, lr = demonstrations(), SftLoss(), 1e-2
    shadow = {name: p.detach().double().clone() for name, p in trainer.model.named_parameters()}
    first = {name: torch.zeros_like(p) for name, p in shadow.items()}
    second = {name: torch.zeros_like(p) for name, p in shadow.items()}
    for step in range(1, 4):
        policy = Policy(make_model())
        policy.model.load_state_dict({**policy.model.state_dict(), **{n: p.float() for n, p in shadow.items()}})
        for pack in batch.packs:
            loss(policy(pack, 1.0).logprobs_T, pack).loss.backward()
        grads = {n: p.grad.double() for n, p in policy.model.named_parameters() if p.grad is not None}
        norm = torch.cat([grad.flatten() for grad in grads.values()]).norm()
        for name, grad in grads.items():
            grad = grad * min(1.0, CFG.grad_clip / float(norm))
            first[name] = 0.9 * first[name] + 0.1 * grad
            second[name] = CFG.beta2 * second[name] + (1 - CFG.beta2) * grad**2
            update = (first[name] / (1 - 0.9**step)) / ((second[name] / (1 - CFG.beta2**step)).sqrt() + 1e-8)
            decay = 0.0 if "norm" in name or "embed_tokens" in name else CFG.weight_decay
            shadow[name] -= lr * (update + decay * shadow[name])
        stats = trainer.update(batch, loss, lr)
        assert stats["grad_norm"] == pytest.approx(float(norm), rel=1e-4)
    for name, parameter in trainer.model.named_parameters():
        torch.testing.assert_close(parameter.detach().double(), shadow[name], rtol=1e-3, atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("zero_stage", [1, 2])
def test_deepspeed_equals_torch(zero_stage: int) -> None:
    ours = make_trainer("deepspeed", cfg=replace(CFG, kind="deepspeed", zero_stage=zero_stage))
    theirs = make_trainer("torch")
    before = weights(ours)
    for step in range(4):
        [batch] = rollouts(step, old=theirs)
        one, two = (t.update(batch, GrpoLoss(kl_coef=0.05), 3e-3) for t in (ours, theirs))
        assert one["loss"] == pytest.approx(two["loss"], rel=1e-4, abs=1e-5)
        one, two = (t.update(demonstrations(step), SftLoss(), 3e-3) for t in (ours, theirs))
        assert one["grad_norm"] == pytest.approx(two["grad_norm"], rel=1e-4)
    for name, tensor in weights(theirs).items():
        assert difference(weights(ours)[name], tensor) <= 1e-4, name
    assert any(not torch.equal(tensor, before[name]) for name, tensor in weights(ours).items())


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["torch", "deepspeed"])
def test_saved_state_continues_bit_for_bit(kind: str, tmp_path: Path) -> None:
    def steps(trainer: ModelTrainer, numbers: range) -> None:
        for step in numbers:
            for batch in rollouts(step, num_batches=2):
                trainer.update(batch, GrpoLoss(kl_coef=0.1), 1e-2)
            if step == 1:
                trainer.refresh_reference()

    whole = make_trainer(kind)
    steps(whole, range(5))
    first = make_trainer(kind)
    steps(first, range(3))
    first.save(tmp_path)
    random_state = torch.get_rng_state()
    second = make_trainer(kind)
    torch.rand(5)
    second.load(tmp_path)
    assert torch.equal(torch.get_rng_state(), random_state)
    steps(second, range(3, 5))
    for name, tensor in weights(whole).items():
        assert torch.equal(weights(second)[name], tensor), name


@pytest.mark.parametrize("kind", ["torch", "deepspeed"])
def test_a_new_stage_forgets_the_moments_and_moves_the_reference(kind: str) -> None:
    trainer = make_trainer(kind)
    trainer.update(demonstrations(), SftLoss(), 1e-2)
    trained = weights(trainer)
    trainer.begin_stage()
    [batch] = rollouts(old=trainer)
    fresh = make_trainer("torch")
    fresh.model.load_state_dict(trainer.model.state_dict())
    fresh.begin_stage()
    for each in (trainer, fresh):
        each.update(batch, GrpoLoss(kl_coef=0.1), 1e-2)
    for name, tensor in weights(fresh).items():
        assert difference(weights(trainer)[name], tensor) <= 1e-4, f"{name}: moments of the first stage are still there"
    assert trainer.reference is not None
    for name, tensor in trainer.reference.model.checkpoint_weights():
        assert torch.equal(tensor, trained[name])


def test_on_policy_the_ratio_is_one() -> None:
    trainer = make_trainer("torch")
    [batch] = rollouts()
    with torch.no_grad():
        packs = tuple(
            replace(pack, old_logprobs_T=trainer.stepper.module(pack, 0.9).logprobs_T.detach())
            for pack in batch.packs
            if isinstance(pack, PolicyPack)
        )
    stats = trainer.update(replace(batch, packs=packs), GrpoLoss(kl_coef=0.1), 1e-3)
    assert stats["logprob_gap"] <= 1e-6
    assert stats["clip_fraction"] == 0.0
    assert stats["kl"] == pytest.approx(0.0, abs=1e-9), "the reference is the policy itself"


def test_sequences_are_scored_apart() -> None:
    trainer = make_trainer("torch")
    sequences = [(3, 4, 5, 6), (7, 8), (9, 10, 11)]
    together = trainer.logprobs(sequences)
    assert [len(row) for row in together] == [3, 1, 2]
    for sequence, row in zip(sequences, together, strict=True):
        assert row == pytest.approx(trainer.logprobs([sequence])[0], abs=1e-5)


def test_an_empty_pack_changes_nothing_and_still_runs() -> None:
    [batch] = rollouts()
    first = batch.packs[0]
    assert isinstance(first, PolicyPack)
    one = torch.zeros(1)
    empty = PolicyPack(
        tokens_T=first.tokens_T[:1],
        lengths=(1,),
        weights_T=one,
        advantages_T=one,
        old_logprobs_T=one,
    )
    with_empty, without = make_trainer("torch"), make_trainer("torch")
    with_empty.update(replace(batch, packs=(*batch.packs, empty)), GrpoLoss(), 1e-2)
    without.update(batch, GrpoLoss(), 1e-2)
    for name, tensor in weights(without).items():
        torch.testing.assert_close(weights(with_empty)[name], tensor, rtol=1e-6, atol=1e-7)


def test_a_model_with_tied_embeddings_saves_its_reference(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = DeepseekV3(replace(ARCHITECTURE, tie_word_embeddings=True))
    trainer = ModelTrainer(model, TorchStepper(model, CFG), reference=frozen_copy(model))
    trainer.save(tmp_path)
    trainer.update(demonstrations(), SftLoss(), 1e-2)
    trainer.load(tmp_path)
    assert trainer.reference is not None
    assert torch.equal(trainer.reference.model.lm_head.weight, model.lm_head.weight)


def test_a_loss_that_is_no_number_skips_the_step() -> None:
    trainer = make_trainer("torch")
    before = weights(trainer)
    [batch] = rollouts()
    spoiled = tuple(replace(p, old_logprobs_T=p.old_logprobs_T * float("nan")) for p in batch.packs)  # type: ignore[call-arg, attr-defined]
    numbers = trainer.update(replace(batch, packs=spoiled), GrpoLoss(), 1e-2)
    assert math.isnan(numbers["loss"]) and numbers["skipped"] == 1
    assert all(torch.equal(tensor, before[name]) for name, tensor in weights(trainer).items())
    assert trainer.update(batch, GrpoLoss(), 1e-2)["skipped"] == 0


def test_a_loss_that_is_no_number_skips_the_step_though_its_gradient_is_one() -> None:
    trainer = make_trainer("torch")
    before = weights(trainer)
    numbers = trainer.update(demonstrations(), no_number, 1e-2)
    assert math.isnan(numbers["loss"]) and not math.isfinite(numbers["grad_norm"]) and numbers["skipped"] == 1
    assert all(torch.equal(tensor, before[name]) for name, tensor in weights(trainer).items())


def no_number(logprobs_T: torch.Tensor, pack: Pack) -> LossTerms:
    """The loss of SFT plus a constant that is no number, so that the gradient knows nothing of it."""
    terms = SftLoss()(logprobs_T, pack)
    return replace(terms, loss=terms.loss + math.nan)


@pytest.mark.parametrize("value", [float("inf"), float("nan"), 3e38])
def test_a_gradient_that_is_no_number_skips_the_step(value: float) -> None:
    """Also one that is finite and whose square is not; the steps before and after it are as if it had not been."""
    trainer, quiet = make_trainer("torch"), make_trainer("torch")
    for each in (trainer, quiet):
        each.update(demonstrations(1), SftLoss(), 1e-2)
    before = weights(trainer)
    hook = trainer.model.lm_head.weight.register_hook(lambda grad: torch.full_like(grad, value))
    assert trainer.update(demonstrations(), SftLoss(), 1e-2)["skipped"] == 1
    hook.remove()
    assert all(torch.equal(tensor, before[name]) for name, tensor in weights(trainer).items())
    for each in (trainer, quiet):
        each.update(demonstrations(2), SftLoss(), 1e-2)
    assert all(torch.equal(tensor, weights(quiet)[name]) for name, tensor in weights(trainer).items())


def test_ranks_meet_again_when_somebody_has_ended_their_group() -> None:
    """As vLLM does with the group of a process that it shared with a trainer."""
    make_trainer("deepspeed", keep_reference=False)
    distributed.destroy_process_group()
    numbers = make_trainer("deepspeed", keep_reference=False).update(rollouts()[0], GrpoLoss(kl_coef=0.0), 1e-3)
    assert numbers["grad_norm"] > 0
