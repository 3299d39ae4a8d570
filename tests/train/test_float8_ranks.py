"""FP8 where ranks share out the experts: the same step as alone, and rows that travel in half the bytes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from rlkit.quant import dequantise_tiles, quantise_tiles
from rlkit.quant.fp8 import FLOAT8
from tests.train.ranks import run_ranks
from tests.train.test_ranks import Layout, assert_adds_up, assert_skipped, on, save_models

pytestmark = pytest.mark.slow
WIDTH = 256
COUNTS = ([3, 0, 5, 2], [0, 0, 70, 1])
"""Rows of each of two ranks for each of four experts, two a rank; one expert gets none."""


def _sft(dtype: str, expert_parallel: int = 1, zero_stage: int = 1, fp8_dispatch: bool = False) -> Layout:
    return Layout(dtype, zero_stage, "sft", 1000, expert_parallel, recompute=zero_stage == 3, fp8_dispatch=fp8_dispatch)


SFT = [
    *(_sft(dtype) for dtype in FLOAT8),
    *(_sft(dtype, 2) for dtype in FLOAT8),
    *(_sft(dtype, 2, zero_stage=3) for dtype in FLOAT8),
    _sft("fp8", 2, fp8_dispatch=True),
]
GRPO = [
    Layout("fp8_weights", 1, "grpo", 80),
    Layout("fp8", 1, "grpo", 80, 2),
    Layout("fp8_weights", 2, "grpo", 80, 2, offload="optimizer", recompute=True),
    Layout("fp8", 3, "grpo", 80, 2, offload="all", recompute=True),
]
BF16 = _sft("bf16")
LAYOUTS = [BF16, *SFT, *GRPO]
Found = dict[int, dict[Any, Any]]


def rows_of(rank: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Rows in bf16 and their gates, how many go to each expert, and the gradient of what comes back."""
    random = torch.Generator().manual_seed(rank)
    num = sum(COUNTS[rank])
    rows, grad = (torch.randn(num, WIDTH, generator=random).bfloat16() for _ in range(2))
    return rows, torch.ones(num, 1), torch.tensor(COUNTS[rank]), grad


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("float8")
    save_models(folder)
    return folder


@pytest.fixture(scope="module")
def seen(models: Path) -> Found:
    """What rank 0 saw, by number of ranks."""
    (one, two), _ = run_ranks("one_rank", models, ("float8_steps", 1), ("float8_steps", 2))
    return {1: one, 2: two}


