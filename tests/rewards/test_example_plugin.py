"""The example package of the docs installs, is found by name, and does what it says."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import rewards
from rewards import Reward, RewardError, Sample

ROOT = Path(__file__).resolve().parents[2]
PLUGIN = ROOT / "docs" / "example-plugin"
MODULE = str(PLUGIN / "rlkit_brevity.py")


@pytest.mark.slow
def test_it_installs_and_is_found_by_name(tmp_path: Path) -> None:
    source, target = tmp_path / "source", tmp_path / "target"
    shutil.copytree(PLUGIN, source)  # building leaves files behind
    install = [
        "pip",
        "install",
        "--no-deps",
        "--no-build-isolation",
        "--no-index",
        "--target",
        str(target),
        str(source),
    ]
    done = subprocess.run([sys.executable, "-m", *install], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    script = (
        "import json, pickle, rewards; judge = rewards.load('brevity', limit=20);"
        "sample = rewards.Sample('', '<think></think><answer>7</answer>', meta={'answer': '7'});"
        "again = pickle.loads(pickle.dumps(judge))([sample])[0].value;"
        "print(json.dumps([rewards.names(), judge([sample])[0].value, again]))"
    )
    env = {**os.environ, "PYTHONPATH": f"{target}{os.pathsep}{ROOT}"}
    done = subprocess.run([sys.executable, "-c", script], env=env, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    names, value, again = json.loads(done.stdout)
    assert {"brevity", "few_words", "math"} <= set(names)
    assert value == again == pytest.approx(20 / 33)  # 33 characters


def test_its_rewards() -> None:
    brevity = rewards.load(f"{MODULE}:brevity", limit=66)
    texts = [
        "</think><answer>7</answer>",
        "x" * 106 + "</think><answer>7</answer>",
        "</think><answer>8</answer>",
        "</think><answer>7</think><answer>7</answer>",
        "<think>hm <answer>7</answer>",  # the thought is never closed
    ]
    found = brevity([Sample("", text, meta={"answer": "7"}) for text in texts])
    assert [reward.value for reward in found] == [1.0, 0.5, 0.0, 0.0, 0.0]
    assert brevity([Sample("", "</think><answer></answer>", meta={"answer": ""})]) == [Reward(None, "no_gold")]
    few = rewards.load(f"{MODULE}:FewWords", most=2)
    samples = [Sample("", "one two"), Sample("", "one two three"), Sample("", "one two", finish_reason="length")]
    assert few(samples) == [Reward(0.0, "brief"), Reward(-1.0, "wordy"), Reward(-1.0, "cut_off")]
    with pytest.raises(RewardError, match="most=0 must be at least 1 word"):
        rewards.load(f"{MODULE}:FewWords", most=0)
