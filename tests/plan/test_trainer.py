"""The bytes of a rank by hand."""

from __future__ import annotations

import pytest

from rlkit.plan.layout import Layout
from rlkit.plan.trainer import BUCKET, Held, trainer_bytes

HELD = Held(dense=1000, experts=4000, largest=700, block=900)


def states(kind: str = "deepspeed", dtype: str = "bf16", reference: bool = False, **layout: object) -> tuple[int, ...]:
    found = trainer_bytes(
        HELD,
        Layout(**layout),
        kind=kind,
        dtype=dtype,
        reference=reference,
        on_cpu=False,  # type: ignore[arg-type]
    )
    return found.weights, found.gradients, found.optimiser, found.reference


@pytest.mark.parametrize(
    ("dtype", "zero", "expected"),
    [
        # 8 ranks, EP4: 8 hold a dense parameter, 2 an expert of theirs
        ("bf16", 1, (2 * 5000, 4 * 5000, 12 * (125 + 2000), 0)),
        ("bf16", 2, (2 * 5000, 4 * (125 + 2000), 12 * (125 + 2000), 0)),
        ("bf16", 3, (2 * (125 + 2000), 4 * (125 + 2000), 12 * (125 + 2000), 0)),
        ("fp32", 1, (4 * 5000, 4 * 5000, 12 * (125 + 2000), 0)),
        ("fp8", 1, (2 * 5000, 4 * 5000, 12 * (125 + 2000), 0)),
    ],
)
def test_zero_divides_by_those_that_hold_the_parameter(dtype: str, zero: int, expected: tuple[int, ...]) -> None:
    assert states(dtype=dtype, ranks=8, expert_parallel=4, zero_stage=zero) == expected


def test_the_reference_is_dealt_by_experts_alone() -> None:
    for zero in (1, 2, 3):
        assert states(reference=True, ranks=8, expert_parallel=4, zero_stage=zero)[3] == 2 * 5000


def test_one_process_has_no_master_weights() -> None:
    assert states(kind="torch", dtype="fp32", ranks=1) == (4 * 5000, 4 * 5000, 8 * 5000, 0)
    assert states(kind="torch", dtype="fp32", reference=True, ranks=1)[3] == 4 * 5000


def test_offload_moves_bytes_and_loses_none() -> None:
    values = {"kind": "deepspeed", "dtype": "bf16", "reference": False, "on_cpu": False}
    whole = trainer_bytes(HELD, Layout(ranks=2, zero_stage=3), **values)
    away = trainer_bytes(HELD, Layout(ranks=2, zero_stage=3, offload="optimizer"), **values)
    all_away = trainer_bytes(HELD, Layout(ranks=2, zero_stage=3, offload="all"), **values)
    assert (away.gradients, away.optimiser, away.weights) == (0, 0, whole.weights)
    assert away.host == whole.optimiser + whole.gradients
    assert all_away.weights == 0 and all_away.host == away.host + whole.weights
    assert all_away.gathered == 2 * 2 * 900


def test_adapters_are_trained_alone() -> None:
    held = Held(dense=5000, adapters=100)
    found = trainer_bytes(
        held, Layout(ranks=2, zero_stage=2), kind="deepspeed", dtype="bf16", reference=True, on_cpu=False
    )
    assert (found.weights, found.gradients, found.optimiser) == (2 * 5100, 4 * 50, 12 * 50)
    assert found.reference == 2 * 100


def test_the_peak_is_the_larger_of_two_moments() -> None:
    """On a CPU AdamW's temporaries are twice its piece; on a GPU DeepSpeed's bucket is set aside whole."""
    values = {"kind": "deepspeed", "dtype": "fp32", "reference": False}
    cpu = trainer_bytes(HELD, Layout(ranks=1), **values, on_cpu=True, activations=10, logits=5)
    assert cpu.bucket == 4 * 5000
    assert cpu.step == 4 * 5000 + 8 * 5000 - 4 * 5000
    assert cpu.peak == 20 * 5000 + 8 * 5000
    gpu = trainer_bytes(HELD, Layout(ranks=1), **values, on_cpu=False, activations=10, logits=5)
    assert gpu.peak == 20 * 5000 + 4 * BUCKET + 15


def test_muon_by_hand() -> None:
    """Of 1000 dense parameters 600 are in matrices, and so are all of experts; these have one moment less."""
    held = Held(dense=1000, experts=4000, largest=700, block=900, matrices=600, matrix=50)
    values = {"dtype": "fp32", "reference": False, "optimizer": "muon"}
    alone = trainer_bytes(held, Layout(ranks=1), kind="torch", on_cpu=True, **values)
    assert alone.optimiser == 8 * 400 + 4 * 4600
    assert alone.step == max(8 * 700, 4 * 700 + 4 * 4 * 50), "of AdamW, or what is one step ahead and Newton-Schulz"
    dealt = trainer_bytes(held, Layout(ranks=8, expert_parallel=4), kind="deepspeed", on_cpu=True, **values)
    matrices = 600 / 8 + 4000 / 2
    assert dealt.optimiser == 12 * 400 / 8 + 8 * matrices
    flat, ahead = 4 * (1000 / 8 + 2000), 4 * matrices + 4 * 4 * 50
    assert dealt.step == max(flat, flat + ahead - dealt.gradients)
    away = trainer_bytes(
        held, Layout(ranks=1, zero_stage=2, offload="optimizer"), kind="deepspeed", on_cpu=False, **values
    )
    assert away.host == 12 * 400 + 8 * 4600 + 4 * 5000


def test_a_dtype_that_nobody_has_is_a_mistake_of_ours() -> None:
    with pytest.raises(KeyError):
        states(dtype="fp4", ranks=1)
