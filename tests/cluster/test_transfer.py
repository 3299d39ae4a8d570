"""What a rank puts into buckets comes out byte for byte, or an error names the tensor, the rank and the version."""

from __future__ import annotations

import pickle
import sys
from collections.abc import Iterable
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from torch import Tensor

from rlkit.cluster.buckets import Bucket, Contents, Entry, buckets, plan, tensors
from rlkit.parts import SyncError
from rlkit.quant.fp8 import quantise_blocks
from tests.model.tiny import seeded

Named = list[tuple[str, Tensor]]
Sent = tuple[list[Contents], dict[int, list[Bucket]]]
VERSION = 7


def views() -> Named:
    """Sixteen experts of one stack, itself in a flat buffer of everything: how parameters look under ZeRO."""
    flat = torch.arange(100_000, dtype=torch.float32)
    stack = flat[:16_000].view(16, 40, 25)
    return [(f"experts.{i}", stack[i, :20]) for i in range(16)] + [("t", flat[16_000:16_400].view(20, 20).T)]


def mixture() -> Named:
    """A DeepSeek-V3 in bf16 with its router's fp32 bias, one matrix in block FP8, and tensors of odd shapes."""
    weights = [
        (name, tensor if name.endswith("bias") else tensor.bfloat16()) for name, tensor in seeded().checkpoint_weights()
    ]
    codes, scales = quantise_blocks(torch.randn(200, 130, generator=torch.Generator().manual_seed(0)))
    odd = [("scalar", torch.tensor(3)), ("empty", torch.zeros(0, 4)), ("flags", torch.tensor([True, False]))]
    return [*weights, ("fp8.weight", codes), ("fp8.weight_scale_inv", scales), *odd]


def sent(weights: Iterable[tuple[str, Tensor]], num_ranks: int = 2, max_bytes: int = 5000, version: int = 7) -> Sent:
    """What several ranks publish when they divide the weights one by one."""
    weights = list(weights)
    lists, packed = [], {}
    for rank in range(num_ranks):
        found = list(buckets(weights[rank::num_ranks], rank, version, max_bytes))
        entries = tuple(entry for _, described in found for entry in described)
        table = tuple(name for name, _ in weights) if rank == 0 else ()
        lists.append(Contents(rank=rank, version=version, entries=entries, table=table))
        packed[rank] = [bucket for bucket, _ in found]
    return lists, packed


def received(lists: list[Contents], packed: dict[int, list[Bucket]], version: int = VERSION) -> Named:
    fetch = {rank: partial(lambda buckets, number: buckets[number], found) for rank, found in packed.items()}
    return list(tensors(plan(lists, version), version, fetch))


def raw(tensor: Tensor) -> bytes:
    return bytes(tensor.flatten().view(torch.uint8).tolist())


def refused(lists: list[Contents], packed: dict[int, list[Bucket]]) -> str:
    with pytest.raises(SyncError) as error:
        received(lists, packed)
    return str(error.value)


@pytest.mark.parametrize("num_ranks", [1, 2, 3])
@pytest.mark.parametrize("max_bytes", [1, 5000, 2**30])
def test_every_dtype_and_shape_arrives_bit_for_bit_in_the_order_of_the_table(max_bytes: int, num_ranks: int) -> None:
    expected = mixture()
    assert {str(tensor.dtype) for _, tensor in expected} >= {"torch.bfloat16", "torch.float32", "torch.float8_e4m3fn"}
    found = received(*sent(expected, num_ranks, max_bytes))
    assert [name for name, _ in found] == [name for name, _ in expected]
    for (name, tensor), (_, other) in zip(found, expected, strict=True):
        assert (tensor.dtype, tensor.shape) == (other.dtype, other.shape), name
        assert raw(tensor) == raw(other), name


def test_a_tensor_travels_without_the_buffer_that_it_is_a_view_of() -> None:
    [(bucket, entries)] = buckets(views(), 0, VERSION, 2**30)
    payload = sum(tensor.nbytes for _, tensor in views())
    assert payload <= len(pickle.dumps((bucket, entries), protocol=5)) < 1.2 * payload


def test_arrays_are_views_of_the_weights_and_travel_beside_the_pickle() -> None:
    """So nothing is copied but by the store itself; a matrix that is not contiguous has to be."""
    weights = views()
    [(bucket, _)] = buckets(weights, 0, VERSION, 2**30)
    assert [array.ctypes.data for array in bucket.data[:-1]] == [tensor.data_ptr() for _, tensor in weights[:-1]]
    beside: list[pickle.PickleBuffer] = []
    inside = pickle.dumps(bucket, protocol=5, buffer_callback=beside.append)
    assert len(inside) < 4000 and sum(part.raw().nbytes for part in beside) == sum(t.nbytes for _, t in weights)


def test_buckets_hold_what_fits_and_at_least_one_tensor() -> None:
    sizes = [len(bucket.data) for bucket, _ in buckets(views(), 0, VERSION, 5000)]
    assert sizes == [2] * 8 + [1]
    assert [len(bucket.data) for bucket, _ in buckets(views(), 0, VERSION, 1)] == [1] * 17
    assert list(buckets([], 0, VERSION, 1)) == []


