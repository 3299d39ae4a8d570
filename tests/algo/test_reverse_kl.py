"""On-policy distillation's loss: against floats, cases by hand, and the divergence that torch itself computes."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.distributions import Categorical, kl_divergence

from rlkit.algo import ReverseKlLoss, pack_taught, reverse_kl_loss, shard
from rlkit.types import Batch, Pack, Prompt, Rollout, Score, ScoredGroup, TaughtPack


@pytest.mark.parametrize("seed", range(3))
def test_equals_the_formula_in_float64(seed: int) -> None:
    random = torch.Generator().manual_seed(seed)
    student_T, teacher_T, weights_T = torch.randn(3, 40, generator=random, dtype=torch.float64).unbind()
    weights_T = weights_T.abs() / weights_T.abs().sum()
    rows = list(zip(student_T.tolist(), teacher_T.tolist(), weights_T.tolist(), strict=True))
    expected = math.fsum(w * (p - q) ** 2 / 2 for p, q, w in rows)
    assert float(reverse_kl_loss(student_T, teacher_T, weights_T)) == pytest.approx(expected, rel=1e-13)
    plain = math.fsum((p - q) ** 2 / 2 for p, q, _ in rows) / len(rows)
    assert float(reverse_kl_loss(student_T, teacher_T)) == pytest.approx(plain, rel=1e-13)


def test_by_hand() -> None:
    """The student gives its token 1/2 and the teacher 1/4: the log-ratio is log 2, and so is the pull downwards."""
    student = torch.tensor([math.log(0.5), math.log(0.1)], dtype=torch.float64, requires_grad=True)
    teacher = torch.tensor([math.log(0.25), math.log(0.8)], dtype=torch.float64, requires_grad=True)
    pack = TaughtPack(
        tokens_T=torch.tensor([4, 5]),
        lengths=(2,),
        weights_T=torch.tensor([0.25, 0.75], dtype=torch.float64),
        old_logprobs_T=student.detach(),
        teacher_logprobs_T=teacher,
    )
    terms = ReverseKlLoss()(student, pack)
    terms.loss.backward()
    log2, log8 = math.log(2), math.log(8)
    assert float(terms.loss.detach()) == pytest.approx(0.25 * log2**2 / 2 + 0.75 * log8**2 / 2)
    assert student.grad is not None
    assert student.grad.tolist() == pytest.approx([0.25 * log2, -0.75 * log8])
    assert teacher.grad is None, "the teacher is not trained"
    assert float(terms.sums["reverse_kl"]) == pytest.approx(0.25 * log2 - 0.75 * log8)


@pytest.mark.parametrize("seed", range(3))
def test_over_the_whole_vocabulary_its_gradient_is_that_of_the_divergence(seed: int) -> None:
    """Every token stands for itself as often as the student draws it; the measured number is the divergence."""
    random = torch.Generator().manual_seed(seed)
    logits, other = torch.randn(2, 30, generator=random, dtype=torch.float64).unbind()
    logits.requires_grad_()
    student, teacher = Categorical(logits=logits), Categorical(logits=other)
    exact = kl_divergence(student, teacher)
    [expected] = torch.autograd.grad(exact, logits, retain_graph=True)
    pack = TaughtPack(
        tokens_T=torch.arange(30),
        lengths=(30,),
        weights_T=student.probs.detach(),
        old_logprobs_T=student.logits.detach(),
        teacher_logprobs_T=teacher.logits,
    )
    terms = ReverseKlLoss()(student.logits, pack)
    [found] = torch.autograd.grad(terms.loss, logits)
    assert torch.allclose(found, expected, rtol=1e-10, atol=1e-12) and expected.abs().max() > 0.01
    assert float(terms.sums["reverse_kl"]) == pytest.approx(float(exact.detach()), rel=1e-10)


def groups() -> tuple[list[ScoredGroup], list[list[list[float]]]]:
    """Rollouts whose log-probs say which token they belong to: -token / 100 for the student, -token for the teacher."""
    found, taught = [], []
    for i, sizes in enumerate([(1, 3), (2, 5), (4, 4)]):
        prompt = Prompt(id=f"p{i}", tokens=tuple(range(50, 52 + i)), text="", meta={})
        written = [tuple(range(10 * i + j, 10 * i + j + size)) for j, size in enumerate(sizes)]
        rollouts = tuple(
            Rollout(
                tokens=tokens,
                logprobs=tuple(-token / 100 for token in tokens),
                text="",
                finish_reason="stop",
                weight_version=0,
                seed=0,
            )
            for tokens in written
        )
        scores = (Score(value=None, reason="timeout"),) * len(rollouts)
        found.append(ScoredGroup(prompt=prompt, rollouts=rollouts, scores=scores))
        taught.append([[-float(token) for token in tokens] for tokens in written])
    return found, taught


def test_a_pack_has_what_the_teacher_says_beside_each_token() -> None:
    """Also of rollouts on which the reward has no verdict: nothing is learned from it."""
    batch = pack_taught(*groups(), max_tokens=16)
    assert batch.temperature == 1.0 and batch.num_samples == 6
    trained = 0
    for pack in batch.packs:
        assert isinstance(pack, TaughtPack) and len(pack.tokens_T) <= 16
        is_prompt_T = pack.tokens_T >= 50
        assert torch.equal(pack.weights_T == 0, is_prompt_T)
        zero_T = torch.zeros_like(pack.weights_T)
        assert torch.equal(pack.teacher_logprobs_T, torch.where(is_prompt_T, zero_T, -pack.tokens_T.float()))
        assert torch.allclose(pack.old_logprobs_T, torch.where(is_prompt_T, zero_T, -pack.tokens_T / 100))
        trained += int((~is_prompt_T).sum())
    assert trained == 19 and sum(float(pack.weights_T.sum()) for pack in batch.packs) == pytest.approx(1)
    by_sequence = pack_taught(*groups(), max_tokens=100, aggregate="sequence").packs[0]
    sums = [float(part.sum()) for part in by_sequence.weights_T.split(list(by_sequence.lengths))]
    assert sums == pytest.approx([1 / 6] * 6)


@pytest.mark.parametrize("max_tokens", [1, 8, 16, 1000])
@pytest.mark.parametrize("num_ranks", [1, 2, 3, 8])
def test_packs_and_ranks_change_no_gradient(max_tokens: int, num_ranks: int) -> None:
    def gradient(batches: list[Batch]) -> tuple[float, float, Tensor]:
        table_V, total, kl = torch.linspace(-3, -1, 60, requires_grad=True), torch.zeros(()), 0.0
        for pack in (pack for batch in batches for pack in batch.packs):
            terms = ReverseKlLoss()(table_V[pack.tokens_T], pack)
            total, kl = total + terms.loss, kl + float(terms.sums["reverse_kl"])
        total.backward()
        assert table_V.grad is not None
        return float(total.detach()), kl, table_V.grad

    loss, kl, expected = gradient([pack_taught(*groups(), max_tokens=1000)])
    other_loss, other_kl, found = gradient(shard(pack_taught(*groups(), max_tokens=max_tokens), num_ranks))
    assert (other_loss, other_kl) == pytest.approx((loss, kl), rel=1e-5)
    assert torch.allclose(found, expected, rtol=1e-5, atol=1e-7)


def test_a_pack_without_a_teacher_is_a_mistake() -> None:
    pack = Pack(tokens_T=torch.tensor([1]), lengths=(1,), weights_T=torch.ones(1))
    with pytest.raises(AssertionError):
        ReverseKlLoss()(torch.zeros(1), pack)
