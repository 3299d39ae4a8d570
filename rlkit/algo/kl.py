"""Three estimators of KL(policy || reference) from one token drawn from the policy (J. Schulman, "Approximating KL").

All take log-probs of the same shape, in nats, and return the estimate for every token. With r = p_ref / p:
k1 is unbiased but can be negative, k2 is biased with low variance, k3 is unbiased and never negative.

A good estimate of the value need not have the gradient of the value. When tokens are drawn from the policy itself, the
gradient of k1 is 0 on average, that of k2 is the gradient of KL(policy || reference), and that of k3 is the gradient of
KL(reference || policy). docs/maths.md derives this; a loss can therefore use k2 and k3, and k1 is for reports.
"""

from __future__ import annotations

from torch import Tensor

MAX_LOG_RATIO = 20.0
"""Log-ratios are cut off here before they become ratios: e^20 is 5e8, and e^89 is infinite in fp32."""


def kl_k1(logprobs_T: Tensor, ref_logprobs_T: Tensor) -> Tensor:
    """k1 = -log r = log p - log p_ref."""
    return logprobs_T - ref_logprobs_T


def kl_k2(logprobs_T: Tensor, ref_logprobs_T: Tensor) -> Tensor:
    """k2 = (log r)^2 / 2."""
    return (ref_logprobs_T - logprobs_T).square() / 2


def kl_k3(logprobs_T: Tensor, ref_logprobs_T: Tensor) -> Tensor:
    """k3 = r - 1 - log r (DeepSeekMath, arXiv:2402.03300, equation 4), with log r cut off at `MAX_LOG_RATIO`.

    A token that the policy has all but forgotten (log r above 20) then adds a constant and has no gradient; without the
    cut its r is infinite and its gradient no number.
    """
    log_ratio_T = (ref_logprobs_T - logprobs_T).clamp(max=MAX_LOG_RATIO)
    return log_ratio_T.expm1() - log_ratio_T
