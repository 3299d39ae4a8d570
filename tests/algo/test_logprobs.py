from __future__ import annotations

from itertools import accumulate

import pytest
import torch
from torch.profiler import ProfilerActivity, profile

from rlkit.algo import chunked_logprobs, token_logprobs
from rlkit.algo.logprobs import MAX_LOGITS

LOGITS_TV = torch.randn(20, 11, generator=torch.Generator().manual_seed(0))
TOKENS_T = torch.arange(20) % 11


@pytest.mark.parametrize("temperature", [0.5, 1.0, 1.7])
def test_equals_a_categorical_distribution(temperature: float) -> None:
    expected = torch.distributions.Categorical(logits=LOGITS_TV.double() / temperature).log_prob(TOKENS_T)
    torch.testing.assert_close(token_logprobs(LOGITS_TV.double(), TOKENS_T, temperature), expected, rtol=1e-12, atol=0)
    torch.testing.assert_close(
        token_logprobs(LOGITS_TV, TOKENS_T, temperature).double(), expected, rtol=1e-5, atol=1e-6
    )


def test_leading_dimensions_are_kept() -> None:
    batched = token_logprobs(LOGITS_TV.view(4, 5, 11), TOKENS_T.view(4, 5))
    assert torch.equal(batched.flatten(), token_logprobs(LOGITS_TV, TOKENS_T))


def test_large_logits_do_not_overflow() -> None:
    logits = torch.tensor([[1e4, 0.0, -1e4]])
    assert token_logprobs(logits, torch.tensor([0])).tolist() == [0.0]
    assert token_logprobs(logits, torch.tensor([1])).tolist() == [-1e4]


@pytest.mark.parametrize("max_logits", [1, 11 * 3, 11 * 20, 2**24])
@pytest.mark.parametrize("temperature", [1.0, 0.6])
def test_chunks_change_neither_values_nor_gradients(max_logits: int, temperature: float) -> None:
    random = torch.Generator().manual_seed(1)
    hidden_TD = torch.randn(20, 7, generator=random).requires_grad_()
    head_VD = torch.randn(11, 7, generator=random).requires_grad_()
    weights_T = torch.rand(20, generator=random)
    whole = torch.distributions.Categorical(logits=hidden_TD @ head_VD.T / temperature)
    expected = torch.autograd.grad((weights_T * whole.log_prob(TOKENS_T)).sum(), [hidden_TD, head_VD])

    logprobs_T, entropy_T = chunked_logprobs(hidden_TD, head_VD, TOKENS_T, temperature, max_logits)
    grads = torch.autograd.grad((weights_T * logprobs_T).sum(), [hidden_TD, head_VD])
    torch.testing.assert_close(logprobs_T, whole.log_prob(TOKENS_T))
    torch.testing.assert_close(entropy_T, whole.entropy())
    torch.testing.assert_close(grads, expected)


def test_no_tokens_is_no_log_probs() -> None:
    logprobs_T, entropy_T = chunked_logprobs(torch.zeros(0, 7), torch.zeros(11, 7), torch.zeros(0, dtype=torch.long))
    assert logprobs_T.shape == entropy_T.shape == (0,)


def peak_bytes(num_tokens: int, max_logits: int) -> int:
    """The most bytes alive at once in forward and backward over V3's vocabulary, allocations inside kernels too."""
    hidden_TD, head_VD = torch.randn(num_tokens, 4, requires_grad=True), torch.randn(129_280, 4, requires_grad=True)
    tokens_T = torch.arange(num_tokens)
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        chunked_logprobs(hidden_TD, head_VD, tokens_T, 1.0, max_logits)[0].sum().backward()
    assert profiler.profiler is not None and profiler.profiler.kineto_results is not None
    events = [event for event in profiler.profiler.kineto_results.events() if event.name() == "[memory]"]
    return max(accumulate(event.nbytes() for event in sorted(events, key=lambda event: event.start_ns())))


@pytest.mark.slow
def test_chunks_need_an_eighth_of_the_memory_at_the_size_of_v3() -> None:
    """4,096 tokens; without chunks they would take 10 GB here, so both peaks are on the line through those of fewer."""
    peak_bytes(16, 2**24)  # what the first call allocates for good

    def peak(few: int, max_logits: int) -> float:
        one, two = peak_bytes(few, max_logits), peak_bytes(2 * few, max_logits)
        return one + (two - one) * (4096 - few) / few

    whole, chunked = peak(128, 2**62), peak(512, MAX_LOGITS)
    print(f"{chunked / 2**20:.0f} MiB in chunks, {whole / 2**20:.0f} MiB without: {chunked / whole:.3f}")
    assert chunked < whole / 8
