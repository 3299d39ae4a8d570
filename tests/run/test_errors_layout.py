"""Ways to share a model out that do not work are refused before anything starts, with one that does."""

from __future__ import annotations

from pathlib import Path

import pytest

from recipes import extend_context, sft
from rlkit.config import SftRun
from rlkit.config.compose import load_config
from tests.hf_folders import make, save
from tests.run.test_errors import refusal


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (
            ["trainer.expert_parallel=4"],
            "trainer.expert_parallel=4 does not divide trainer.num_ranks=6: every group of",
        ),
        (
            ["trainer.expert_parallel=3"],
            "trainer.expert_parallel=3: model.architecture has n_routed_experts=8, which 3 ranks cannot divide",
        ),
        (
            ["trainer.expert_parallel=2", "++model.architecture.first_k_dense_replace=4"],
            "trainer.expert_parallel=2: model.architecture has no layer with routed experts; set it to 1",
        ),
        (["trainer.offload=all"], "trainer.offload=all moves weights that trainer.zero_stage=3 has shared out, but it"),
        (["trainer.zero_stage=3", "trainer.lora={}"], "trainer.zero_stage=3 with trainer.lora: the frozen weights,"),
        (
            ["trainer.optimizer=muon", "trainer.lora={}"],
            "trainer.optimizer=muon with trainer.lora: Muon makes the step of a whole matrix orthogonal, and an "
            "adapter is two factors of one; set trainer.optimizer=adamw, or trainer.lora to null",
        ),
        (
            ["trainer.pipeline=2", "trainer.optimizer=muon"],
            "trainer.optimizer=muon with trainer.pipeline=2: DualPipeV with Muon was not tried; set "
            "trainer.optimizer=adamw, or trainer.pipeline=1",
        ),
        (["trainer.pipeline=0"], "trainer.pipeline=0"),
        (["trainer.pipeline=4"], "trainer.pipeline=4 does not divide trainer.num_ranks=6: 4 ranks hold all layers"),
        (
            ["trainer.pipeline=2", "trainer.expert_parallel=2"],
            "trainer.expert_parallel=2 does not divide the 3 ranks of a stage (trainer.num_ranks=6, "
            "trainer.pipeline=2): every group of 2 ranks holds all experts once; change one of them",
        ),
        (
            ["trainer.pipeline=3"],
            "trainer.pipeline=3: model.architecture has num_hidden_layers=4, less than two for every stage; set it to "
            "2 or less",
        ),
        (
            ["trainer.pipeline=2", "trainer.zero_stage=2"],
            "trainer.zero_stage=2 with trainer.pipeline=2: DualPipeV adds up a whole step before it reduces gradients; "
            "set trainer.zero_stage=1, or trainer.pipeline=1",
        ),
        (
            ["trainer.pipeline=2", "trainer.offload=optimizer"],
            "trainer.offload=optimizer with trainer.pipeline=2: DualPipeV with offload was not tried; set "
            "trainer.offload=none, or trainer.pipeline=1",
        ),
        (
            ["trainer.pipeline=2", "trainer.lora={}"],
            "trainer.lora={...} with trainer.pipeline=2: adapters are not spread over stages; set trainer.lora=null, "
            "or trainer.pipeline=1",
        ),
    ],
)
def test_layouts_that_do_not_work(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, overrides: list[str], words: str
) -> None:
    ranks = ["cluster=ray", "trainer=deepspeed", "trainer.num_ranks=6", "algo.prompts_per_step=6"]
    assert words in refusal(capsys, tmp_path, *ranks, *overrides)


def test_stacks_that_muon_cannot_take_apart(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """transformers keeps experts in stacks, whose order is the business of each of its models."""
    folder = save(make("deepseek"), tmp_path / "theirs")
    words = ["model=hf", f"model.path={folder}", "trainer.optimizer=muon", "engine.max_model_len=96"]
    printed = refusal(capsys, tmp_path, *words)
    assert f"trainer.optimizer=muon: model.path={folder} has stacks of matrices in an order that rlkit does" in printed
    assert printed.rstrip().endswith("and Muon needs each matrix on its own; set trainer.optimizer=adamw")


def test_a_batch_is_dealt_to_pipelines_and_not_to_their_ranks(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    ranks = ["cluster=ray", "trainer=deepspeed", "trainer.num_ranks=16", "trainer.pipeline=2"]
    printed = refusal(capsys, tmp_path, *ranks, "sft.batch_size=12", recipe=sft)
    assert "sft.batch_size=12 cannot be dealt evenly to trainer.num_ranks=16 / trainer.pipeline=2 = 8 pip" in printed
    assert load_config("sft", SftRun, [*ranks, "sft.batch_size=8"]).trainer.num_shares == 8


def test_stages_that_would_start_from_fp8(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    words = ["cluster=ray", "trainer=deepspeed", "trainer.dtype=fp8_weights"]
    printed = refusal(capsys, tmp_path, *words, recipe=extend_context)
    assert "trainer.dtype=fp8_weights: a stage starts from the export of the one before, which would be in" in printed
