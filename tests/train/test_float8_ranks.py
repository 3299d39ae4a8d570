"""FP8 where ranks share out the experts: the same step as alone, and rows that travel in half the bytes."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

from rlkit.config import TrainerConfig
from rlkit.quant import dequantise_tiles, quantise_tiles
from rlkit.types import Batch
from tests.model.float8 import TILED
from tests.model.tiny import seeded
from tests.train.test_float8 import sentences
from tests.train.test_trainer import CFG

pytestmark = pytest.mark.slow
WIDTH = 256
COUNTS = ([3, 0, 5, 2], [0, 0, 70, 1])
"""Rows of each of two ranks for each of four experts, two a rank; one expert gets none."""


class Layout(NamedTuple):
    """One way to take the same step."""

    dtype: str
    expert_parallel: int = 1
    fp8_dispatch: bool = False
    zero_stage: int = 1
    recompute: bool = False

    def cfg(self, num_ranks: int) -> TrainerConfig:
        """No clipping and no decay, so that Adam's first moment is a tenth of the gradient."""
        return replace(CFG, kind="deepspeed", num_ranks=num_ranks, grad_clip=1e9, weight_decay=0.0, **self._asdict())


LAYOUTS = [
    *(Layout(dtype) for dtype in ("bf16", "fp8", "fp8_weights")),
    *(Layout(dtype, 2) for dtype in ("bf16", "fp8", "fp8_weights")),
    Layout("fp8", 2, fp8_dispatch=True),
    *(Layout(dtype, 2, zero_stage=3, recompute=True) for dtype in ("fp8", "fp8_weights")),
]


def batch() -> Batch:
    return sentences(0)


def rows_of(rank: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Rows in bf16 and their gates, how many go to each expert, and the gradient of what comes back."""
    random = torch.Generator().manual_seed(rank)
    num = sum(COUNTS[rank])
    rows, grad = (torch.randn(num, WIDTH, generator=random).bfloat16() for _ in range(2))
    return rows, torch.ones(num, 1), torch.tensor(COUNTS[rank]), grad


@pytest.fixture(scope="module")
def seen(tmp_path_factory: pytest.TempPathFactory) -> dict[int, dict[Any, Any]]:
    """What rank 0 saw, by number of ranks."""
    folder = tmp_path_factory.mktemp("float8")
    seeded(TILED).save_checkpoint(folder / "model", dtype="fp32")
    found = {}
    for world_size in (1, 2):
        out = folder / f"{world_size}.pt"
        command = [sys.executable, "-W", "ignore", "-m", "tests.train.one_float8_rank", str(folder)]
        ranks = [
            subprocess.Popen(
                [*command, str(rank), str(world_size), str(out)],
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )
            for rank in range(world_size)
        ]
        for rank in ranks:
            printed, _ = rank.communicate()
            assert rank.returncode == 0, printed
        found[world_size] = torch.load(out, weights_only=False)
    return found


def distance(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> float:
    """Between two gradients, relative to the second, over all parameters together."""
    assert ours.keys() == theirs.keys()
    a, b = (torch.cat([found[name].flatten().double() for name in theirs]) for found in (ours, theirs))
    return float((a - b).norm() / b.norm())


@pytest.mark.parametrize("layout", [each for each in LAYOUTS if each.dtype != "bf16"], ids=str)
def test_sharing_the_work_changes_less_than_fp8_does(layout: Layout, seen: dict[int, dict[Any, Any]]) -> None:
    """Tiles along the tokens depend on which tokens share a rank, so that gradients are equal up to FP8's rounding."""
    shared, alone, plain = seen[2][layout], seen[1][Layout(layout.dtype)], seen[1][Layout("bf16")]
    rounding, found = (distance(alone["moments"], plain["moments"]), distance(shared["moments"], alone["moments"]))
    print(f"{layout}: gradient {found:.1e} from one rank's, which is {rounding:.1e} from bf16's")
    assert 0 < rounding < 0.5 and found < rounding
    off = abs(shared["numbers"]["loss"] - alone["numbers"]["loss"])
    assert off <= 5e-3 * alone["numbers"]["loss"]


@pytest.mark.parametrize("dtype", ["fp8", "fp8_weights"])
def test_zero_3_and_recomputation_change_nothing(dtype: str, seen: dict[int, dict[Any, Any]]) -> None:
    """A weight is in pieces between forward and backward, and its codes are made twice."""
    first, second = (seen[2][Layout(dtype, 2, zero_stage=stage, recompute=stage == 3)] for stage in (1, 3))
    assert first["numbers"]["loss"] == second["numbers"]["loss"]
    assert distance(second["moments"], first["moments"]) <= 1e-6


def test_half_the_bytes_go_to_the_experts(seen: dict[int, dict[Any, Any]]) -> None:
    """Of the four ways of a row (there and back, forward and backward) two need 1 + 4 / 128 instead of 2 bytes."""
    ways = [seen[2][Layout("fp8", 2, fp8_dispatch=on)]["bytes"] for on in (False, True)]
    print(f"{ways[0]:,} bytes in bf16, {ways[1]:,} with FP8 on the way there")
    assert ways[1] / ways[0] == pytest.approx((2 * 2 + 2 * (1 + 4 / 128)) / 8, abs=0.02)
    assert seen[1][Layout("fp8")]["bytes"] == 0, "one rank sends nothing"


def at_expert(rows: tuple[Tensor, Tensor], rank: int) -> Tensor:
    """What stands before the two experts of a rank: for each of them the rows of rank 0, then those of rank 1."""
    parts = [x.split(counts) for x, counts in zip(rows, COUNTS, strict=True)]
    return torch.cat([parts[source][expert] for expert in (2 * rank, 2 * rank + 1) for source in (0, 1)])


@pytest.mark.parametrize("in_float8", [False, True])
def test_rows_go_there_in_fp8_and_come_back_as_they_are(in_float8: bool, seen: dict[int, dict[Any, Any]]) -> None:
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


def test_what_travels(seen: dict[int, dict[Any, Any]]) -> None:
    """Of rank 0's 10 rows: counts, rows, gates and outputs; the gradients of outputs and rows. 5 and 74 rows arrive."""
    sent, received = sum(COUNTS[0]), sum(counts[0] + counts[1] for counts in COUNTS)
    b, f, u = torch.bfloat16, torch.float32, torch.uint8
    there = {False: lambda n: [(b, 2 * WIDTH * n)], True: lambda n: [(u, WIDTH * n), (f, 4 * n * WIDTH // 128)]}
    for in_float8, way in there.items():
        back = [(b, 2 * WIDTH * received)]
        expected = [(torch.int64, 32), *way(sent), (f, 4 * sent), *back, *way(sent), *back]
        assert seen[2][in_float8]["bytes"] == expected
