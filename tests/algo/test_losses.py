from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from rlkit.algo import GrpoLoss, grpo_loss, kl_k1, kl_k2, kl_k3, sft_loss
from rlkit.types import PolicyPack


def tensors(seed: int, size: int = 50) -> dict[str, Tensor]:
    random = torch.Generator().manual_seed(seed)
    draw = torch.randn(4, size, generator=random, dtype=torch.float64)
    weights_T = torch.rand(size, generator=random, dtype=torch.float64)
    return {
        "logprobs_T": -draw[0].abs(),
        "old_logprobs_T": -draw[0].abs() + 0.3 * draw[1],
        "ref_logprobs_T": -draw[0].abs() + 0.5 * draw[2],
        "advantages_T": draw[3],
        "weights_T": weights_T / weights_T.sum(),
    }


def formula(t: dict[str, Tensor], clip_low: float, clip_high: float, kl_coef: float) -> tuple[float, float, float]:
    """Equation 3 and 4 of DeepSeekMath, a token at a time in Python floats."""
    total = kl_total = clipped_share = 0.0
    for i in range(len(t["logprobs_T"])):
        names = ("logprobs_T", "old_logprobs_T", "ref_logprobs_T", "advantages_T", "weights_T")
        new, old, ref, adv, w = (float(t[name][i]) for name in names)
        ratio = math.exp(new - old)
        clipped = min(max(ratio, 1 - clip_low), 1 + clip_high)
        kl = math.exp(ref - new) - (ref - new) - 1
        total -= w * (min(ratio * adv, clipped * adv) - kl_coef * kl)
        kl_total += w * kl
        clipped_share += w * (clipped * adv < ratio * adv)
    return total, kl_total, clipped_share


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize(
    ("clip_low", "clip_high", "kl_coef"), [(0.2, 0.2, 0.0), (0.2, 0.28, 0.04), (10.0, 10.0, 0.001)]
)
def test_equals_the_formula_in_float64(seed: int, clip_low: float, clip_high: float, kl_coef: float) -> None:
    t = tensors(seed)
    terms = grpo_loss(**t, clip_low=clip_low, clip_high=clip_high, kl_coef=kl_coef)
    expected = formula(t, clip_low, clip_high, kl_coef)
    assert (float(terms.loss), float(terms.sums["kl"]), float(terms.sums["clip_fraction"])) == pytest.approx(
        expected, rel=1e-12
    )


@pytest.mark.parametrize("seed", range(3))
def test_gradient_equals_numerical_differentiation(seed: int) -> None:
    t = tensors(seed, size=12)
    t["logprobs_T"].requires_grad_()
    assert torch.autograd.gradcheck(
        lambda logprobs_T: grpo_loss(**{**t, "logprobs_T": logprobs_T}, kl_coef=0.04).loss, t["logprobs_T"]
    )


def one_token(ratio: float, advantage: float, **constants: Any) -> tuple[float, float]:
    """Loss and its derivative by log p for one token."""
    old = torch.tensor([-1.0], dtype=torch.float64)
    logprobs = (old + math.log(ratio)).requires_grad_()
    loss = grpo_loss(logprobs, old, torch.tensor([advantage], dtype=torch.float64), **constants).loss
    loss.backward()
    assert logprobs.grad is not None
    return loss.item(), logprobs.grad.item()


def test_on_policy_by_hand() -> None:
    # ratio 1: the loss is -A and its derivative -A, the plain policy gradient
    assert one_token(1.0, 1.5) == pytest.approx((-1.5, -1.5))


def test_clipped_above_by_hand() -> None:
    # ratio 2, A = 1: min(2, 1.2) = 1.2, constant, so nothing is learned from this token any more
    assert one_token(2.0, 1.0, clip_high=0.2) == pytest.approx((-1.2, 0.0))


def test_negative_advantage_is_not_clipped_above_by_hand() -> None:
    # ratio 2, A = -1: min(-2, -1.2) = -2, derivative of 2 by log p is 2
    assert one_token(2.0, -1.0) == pytest.approx((2.0, 2.0))


def test_penalty_by_hand() -> None:
    # p = 1/2, p_ref = 1/4: r = 1/2, k3 = 1/2 - 1 + ln 2; derivative by log p is 1 - r = 1/2
    logprobs = torch.tensor([math.log(0.5)], dtype=torch.float64, requires_grad=True)
    ref = torch.tensor([math.log(0.25)], dtype=torch.float64)
    terms = grpo_loss(logprobs, logprobs.detach(), torch.zeros(1, dtype=torch.float64), ref, kl_coef=2.0)
    terms.loss.backward()
    assert float(terms.loss.detach()) == pytest.approx(2 * (math.log(2) - 0.5))
    assert logprobs.grad is not None
    assert logprobs.grad.item() == pytest.approx(2 * 0.5)


