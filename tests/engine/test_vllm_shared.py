"""Buckets of weights in memory that other processes map: the same bits, in order, and nothing that outlives them."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys

import pytest
import torch
from torch import Tensor

from rlkit.engine.vllm.shared import SharedBucket, shared
from rlkit.model.files.weights import in_buckets

Named = list[tuple[str, Tensor]]


def weights() -> Named:
    """Every dtype that a checkpoint may hold, views, a number alone and nothing."""
    torch.manual_seed(0)
    stack = torch.randn(3, 5, 7)
    return [
        ("fp32", torch.randn(5, 7)),
        ("a view", stack[1]),
        ("turned", torch.randn(6, 4).T),
        ("bf16", torch.randn(9).bfloat16()),
        ("fp8", torch.randn(3, 3).to(torch.float8_e4m3fn)),
        ("number", torch.tensor(2.5)),
        ("whole", torch.arange(5)),
        ("nothing", torch.empty(0, 4)),
        ("trained", torch.nn.Parameter(torch.randn(4))),
    ]


def bits(tensor: Tensor) -> bytes:
    return tensor.detach().contiguous().view(-1).view(torch.uint8).numpy().tobytes()


def assert_same(found: Named, sent: Named) -> None:
    assert [name for name, _ in found] == [name for name, _ in sent]
    for (name, ours), (_, theirs) in zip(found, sent, strict=True):
        assert (ours.dtype, ours.shape) == (theirs.dtype, theirs.shape), name
        assert bits(ours) == bits(theirs), name


def test_what_is_mapped_is_what_was_sent_and_stays_when_the_sender_is_done() -> None:
    sent = weights()
    with shared(sent) as bucket:
        found = list(bucket.tensors())
    assert_same(found, sent)
    with pytest.raises(RuntimeError, match="unable to open"):
        list(bucket.tensors())


def test_what_one_receiver_writes_no_other_sees() -> None:
    sent = weights()
    with shared(sent) as bucket:
        for _, tensor in bucket.tensors():
            tensor.zero_()
        assert_same(list(bucket.tensors()), sent)


@pytest.mark.slow
def test_another_process_maps_it_by_its_path() -> None:
    with shared(weights()[:3]) as bucket:
        program = (
            "import pickle, sys; bucket = pickle.loads(bytes.fromhex(sys.argv[1]))\n"
            "print([round(float(tensor.sum()), 3) for _, tensor in bucket.tensors()])"
        )
        command = [sys.executable, "-c", program, pickle.dumps(bucket).hex()]
        printed = subprocess.run(command, capture_output=True, text=True, check=True, timeout=300).stdout
    assert printed == f"{[round(float(tensor.sum()), 3) for _, tensor in weights()[:3]]}\n"


def test_nothing_stays_open() -> None:
    before = set(os.listdir("/proc/self/fd"))
    for _ in range(3):
        with shared(weights()) as bucket:
            assert isinstance(bucket, SharedBucket) and bucket.num_bytes % 64 == 0
    with pytest.raises(ConnectionError), shared(weights()):
        raise ConnectionError
    with shared([]) as bucket:
        assert list(bucket.tensors()) == []
    assert set(os.listdir("/proc/self/fd")) <= before


@pytest.mark.parametrize(("most", "sizes"), [(1, [1] * 6), (100, [2, 1, 3]), (10_000, [6])])
def test_a_bucket_holds_so_many_bytes_or_one_tensor(most: int, sizes: list[int]) -> None:
    named = [(str(i), torch.zeros(n)) for i, n in enumerate((10, 15, 40, 5, 5, 15))]
    dealt = list(in_buckets(iter(named), most))
    assert [len(bucket) for bucket in dealt] == sizes
    assert [name for bucket in dealt for name, _ in bucket] == [name for name, _ in named]
    assert list(in_buckets(iter([]), most)) == []
