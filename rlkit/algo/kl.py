"""Three estimators of KL(policy || reference) from one token drawn from the policy (J. Schulman, "Approximating KL").

All take log-probs of the same shape, in nats, and return the estimate for every token. With r = p_ref / p:
k1 is unbiased but can be negative, k2 is biased with low variance, k3 is unbiased and never negative.
"""

from __future__ import annotations

from torch import Tensor


def kl_k1(logprobs_T: Tensor, ref_logprobs_T: Tensor) -> Tensor:
    """k1 = -log r = log p - log p_ref."""
    return logprobs_T - ref_logprobs_T


def kl_k2(logprobs_T: Tensor, ref_logprobs_T: Tensor) -> Tensor:
    """k2 = (log r)^2 / 2."""
    return (ref_logprobs_T - logprobs_T).square() / 2


def kl_k3(logprobs_T: Tensor, ref_logprobs_T: Tensor) -> Tensor:
    """k3 = r - 1 - log r (DeepSeekMath, arXiv:2402.03300, equation 4)."""
    log_ratio_T = ref_logprobs_T - logprobs_T
    return log_ratio_T.expm1() - log_ratio_T