def test_estimators_agree_with_the_exact_divergence() -> None:
    # E_p[k1] = E_p[k3] = KL(p || q) exactly; k2 is biased, but close for close distributions.
    p = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64)
    q = torch.tensor([0.4, 0.4, 0.2], dtype=torch.float64)
    exact = float((p * (p / q).log()).sum())
    k1, k2, k3 = (float((p * kl(p.log(), q.log())).sum()) for kl in (kl_k1, kl_k2, kl_k3))
    assert k1 == pytest.approx(exact, rel=1e-12)
    assert k3 == pytest.approx(exact, rel=1e-12)
    assert k2 == pytest.approx(exact, rel=0.2)
    assert (kl_k3(p.log(), q.log()) >= 0).all()


@pytest.mark.parametrize("kl", ["k2", "k3"])
def test_both_estimators_with_a_gradient_can_be_the_penalty(kl: str) -> None:
    t = tensors(1)
    estimate = {"k2": kl_k2, "k3": kl_k3}[kl](t["logprobs_T"], t["ref_logprobs_T"])
    with_penalty = grpo_loss(**t, kl_coef=0.5, kl=kl).loss - grpo_loss(**t).loss
    assert float(with_penalty) == pytest.approx(0.5 * float((t["weights_T"] * estimate).sum()), rel=1e-12)


def test_every_estimator_can_be_measured() -> None:
    t = tensors(1)
    for name, estimate in {"k1": kl_k1, "k2": kl_k2, "k3": kl_k3}.items():
        terms = grpo_loss(**t, kl=name)
        expected = (t["weights_T"] * estimate(t["logprobs_T"], t["ref_logprobs_T"])).sum()
        assert float(terms.sums["kl"]) == pytest.approx(float(expected), rel=1e-12)
        assert float(terms.loss) == pytest.approx(float(grpo_loss(**t).loss), rel=1e-12), "and adds nothing to the loss"


def divergence(p: Tensor, q: Tensor) -> Tensor:
    return (p.exp() * (p - q)).sum()


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("size", [2, 7])
def test_expected_gradients_of_the_penalties_over_a_whole_vocabulary(seed: int, size: int) -> None:
    """Each token of a small vocabulary with its probability as weight: what a step averages over many samples.

    k2 has the gradient of KL(policy || reference), k3 that of KL(reference || policy), k1 none.
    """
    random = torch.Generator().manual_seed(seed)
    logits_V, ref_V = torch.randn(2, size, generator=random, dtype=torch.float64)
    logits_V.requires_grad_()
    ref_V = ref_V.log_softmax(-1)

    def gradient(loss: Tensor) -> list[float]:
        return torch.autograd.grad(loss, logits_V)[0].tolist()

    def penalty(kl: str) -> Tensor:
        logprobs_V = logits_V.log_softmax(-1)
        fixed = logprobs_V.detach()
        zeros = torch.zeros_like(fixed)
        return grpo_loss(logprobs_V, fixed, zeros, ref_V, fixed.exp(), kl_coef=1.0, kl=kl).loss

    logprobs_V = logits_V.log_softmax(-1)
    forward, backward = gradient(divergence(logprobs_V, ref_V)), gradient(divergence(ref_V, logits_V.log_softmax(-1)))
    assert max(abs(a - b) for a, b in zip(forward, backward, strict=True)) > 1e-3, "the two are different"
    assert gradient(penalty("k2")) == pytest.approx(forward, abs=1e-12)
    assert gradient(penalty("k3")) == pytest.approx(backward, abs=1e-12)
    logprobs_V = logits_V.log_softmax(-1)
    k1 = (logprobs_V.detach().exp() * kl_k1(logprobs_V, ref_V)).sum()
    assert gradient(k1) == pytest.approx([0.0] * size, abs=1e-12)


@pytest.mark.parametrize("kl_coef", [1e-6, 0.001, 1.0])
def test_k1_is_refused_as_a_penalty(kl_coef: float) -> None:
    t = tensors(0)
    with pytest.raises(ValueError, match=rf"kl='k1' with kl_coef={kl_coef} has an expected gradient of 0.*use k3"):
        grpo_loss(**t, kl_coef=kl_coef, kl="k1")
    words = rf"algo.loss.kl='k1' with algo.loss.kl_coef={kl_coef} has an expected gradient of 0.*use k3.*or kl_coef=0"
    with pytest.raises(ValueError, match=words):
        GrpoLoss(kl_coef=kl_coef, kl="k1")
    assert GrpoLoss(kl_coef=0, kl="k1").kl == "k1"


