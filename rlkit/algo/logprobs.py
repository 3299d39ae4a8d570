"""Log-probs of tokens, without ever holding the logits of a whole pack."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

MAX_LOGITS = 2**24
"""Logits alive at once: 64 MiB in fp32."""


def token_logprobs(logits_TV: Tensor, tokens_T: Tensor, temperature: float = 1.0) -> Tensor:
    """log p(token) under softmax(logits / temperature), computed in fp32 (float64 stays float64).

    Args:
        logits_TV: [..., V]; row t is the prediction for `tokens_T[t]` (the caller has shifted by one).
        tokens_T: [...] token ids.
        temperature: above 0.

    Returns:
        [...] log-probs in nats.
    """
    logits_TV = logits_TV if logits_TV.dtype == torch.float64 else logits_TV.float()
    logits_TV = logits_TV / temperature
    return logits_TV.gather(-1, tokens_T.unsqueeze(-1)).squeeze(-1) - logits_TV.logsumexp(-1)


def chunked_logprobs(
    hidden_TD: Tensor, head_VD: Tensor, tokens_T: Tensor, temperature: float = 1.0, max_logits: int = MAX_LOGITS
) -> tuple[Tensor, Tensor]:
    """Log-prob and entropy of tokens from hidden states, a chunk of rows at a time; backward recomputes each chunk.

    Args:
        hidden_TD: hidden states; row t predicts `tokens_T[t]`.
        head_VD: weight of the output head.
        tokens_T: token ids.
        temperature: above 0.
        max_logits: rows of a chunk x V stay below this.

    Returns:
        `logprobs_T` (differentiable) and `entropy_T` (not), in nats.
    """
    num_rows = max(1, max_logits // head_VD.shape[0])
    if tokens_T.numel() <= num_rows:
        return _logprobs_and_entropy(hidden_TD, head_VD, tokens_T, temperature)
    chunks = zip(hidden_TD.split(num_rows), tokens_T.split(num_rows), strict=True)
    parts = [
        checkpoint(_logprobs_and_entropy, hidden_CD, head_VD, tokens_C, temperature, use_reentrant=False)
        for hidden_CD, tokens_C in chunks
    ]
    return torch.cat([part[0] for part in parts]), torch.cat([part[1] for part in parts])


def _logprobs_and_entropy(
    hidden_TD: Tensor, head_VD: Tensor, tokens_T: Tensor, temperature: float
) -> tuple[Tensor, Tensor]:
    logits_TV = F.linear(hidden_TD, head_VD).float() / temperature
    logprobs_TV = logits_TV.log_softmax(-1)
    with torch.no_grad():
        entropy_T = -(logprobs_TV.exp() * logprobs_TV).sum(-1)
    return logprobs_TV.gather(-1, tokens_T.unsqueeze(-1)).squeeze(-1), entropy_T