def distance(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> float:
    """Between two gradients, relative to the second, over all parameters together."""
    assert ours.keys() == theirs.keys()
    a, b = (torch.cat([found[name].flatten().double() for name in theirs]) for found in (ours, theirs))
    return float((a - b).norm() / b.norm())


@on(1, 2, layouts=GRPO)
def test_packs_and_ranks_add_up_to_one_gradient(layout: Layout, num_ranks: int, seen: Found, models: Path) -> None:
    assert_adds_up(layout, num_ranks, seen[num_ranks][layout], models)


@on(1, 2, layouts=GRPO)
def test_a_gradient_or_loss_that_is_no_number_on_one_rank_skips_the_step_on_all(
    layout: Layout, num_ranks: int, seen: Found
) -> None:
    assert_skipped(num_ranks, seen[num_ranks][layout])


@pytest.mark.parametrize("layout", SFT, ids=str)
def test_sharing_the_work_changes_less_than_fp8_does(layout: Layout, seen: Found) -> None:
    """Tiles along the tokens depend on which tokens share a rank, so that gradients are equal up to FP8's rounding."""
    shared, alone, plain = seen[2][layout], seen[1][_sft(layout.dtype)], seen[1][BF16]
    rounding, found = (distance(alone["moments"], plain["moments"]), distance(shared["moments"], alone["moments"]))
    print(f"{layout}: gradient {found:.1e} from one rank's, which is {rounding:.1e} from bf16's")
    assert 0 < rounding < 0.5 and found < rounding
    off = abs(shared["numbers"]["loss"] - alone["numbers"]["loss"])
    assert off <= 5e-3 * alone["numbers"]["loss"]


@pytest.mark.parametrize("dtype", FLOAT8)
def test_zero_3_and_recomputation_change_nothing(dtype: str, seen: Found) -> None:
    """A weight is in pieces between forward and backward, and its codes are made twice."""
    first, second = (seen[2][_sft(dtype, 2, zero_stage=stage)] for stage in (1, 3))
    assert first["numbers"]["loss"] == second["numbers"]["loss"]
    assert distance(second["moments"], first["moments"]) <= 1e-6


def test_half_the_bytes_go_to_the_experts(seen: Found) -> None:
    """Of the four ways of a row (there and back, forward and backward) two need 1 + 4 / 128 instead of 2 bytes."""
    ways = [seen[2][_sft("fp8", 2, fp8_dispatch=there)]["bytes"] for there in (False, True)]
    print(f"{ways[0]:,} bytes in bf16, {ways[1]:,} with FP8 on the way there")
    assert ways[1] / ways[0] == pytest.approx((2 * 2 + 2 * (1 + 4 / 128)) / 8, abs=0.02)
    assert seen[1][_sft("fp8")]["bytes"] == 0, "one rank sends nothing"


def at_expert(rows: tuple[Tensor, Tensor], rank: int) -> Tensor:
    """What stands before the two experts of a rank: for each of them the rows of rank 0, then those of rank 1."""
    parts = [x.split(counts) for x, counts in zip(rows, COUNTS, strict=True)]
    return torch.cat([parts[source][expert] for expert in (2 * rank, 2 * rank + 1) for source in (0, 1)])


@pytest.mark.parametrize("in_float8", [False, True])
def test_rows_go_there_in_fp8_and_come_back_as_they_are(in_float8: bool, seen: Found) -> None:
    found = seen[2][in_float8]
    (rows_0, _, _, grad_0), (rows_1, _, _, grad_1) = rows_of(0), rows_of(1)

    def carried(x: Tensor) -> Tensor:
        return dequantise_tiles(*quantise_tiles(x, powers_of_two=True), torch.bfloat16) if in_float8 else x

    rows, grads = (carried(rows_0), carried(rows_1)), (carried(grad_0), carried(grad_1))
    factor = [torch.tensor([1] * sum(counts[:2]) + [2] * sum(counts[2:])).unsqueeze(1) for counts in COUNTS]
    for rank in (0, 1):
        here, ends = found["rows"][rank]
        assert torch.equal(here, at_expert(rows, rank))
        assert ends.tolist() == torch.tensor(COUNTS).sum(0).view(2, 2)[rank].cumsum(0).tolist()
        assert torch.equal(found["gradient of outputs"][rank], at_expert(grads, rank))
        assert torch.equal(found["back"][rank], rows[rank] * factor[rank]), "outputs are not rounded on their way back"
        assert torch.equal(found["gradient of rows"][rank], grads[rank] * factor[rank])
    if in_float8:
        assert not torch.equal(rows[0], rows_0)
        again = [dequantise_tiles(*quantise_tiles(x, powers_of_two=True), torch.bfloat16) for x in rows]
        assert all(torch.equal(x, y) for x, y in zip(again, rows, strict=True)), "the product rounds nothing more"


def test_what_travels(seen: Found) -> None:
    """Of rank 0's 10 rows: counts, rows, gates and outputs; the gradients of outputs and rows. 5 and 74 rows arrive."""
    sent, received = sum(COUNTS[0]), sum(counts[0] + counts[1] for counts in COUNTS)
    b, f, u = torch.bfloat16, torch.float32, torch.uint8
    there = {False: lambda n: [(b, 2 * WIDTH * n)], True: lambda n: [(u, WIDTH * n), (f, 4 * n * WIDTH // 128)]}
    for in_float8, way in there.items():
        back = [(b, 2 * WIDTH * received)]
        expected = [(torch.int64, 32), *way(sent), (f, 4 * sent), *back, *way(sent), *back]
        assert seen[2][in_float8]["bytes"] == expected
