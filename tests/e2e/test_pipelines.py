"""A pipeline of real recipes: SIGKILL within its second stage, and the same command ends with the same bits."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch

import rewards
from recipes import distill, v3_post
from rewards import Sample
from tests.e2e.runs import LOCAL, TINY, final_weights, finish_here, killed_by
from tests.e2e.test_kill import KILLING_REWARD

pytestmark = pytest.mark.slow


def test_r1_zero_killed_in_its_second_stage_ends_as_if_nobody_had(tmp_path: Path) -> None:
    plugin = tmp_path / "plugin.py"
    plugin.write_text(KILLING_REWARD)
    words = [*TINY, *LOCAL, f"rl.reward={plugin}:deadly", "reward.workers=1", "checkpoint.every=1", "data.eval_size=4"]
    words += ["base.sft.steps=3", "rl.algo.steps=3"]
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    printed = finish_here("r1_zero", *words, f"output_dir={whole}")
    assert "stage 1/2 base: sft in" in printed and "stage 2/2 rl: grpo in" in printed

    # A call is a group: 4 in the evaluation before, 4 in each step. So call 14 is inside step 3.
    assert killed_by("r1_zero", *words, f"output_dir={killed}", env={"DIE_AT_CALL": "14"}) == -signal.SIGKILL
    assert (killed / "1-base" / "stage.json").exists() and not (killed / "2-rl" / "stage.json").exists()
    base = (killed / "1-base" / "model" / "model.safetensors").stat().st_mtime_ns

    printed = finish_here("r1_zero", *words, f"output_dir={killed}")
    assert "base: sft in" in printed and "done before" in printed and "resuming after grpo step 2" in printed
    assert (killed / "1-base" / "model" / "model.safetensors").stat().st_mtime_ns == base
    expected, found = final_weights(whole, "2-rl/model"), final_weights(killed, "2-rl/model")
    assert expected.keys() == found.keys() and all(torch.equal(found[name], expected[name]) for name in expected)
    start_of_rl = final_weights(whole, "1-base/model")
    assert any(not torch.equal(expected[name], start_of_rl[name]) for name in expected), "the second stage learned"
    rows = [json.loads((whole / stage / "stage.json").read_text()) for stage in ("1-base", "2-rl")]
    assert [row["recipe"] for row in rows] == ["sft", "grpo"] and all(row["tokens"] > 0 for row in rows)


JUDGES = """
def spread(completion: str) -> float:
    return (sum(completion.encode()) % 97) / 96

def often(completion: str) -> float:
    return float(sum(completion.encode()) % 3 > 0)
