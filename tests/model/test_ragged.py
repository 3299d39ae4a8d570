"""Laying samples out for attention: nothing lost, nothing mixed, padding bounded, memory linear in the samples."""

from __future__ import annotations

from itertools import accumulate

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.profiler import ProfilerActivity, profile

from rlkit.model.attention import SHORT
from rlkit.model.ragged import MAX_PADDING, lay_out
from tests.model.tiny import relative, seeded

CPU = torch.device("cpu")


@given(st.lists(st.integers(1, 60), min_size=1, max_size=40))
@settings(max_examples=100, deadline=None)
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


def peak_bytes(num: int, length: int) -> tuple[int, int]:
    """Of one forward and backward on a pack of `num` samples: most bytes alive at once, and the largest allocation."""
    model = seeded()
    tokens_T = torch.randint(0, 96, (num * length,))
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        model(tokens_T, (length,) * num).square().mean().backward()
    assert profiler.profiler is not None and profiler.profiler.kineto_results is not None
    events = [event for event in profiler.profiler.kineto_results.events() if event.name() == "[memory]"]
    sizes = [event.nbytes() for event in sorted(events, key=lambda event: event.start_ns())]
    return max(accumulate(sizes)), max(sizes)


@pytest.mark.parametrize("length", [32, SHORT + 32])
def test_memory_grows_with_the_number_of_samples_not_with_its_square(length: int) -> None:
    """All allocations of forward and backward count, those inside kernels too; each path of attention has its turn."""
    peak_bytes(2, length)  # what the first call allocates for good
    (one, _), (two, _), (four, largest) = (peak_bytes(num, length) for num in (8, 16, 32))
    ratio = (four - two) / (two - one)
    print(
        f"samples of {length}: {one / 2**20:.1f}, {two / 2**20:.1f}, {four / 2**20:.1f} MiB for 8, 16, 32: {ratio:.2f}"
    )
    assert ratio == pytest.approx(2, rel=0.1), "linear is 2, quadratic 4"
    assert largest < (32 * length) ** 2 * 4, "an allocation could hold a T x T matrix"


@pytest.mark.parametrize("length", [20, SHORT + 20])
def test_samples_of_a_pack_do_not_see_each_other(length: int) -> None:
    """Other tokens before and behind a sample, of equal or other length, change nothing in it and get no gradient."""
    torch.manual_seed(0)
    model, sample = seeded(), torch.randint(0, 96, (length,))
    found = []
    for _ in range(3):
        before, behind = torch.randint(0, 96, (length,)), torch.randint(0, 96, (7,))
        tokens_T = torch.cat([before, sample, behind])
        embedded = model.model.embed_tokens(tokens_T).detach().requires_grad_()
        ragged = lay_out((length, length, 7), CPU)
        rotations_T = model.model.rotations(ragged.positions_T)
        x_TD = embedded
        for block in model.model.blocks():
            x_TD = block(x_TD, rotations_T, ragged)
        own_TD = x_TD[length : 2 * length]
        found.append(own_TD.detach())
        (gradient,) = torch.autograd.grad(own_TD.square().sum(), embedded)
        others = torch.cat([gradient[:length], gradient[2 * length :]])
        assert not others.any(), "a gradient crosses the border"
        assert gradient[length : 2 * length].norm() > 0.1
    # Not to the bit: how many rows an expert multiplies at once moves the last one.
    assert max(relative(found[0], other) for other in found[1:]) <= 1e-6
