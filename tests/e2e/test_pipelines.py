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
from rewards import Sample
from tests.e2e.runs import LOCAL, TINY, final_weights, finish, start
from tests.e2e.test_kill import KILLING_REWARD


@pytest.mark.slow
def test_r1_zero_killed_in_its_second_stage_ends_as_if_nobody_had(tmp_path: Path) -> None:
    plugin = tmp_path / "plugin.py"
    plugin.write_text(KILLING_REWARD)
    words = [*TINY, *LOCAL, f"rl.reward={plugin}:deadly", "reward.workers=1", "checkpoint.every=1", "data.eval_size=4"]
    words += ["base.sft.steps=3", "rl.algo.steps=3"]
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    printed = finish("r1_zero", *words, f"output_dir={whole}")
    assert "stage 1/2 base: sft in" in printed and "stage 2/2 rl: grpo in" in printed

    # A call is a group: 4 in the evaluation before, 4 in each step. So call 14 is inside step 3.
    process = start("r1_zero", *words, f"output_dir={killed}", env={"DIE_AT_CALL": "14"})
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    assert (killed / "1-base" / "stage.json").exists() and not (killed / "2-rl" / "stage.json").exists()
    base = (killed / "1-base" / "model" / "model.safetensors").stat().st_mtime_ns

    printed = finish("r1_zero", *words, f"output_dir={killed}")
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
    "base.checkpoint.every=20",
    "base.sft.steps=60",
    "base.sft.schedule={lr: 5e-3, warmup_steps: 5, kind: cosine, final_ratio: 0.1}",
]


def small(plugin: Path, *, sft: Sequence[str], grpo: Sequence[str]) -> list[str]:
    """Words for two steps of every stage; what a rule would judge is judged by what always differs."""
    words = [*LOCAL, *SMALL, *(f"{stage}.data.eval_size=4" for stage in ("base", *sft, *grpo))]
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


def survived(folder: Path, pipeline: str, words: Sequence[str]) -> list[str]:
    """Run a pipeline whole, and killed once in every stage; return the stages, of which both left the same."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.e2e.dying", pipeline, str(folder), *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-5000:]
    stages = [stage.name for stage in sorted((folder / "whole").glob("*-*"))]
    assert [stage for stage, *_, died in json.loads((folder / "deaths.json").read_text()) if died] == stages
    for stage in stages:
        whole, killed = folder / "whole" / stage, folder / "killed" / stage
        if (model := whole / "model" / "model.safetensors").exists():
            assert model.read_bytes() == (killed / "model" / model.name).read_bytes(), stage
        else:
            assert rows_of(whole / "dataset") == rows_of(killed / "dataset"), stage
    return stages


@pytest.mark.slow
def test_r1_killed_in_every_stage_ends_as_if_nobody_had(tmp_path: Path) -> None:
    plugin = tmp_path / "plugin.py"
    plugin.write_text(JUDGES)
    words = small(plugin, sft=["cold_start", "sft_again"], grpo=["reasoning_rl", "all_scenarios_rl"])
    words += [f"reasoning_rl.reward={plugin}:spread", "reasoning_rl.reward.kwargs={}"]
    stages = ["base", "cold_start", "reasoning_rl", "rejection_sampling", "sft_again", "preferences", "reward_model"]
    stages = [f"{number}-{stage}" for number, stage in enumerate([*stages, "all_scenarios_rl"], start=1)]
    assert survived(tmp_path, "r1", words) == stages
    pairs = [rows_of(tmp_path / life / "6-preferences" / "preferences") for life in ("whole", "killed")]
    assert pairs[0] == pairs[1] != []
    kept = [Sample("", row["response"]) for row in rows_of(tmp_path / "killed" / "4-rejection_sampling" / "dataset")]
    assert {verdict.value for verdict in rewards.load(f"{plugin}:often")(kept)} == {1.0}


@pytest.mark.slow
def test_distill_killed_in_every_stage_ends_as_if_nobody_had(tmp_path: Path) -> None:
    plugin = tmp_path / "plugin.py"
    plugin.write_text(JUDGES)
    words = [*LOCAL, *SMALL, "base.data.eval_size=4", "student.data.eval_size=4", "student.sft.steps=2"]
    words += [f"generate.reward={plugin}:often", "generate.data.train_size=30", "generate.rows_per_call=10"]
    assert survived(tmp_path, "distill", words) == ["1-base", "2-generate", "3-student"]


@pytest.mark.slow
def test_v3s_post_training_runs_to_its_end(tmp_path: Path) -> None:
    plugin = tmp_path / "plugin.py"
    plugin.write_text(JUDGES)
    words = small(plugin, sft=["expert_sft", "sft"], grpo=["expert_rl", "rl"])
    words += [f"expert_rl.reward={plugin}:spread", "expert_rl.reward.kwargs={}"]
    printed = finish("v3_post", *words, f"output_dir={tmp_path}/out")
    rows = [line.split()[:2] for line in printed.partition("\nstage ")[2].splitlines() if " -> " in line]
    assert ["expert_rl", "grpo"] in rows and ["rl", "grpo"] in rows and "stage 8/8 rl: grpo in" in printed


def rows_of(folder: Path) -> list[dict[str, Any]]:
    """The rows of a data job; a teacher is named by its folder."""
    return [{**row, "teacher": ""} for row in pq.read_table(folder).to_pylist()]
