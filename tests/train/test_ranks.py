"""Spreading a batch over ranks changes neither its gradient nor the experts' load: real DeepSpeed, processes."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

pytestmark = pytest.mark.slow
CASES = [(1, "all"), (2, "all"), (1, "few"), (1, "mtp"), (2, "mtp few")]
"""ZeRO stage and kind. Few: one rank has no sample; mtp: SFT with multi-token prediction."""
Steps = dict[tuple[int, str], dict[str, Any]]
"""What rank 0 saw of one optimiser step in each case."""


def steps(folder: Path, world_size: int) -> Steps:
    out = folder / f"{world_size}.pt"
    command = [sys.executable, "-W", "ignore", "-m", "tests.train.one_rank", str(folder / f"store-{out.stem}")]
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
    return torch.load(out)


@pytest.fixture(scope="module")
def one_and_two(tmp_path_factory: pytest.TempPathFactory) -> list[Steps]:
    """Processes start slowly, so that each takes the steps of all cases."""
    folder = tmp_path_factory.mktemp("ranks")
    return [steps(folder, world_size) for world_size in (1, 2)]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_two_ranks_have_the_gradient_the_load_and_the_biases_of_one(
    case: tuple[int, str], one_and_two: list[Steps]
) -> None:
    """The loss of multi-token prediction is shared out like the rest."""
    one, two = (seen[case] for seen in one_and_two)
    mtp = "mtp" in case[1]
    ours = torch.cat([two["moments"][name].flatten() for name in one["moments"]])
    theirs = torch.cat([moment.flatten() for moment in one["moments"].values()])
    assert theirs.norm() > 0
    assert float((ours - theirs).norm() / theirs.norm()) <= 1e-5
    policy = {"kl", "clip_fraction", "logprob_gap"}
    expected = {"loss", "entropy", "grad_norm", "max_violation", "balance_loss"} | ({"mtp_loss"} if mtp else policy)
    assert two["numbers"].keys() == one["numbers"].keys() >= expected
    assert two["numbers"] == pytest.approx(one["numbers"], rel=1e-5, abs=1e-7)
    [alone], [first, second] = one["biases"], two["biases"]
    assert torch.equal(first, alone) and torch.equal(second, alone), "bit for bit, on both ranks"
    assert ((alone - one["before"]).abs() > 0.009).any(dim=1).all(), "the biases of every layer moved"
