from __future__ import annotations

import pickle

import torch

from rlkit.cluster.transfer import buckets


def views() -> list[tuple[str, torch.Tensor]]:
    """Sixteen experts of one stack, itself in a flat buffer of everything: how parameters look under ZeRO."""
    flat = torch.arange(100_000, dtype=torch.float32)
    stack = flat[:16_000].view(16, 40, 25)
    return [(f"experts.{i}", stack[i, :20]) for i in range(16)] + [("t", flat[16_000:16_400].view(20, 20).T)]


def test_a_tensor_travels_without_the_buffer_that_it_is_a_view_of() -> None:
    sent = [pair for bucket in buckets(views(), 2**30) for pair in bucket]
    payload = sum(tensor.nbytes for _, tensor in sent)
    assert len(pickle.dumps(sent)) < 2 * payload
    for (name, tensor), (expected_name, expected) in zip(sent, views(), strict=True):
        assert name == expected_name
        assert torch.equal(tensor, expected)


def test_buckets_hold_what_fits_and_at_least_one_tensor() -> None:
    sizes = [[tensor.nbytes for _, tensor in bucket] for bucket in buckets(views(), 5000)]
    assert [len(bucket) for bucket in sizes] == [2] * 8 + [1]
    assert [len(bucket) for bucket in buckets(views(), 1)] == [1] * 17


def test_what_was_sent_does_not_change_with_the_weights() -> None:
    weight = torch.zeros(4)
    [bucket] = buckets([("w", weight)], 2**30)
    weight += 1
    assert not bucket[0][1].any()