def test_a_bucket_is_let_go_after_its_last_tensor() -> None:
    lists, packed = sent(views(), num_ranks=2, max_bytes=5000)
    alive: list[int] = []

    def fetch(rank: int, number: int) -> Bucket:
        return replace(packed[rank][number])  # an object of its own, which nobody else holds

    given = tensors(plan(lists, VERSION), VERSION, {rank: partial(fetch, rank) for rank in packed})
    for _ in given:
        held = given.gi_frame.f_locals["held"]  # type: ignore[attr-defined]
        alive.append(len(held))
        assert all(sys.getrefcount(bucket) <= 3 for bucket in held.values())
    assert max(alive) == 2, "one of each rank, of nine"


FLIPPED = {
    "a dense weight": "model.layers.0.mlp.down_proj.weight",
    "an expert": "model.layers.1.mlp.experts.5.up_proj.weight",
    "a bias in fp32": "model.layers.2.mlp.gate.e_score_correction_bias",
    "codes in FP8": "fp8.weight",
    "scales of FP8": "fp8.weight_scale_inv",
    "a scalar": "scalar",
}


@pytest.mark.parametrize("what", FLIPPED)
def test_one_flipped_bit_is_named(what: str) -> None:
    name = FLIPPED[what]
    lists, packed = sent(mixture())
    [(rank, entry)] = [(rank, entry) for rank, entry in plan(lists, VERSION) if entry.name == name]
    old = packed[rank][entry.bucket]
    for place in {0, old.data[entry.place].nbytes // 2, old.data[entry.place].nbytes - 1}:
        for bit in (1, 128):
            wrong = old.data[entry.place].copy()
            wrong[place] ^= bit
            data = (*old.data[: entry.place], wrong, *old.data[entry.place + 1 :])
            packed[rank][entry.bucket] = replace(old, data=data)
            message = refused(lists, packed)
            assert message.startswith(f"{name}: the bytes that arrived are not those that rank {rank} published in ver")
            assert f"in version {VERSION}: their checksums differ" in message
    packed[rank][entry.bucket] = old
    assert len(received(lists, packed)) == len(mixture())


def test_bytes_that_are_cut_or_changed_places_are_named() -> None:
    lists, packed = sent(views(), num_ranks=1, max_bytes=2**30)
    [bucket] = packed[0]
    swapped = (bucket.data[1], bucket.data[0], *bucket.data[2:])
    words = bucket.data[0].view(np.uint32)[::-1].copy().view(np.uint8)
    for data in (swapped, (words, *bucket.data[1:]), (bucket.data[0][:-4], *bucket.data[1:]), ()):
        assert "experts.0: the bytes that arrived" in refused(lists, {0: [replace(bucket, data=data)]})


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"version": 6}, r"got bucket 1 of rank 1, version 6"),
        ({"rank": 0}, r"got bucket 1 of rank 0, version 7"),
        ({"number": 0}, r"got bucket 0 of rank 1, version 7"),
    ],
)
def test_a_bucket_of_another_version_rank_or_place_is_refused(wrong: dict[str, int], says: str) -> None:
    lists, packed = sent(views())
    packed[1][1] = replace(packed[1][1], **wrong)
    message = refused(lists, packed)
    assert message.startswith("experts.5: asked for bucket 1 of rank 1, version 7, and ") and message.endswith(says)


def test_all_lists_must_be_of_the_version_that_was_announced() -> None:
    lists, packed = sent(views())
    lists[1] = replace(lists[1], version=6)
    message = "rank 1 publishes version 6 of the weights, but version 7 was announced"
    assert refused(lists, packed) == message


def without(contents: Contents, name: str) -> Contents:
    return replace(contents, entries=tuple(entry for entry in contents.entries if entry.name != name))


def test_names_must_be_those_of_the_model_each_once() -> None:
    """It is known before the first tensor is given away."""
    lists, packed = sent(views())
    [first, second] = lists
    lost = without(second, "experts.3")
    cases = {
        "experts.3: published by no rank in version 7; 1 of 17 names are missing": [first, lost],
        "experts.0: published by no rank in version 7; 9 of 17 names are missing": [replace(first, entries=()), second],
        "experts.3: published twice, by rank 0 and rank 1, in version 7": [
            replace(first, entries=(*first.entries, second.entries[1])), second,
        ],
        "experts.1: published twice, by rank 1 and rank 1, in version 7": [
            first, replace(second, entries=(*second.entries, second.entries[0])),
        ],
        "odd: published by rank 1 in version 7, but not of this model": [
            first, replace(second, entries=(*second.entries, replace(second.entries[0], name="odd"))),
        ],
        "experts.0: published by rank 0 in version 7, but not of this model": [replace(first, table=()), second],
    }  # fmt: skip
    for message, given in cases.items():
        assert refused(given, packed) == message


def test_every_entry_says_where_its_bytes_lie() -> None:
    lists, packed = sent(views(), num_ranks=1, max_bytes=5000)
    assert [(entry.bucket, entry.place) for entry in lists[0].entries[:3]] == [(0, 0), (0, 1), (1, 0)]
    assert isinstance(lists[0].entries[0], Entry) and len(packed[0]) == 9
