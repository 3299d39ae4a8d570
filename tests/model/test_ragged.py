"""Laying samples out for attention: nothing lost, nothing mixed, padding bounded."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rlkit.model.ragged import MAX_PADDING, lay_out

CPU = torch.device("cpu")


@given(st.lists(st.integers(1, 60), min_size=1, max_size=40))
@settings(max_examples=100, deadline=None, derandomize=True)
def test_every_sample_is_one_padded_row(lengths: list[int]) -> None:
    ragged = lay_out(lengths, CPU)
    tokens_T = torch.arange(1, sum(lengths) + 1).double()
    batches = ragged.pad(tokens_T.unsqueeze(1))
    rows = {tuple(row[row > 0].tolist()) for batch in batches for row in batch.squeeze(2)}
    assert rows == {tuple(sample.tolist()) for sample in tokens_T.split(lengths)}
    assert torch.equal(ragged.unpad(batches).squeeze(1), tokens_T)
    assert ragged.positions_T.tolist() == [i for length in lengths for i in range(length)]
    assert sum(num * width for num, width in ragged.buckets) <= MAX_PADDING * sum(lengths)


def test_hand_computed_buckets() -> None:
    assert lay_out((3, 2), CPU).buckets == ((2, 3),)  # 6 places for 5 tokens
    assert lay_out((10, 2, 9, 2), CPU).buckets == ((2, 10), (2, 2))
    assert lay_out((4, 4, 4), CPU).slots_T is None
    assert lay_out((2, 3), CPU).slots_T.tolist() == [3, 4, 0, 1, 2]  # pyright: ignore[reportOptionalMemberAccess]


@pytest.mark.parametrize("lengths", [(), (3, 0)])
def test_refuses_empty_samples(lengths: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="every sample needs at least one token"):
        lay_out(lengths, CPU)


def test_gradient_is_the_transpose() -> None:
    """<pad x, y> = <x, pad^T y> and the same for unpad, in float64."""
    torch.manual_seed(0)
    ragged = lay_out((5, 2, 4, 1), CPU)
    x = torch.randn(12, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda t: tuple(ragged.pad(t)), x)
    batches = [batch.detach().requires_grad_() for batch in ragged.pad(x)]
    assert torch.autograd.gradcheck(lambda *parts: ragged.unpad(parts), batches)
