"""A folder full of files named like the modules that a run imports: none of them is imported, in no process."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.e2e.runs import GRPO_ONLY, LOCAL, hide_modules

RLKIT = Path(sys.executable).with_name("rlkit")
REWARD = """
from spread_beside import spread
from rewards import Sample

def judge(completion, answer):
    return spread(completion)
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    hide_modules(tmp_path)
    (tmp_path / "spread_beside.py").write_text("def spread(text):\n    return sum(text.encode()) % 97 / 97\n")
    (tmp_path / "rewards.py").write_text(REWARD)
    return tmp_path


def run(folder: Path, *command: str | Path) -> str:
    env = {**os.environ, "PYTHONPATH": ""}
    done = subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.slow
def test_the_command_runs_where_everything_is_hidden(folder: Path) -> None:
    """With a recipe and a reward of the user's own, both named like packages of ours, and what they import."""
    (folder / "recipes.py").write_text(
        "import spread_beside\nfrom recipes import grpo\n\ndef main(argv):\n    grpo.main([*argv, 'algo.steps=1'])\n"
    )
    words = [*GRPO_ONLY, *LOCAL, "reward=rewards.py:judge", "output_dir=out"]
    printed = run(folder, RLKIT, "run", "./recipes.py", *words)
    assert "held-out accuracy after GRPO" in printed and (folder / "out" / "model" / "model.safetensors").exists()


@pytest.mark.slow
def test_python_runs_a_recipe_as_a_module_there(folder: Path) -> None:
    words = [*GRPO_ONLY, *LOCAL, "algo.steps=0", "reward=rewards.py:judge", "dry_run=true"]
    printed = run(folder, sys.executable, "-m", "recipes.grpo", *words)
    assert "the data, the model and the reward are in order" in printed and "seed: 0" in printed