@pytest.mark.parametrize("gap", [89.0, 100.0, 700.0, 1e4, -89.0, -1e4])
@pytest.mark.parametrize("advantage", [1.0, -1.0, 0.0])
@pytest.mark.parametrize("of", ["sampler", "reference", "both"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_huge_log_ratio_has_a_finite_gradient(gap: float, advantage: float, of: str, dtype: torch.dtype) -> None:
    """One ordinary token beside one whose ratio would be infinite; the ordinary one keeps its gradient."""
    logprobs_T = torch.tensor([-1.0, -1.0], dtype=dtype, requires_grad=True)
    far = torch.tensor([-1.2, -1.0 - gap], dtype=dtype)
    near = torch.tensor([-1.2, -1.1], dtype=dtype)
    old, ref = (near if of == "reference" else far), (near if of == "sampler" else far - 2 * (far + 1))
    advantages = torch.tensor([1.0, advantage], dtype=dtype)
    terms = grpo_loss(logprobs_T, old, advantages, ref, kl_coef=0.1, clip_low=10, clip_high=10)
    terms.loss.backward()
    assert logprobs_T.grad is not None
    assert terms.loss.isfinite() and logprobs_T.grad.isfinite().all() and terms.sums["kl"].isfinite()
    alone = torch.tensor([-1.0], dtype=dtype, requires_grad=True)
    weights = torch.tensor([0.5], dtype=dtype)
    grpo_loss(alone, old[:1], advantages[:1], ref[:1], weights, kl_coef=0.1, clip_low=10, clip_high=10).loss.backward()
    assert alone.grad is not None
    assert logprobs_T.grad[0].item() == pytest.approx(alone.grad.item(), rel=1e-6)


def test_log_ratios_are_cut_off_at_20_and_not_before() -> None:
    """A ratio of e^19 still counts in full, one of e^21 as e^20; k3 below the reference (log r = -50) is not cut."""
    zero = torch.zeros(1, dtype=torch.float64)
    for gap, counted in ((19.0, 19.0), (21.0, 20.0), (-19.0, -19.0), (-21.0, -20.0)):
        sign = -1 if gap > 0 else 1  # of the advantage for which the ratio is not clipped
        assert float(grpo_loss(zero, zero - gap, zero + sign).loss) == pytest.approx(
            -sign * math.exp(counted), rel=1e-12
        )
    for gap, counted in ((19.0, 19.0), (21.0, 20.0), (-50.0, -50.0)):
        assert float(kl_k3(zero, zero + gap)) == pytest.approx(math.exp(counted) - 1 - counted, rel=1e-12)


def test_without_weights_every_token_counts_alike() -> None:
    t = tensors(2)
    size = len(t["logprobs_T"])
    explicit = grpo_loss(**{**t, "weights_T": torch.full((size,), 1 / size, dtype=torch.float64)})
    implicit = grpo_loss(t["logprobs_T"], t["old_logprobs_T"], t["advantages_T"], t["ref_logprobs_T"])
    assert float(implicit.loss) == pytest.approx(float(explicit.loss), rel=1e-12)


def test_sft_loss_equals_cross_entropy() -> None:
    logits_TV = torch.randn(9, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    tokens_T = torch.arange(9) % 5
    logprobs_T = logits_TV.log_softmax(-1)[torch.arange(9), tokens_T]
    expected = torch.nn.functional.cross_entropy(logits_TV, tokens_T)
    assert float(sft_loss(logprobs_T)) == pytest.approx(float(expected), rel=1e-12)


def test_configured_loss_equals_the_function() -> None:
    t = tensors(3)
    pack = PolicyPack(tokens_T=torch.zeros(50), lengths=(50,), **{k: v for k, v in t.items() if k != "logprobs_T"})
    loss = GrpoLoss(clip_low=0.1, clip_high=0.3, kl_coef=0.02, kl="k2")
    expected = grpo_loss(**t, clip_low=0.1, clip_high=0.3, kl_coef=0.02, kl="k2")
    assert torch.equal(loss(t["logprobs_T"], pack).loss, expected.loss)


@pytest.mark.parametrize(
    ("constants", "message"),
    [
        ({"clip_low": 0.0}, "algo.loss.clip_low=0.0 must be above 0"),
        ({"clip_high": -1.0}, "algo.loss.clip_high=-1.0 must be above 0"),
        ({"kl_coef": -0.1}, "algo.loss.kl_coef=-0.1 must be at least 0"),
        ({"kl": "k4"}, "algo.loss.kl='k4' is unknown; use one of k1, k2, k3"),
    ],
)
def test_meaningless_constants_are_refused(constants: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        GrpoLoss(**constants)


def test_a_penalty_needs_a_reference() -> None:
    zeros = torch.zeros(3)
    with pytest.raises(ValueError, match=r"kl_coef=0.1 needs ref_logprobs_T"):
        grpo_loss(zeros, zeros, zeros, kl_coef=0.1)
    with pytest.raises(ValueError, match="kl='k9' is unknown"):
        grpo_loss(zeros, zeros, zeros, kl="k9")


def test_numpy_reference_of_a_whole_batch() -> None:
    """Two rollouts of different length: with token weights the loss is the mean over all tokens."""
    new = [np.array([-0.1, -0.2, -0.3]), np.array([-0.5])]
    old = [np.array([-0.1, -0.25, -0.2]), np.array([-0.7])]
    advantage = [1.0, -1.0]
    tokens = [
        min(np.exp(n - o) * a, np.clip(np.exp(n - o), 0.8, 1.2) * a)
        for ns, os, a in zip(new, old, advantage, strict=True)
        for n, o in zip(ns, os, strict=True)
    ]
    terms = grpo_loss(
        torch.tensor(np.concatenate(new)),
        torch.tensor(np.concatenate(old)),
        torch.tensor([1.0, 1.0, 1.0, -1.0], dtype=torch.float64),
    )
    assert float(terms.loss) == pytest.approx(-np.mean(tokens), rel=1e-12)