"""
SMALL = [
    "model.architecture.hidden_size=64",
    "model.architecture.num_hidden_layers=2",
    "model.architecture.intermediate_size=64",
    "model.architecture.moe_intermediate_size=32",
    "engine.threads=1",
    "trainer.threads=1",
    "reward.workers=1",
    "logging.tensorboard=false",
    "checkpoint.every=1",
    "data.train_size=40",
    "sft.batch_size=16",
]
DEADLY = ["cold_start", "rejection_sampling", "all_scenarios_rl"]
RM = ["reward_model", "reward_model"]


def small(plugin: Path, *, sft: Sequence[str], grpo: Sequence[str]) -> list[str]:
    """Words for two steps of every stage; what a rule would judge is judged by what always differs."""
    words = [*LOCAL, *SMALL, *(f"{stage}.data.eval_size=4" for stage in (*sft, *grpo))]
    words += ["algo.prompts_per_step=2", "algo.group_size=4"]
    words += [f"{stage}.sft.steps=2" for stage in sft]
    words += [f"{stage}.algo.steps=2" for stage in grpo]
    words += [
        "rejection_sampling.data.train_size=30",
        "rejection_sampling.samples=2",
        "rejection_sampling.reward.kwargs={}",
    ]
    words += [f"rejection_sampling.reward={plugin}:often", "rejection_sampling.rows_per_call=10"]
    words += [f"preferences.reward={plugin}:spread", "preferences.reward.kwargs={}", "preferences.data.train_size=40"]
    words += ["preferences.selection.pair_margin=0.05", "preferences.rows_per_call=10", "preferences.samples=3"]
    return [
        *words,
        "reward_model.data.eval_size=4",
        "reward_model.reward_model.steps=3",
        "reward_model.reward_model.batch_size=4",
    ]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """R1 whole, and killed in one stage of each kind."""
    folder = tmp_path_factory.mktemp("r1")
    (folder / "plugin.py").write_text(JUDGES)
    words = small(
        folder / "plugin.py", sft=["base", "cold_start", "sft_again"], grpo=["reasoning_rl", "all_scenarios_rl"]
    )
    words += [f"reasoning_rl.reward={folder}/plugin.py:spread", "reasoning_rl.reward.kwargs={}"]
    words += ["base.checkpoint.every=20", "base.sft.steps=60"]
    words += ["base.sft.schedule={lr: 5e-3, warmup_steps: 5, kind: cosine, final_ratio: 0.1}"]
    done = subprocess.run(
        [sys.executable, "-m", "tests.e2e.dying", "r1", str(folder), ",".join(DEADLY), *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-5000:]
    return folder


def test_r1_killed_again_and_again_ends_as_if_nobody_had(folder: Path) -> None:
    deaths = json.loads((folder / "deaths.json").read_text())
    assert [stage.partition("-")[2] for stage, *_, died in deaths if died] == DEADLY
    stages = ["base", "cold_start", "reasoning_rl", "rejection_sampling", "sft_again", "preferences", "reward_model"]
    for number, stage in enumerate([*stages, "all_scenarios_rl"], start=1):
        whole, killed = (folder / life / f"{number}-{stage}" for life in ("whole", "killed"))
        if stage in ("rejection_sampling", "preferences"):
            assert rows_of(whole / "dataset") == rows_of(killed / "dataset"), stage
        else:
            model = whole / "model" / "model.safetensors"
            assert model.read_bytes() == (killed / "model" / model.name).read_bytes(), stage
    pairs = [rows_of(folder / life / "6-preferences" / "preferences") for life in ("whole", "killed")]
    assert pairs[0] == pairs[1] != []
    kept = [Sample("", row["response"]) for row in rows_of(folder / "killed" / "4-rejection_sampling" / "dataset")]
    assert {verdict.value for verdict in rewards.load(f"{folder}/plugin.py:often")(kept)} == {1.0}


def test_v3s_post_training_runs_to_its_end(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = small(folder / "plugin.py", sft=["expert_sft", "general_sft"], grpo=["expert_rl", "rl"])
    words += [f"expert_rl.reward={folder}/plugin.py:spread", "expert_rl.reward.kwargs={}"]
    v3_post.main([*words, f"base={folder}/whole/1-base/model", f"output_dir={folder}/v3"])
    rows = [line.split()[:2] for line in capsys.readouterr().out.splitlines() if " -> " in line]
    assert rows == [["expert_sft", "sft"], ["expert_rl", "grpo"], ["general_sft", "sft"], RM, ["rl", "grpo"]]


def test_a_student_learns_what_its_teacher_said(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = [*LOCAL, *SMALL, "student.data.eval_size=4", "student.sft.steps=2", "generate.data.train_size=30"]
    words += [f"generate.reward={folder}/plugin.py:often", "generate.rows_per_call=10"]
    distill.main([*words, f"base={folder}/whole/1-base/model", f"output_dir={folder}/distill"])
    kept = rows_of(folder / "distill" / "1-generate" / "dataset")
    assert kept and "generate  distill_generate" in capsys.readouterr().out
    assert (folder / "distill" / "2-student" / "model" / "model.safetensors").exists()


def rows_of(folder: Path) -> list[dict[str, Any]]:
    """The rows of a data job; a teacher is named by its folder."""
    rows = [row for file in sorted(folder.glob("*.parquet")) for row in pq.read_table(file).to_pylist()]
    return [{**row, "teacher": ""} for row in rows]
