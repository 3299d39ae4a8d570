"""A pipeline of real recipes: SIGKILL within its second stage, and the same command ends with the same bits."""

from __future__ import annotations

import json
import signal
from pathlib import Path

import pytest
import torch

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
