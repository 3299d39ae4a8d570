"""Rewards that fail in a run: it stops before anything is lost, or counts what it could not judge and goes on."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch

from recipes import grpo
from rlkit.watch import read_metrics
from tests.e2e.runs import GRPO_ONLY, LOCAL, SPREAD_REWARD, final_weights

pytestmark = pytest.mark.slow

# The evaluation before GRPO judges 20 completions and every step 16, so call 60 is in step 3. Processes come and go, so
# calls are counted in a file.
TROUBLE = (
    SPREAD_REWARD
    + """
import pathlib, time
calls = pathlib.Path(__file__).with_suffix(".calls")

def count():
    with calls.open("a") as file:
        file.write(".")
    return calls.stat().st_size

def trouble(completion, answer):
    if count() == 60:
        TROUBLE_60
    return spread(completion, answer)

def never(completion):
    return None

def reasoned(completion, answer):
    from rewards import Reward
    value = spread(completion, answer)
    return Reward(value, "high" if value > 0.5 else "low: " + completion)
"""
)


def settings(folder: Path, plugin: Path, fn: str, *more: str) -> list[str]:
    return [*GRPO_ONLY, *LOCAL, f"reward={plugin}:{fn}", "reward.workers=1", f"output_dir={folder}", *more]


def write(path: Path, at_call_60: str) -> Path:
    path.write_text(TROUBLE.replace("TROUBLE_60", at_call_60))
    return path


def test_a_reward_that_raises_stops_the_run_and_the_corrected_one_goes_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The end is that of a run in which it never raised."""
    whole = tmp_path / "whole"
    grpo.main(settings(whole, write(tmp_path / "fine.py", "pass"), "trouble"))
    plugin, folder = write(tmp_path / "plugin.py", "raise ZeroDivisionError('no such unit')"), tmp_path / "run"
    common = settings(folder, plugin, "trouble", "checkpoint.every=1")
    with pytest.raises(SystemExit) as leaving:
        grpo.main(common)
    assert leaving.value.code == 1
    trace, _, message = capsys.readouterr().err.rpartition("error: ")
    line = 1 + next(n for n, text in enumerate(plugin.read_text().splitlines()) if "no such unit" in text)
    assert re.search(rf"raised ZeroDivisionError: no such unit at {plugin}:{line} .*\[prompt 'chain_sum/", message)
    assert trace.count("Traceback") == 2, "of the function and of what rewards makes of it, in the reward's process"
    assert f'File "{plugin}", line' in trace and "loop.py" not in trace
    assert [line["step"] for line in read_metrics(folder) if line["stage"] == "grpo"] == [1, 2]
    assert (folder / "report.html").exists()
    write(plugin, "pass")
    with pytest.raises(SystemExit):
        grpo.main(common)
    assert "began with another plugin.py: the file that reward.fn names" in capsys.readouterr().err
    (folder / "inputs.json").unlink()  # as the message says: this change is meant
    grpo.main(common)
    assert "resuming after grpo step 2" in capsys.readouterr().out
    expected, found = final_weights(whole), final_weights(folder)
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())


def test_a_reward_that_hangs_once_costs_one_rollout(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plugin = write(tmp_path / "plugin.py", "time.sleep(600)")
    grpo.main(settings(tmp_path / "run", plugin, "trouble", "reward.timeout=3"))
    lines = [line for line in read_metrics(tmp_path / "run") if line["stage"] == "grpo"]
    assert [line["masked"] for line in lines] == [0, 0, 1, 0]
    assert [line.get("reason/deadline") for line in lines] == [None, None, 1, None]
    assert [line["reward_p99_s"] >= 3 for line in lines] == [False, False, True, False]
    row = next(line for line in capsys.readouterr().out.splitlines() if line.strip().startswith("3/4 "))
    assert row.endswith("deadline 1")
    assert "1 rollouts had no verdict" in (tmp_path / "run" / "report.html").read_text()


def test_a_reward_that_says_nothing_stops_the_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Already in the evaluation before the first step: a run that cannot be judged is not worth its first hour."""
    plugin = write(tmp_path / "plugin.py", "pass")
    words = r"of 20 rollouts have no verdict \(no_verdict \d+\), and at most 5% may; let the reward return a number"
    with pytest.raises(SystemExit):
        grpo.main(settings(tmp_path / "run", plugin, "never"))
    assert re.search(words, capsys.readouterr().err.splitlines()[-1])


def test_reasons_are_in_the_record_and_in_the_step_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plugin = write(tmp_path / "plugin.py", "pass")
    grpo.main(settings(tmp_path / "run", plugin, "reasoned", "algo.steps=1"))
    [line] = [line for line in read_metrics(tmp_path / "run") if line["stage"] == "grpo"]
    counts = {key: value for key, value in line.items() if key.startswith("reason/")}
    assert counts.keys() <= {"reason/high", "reason/low"} and sum(counts.values()) == 16, counts
    first, second = sorted(counts.items(), key=lambda item: -item[1])
    row = next(line for line in capsys.readouterr().out.splitlines() if line.strip().startswith("1/1 "))
    assert row.endswith(f"  {first[0][7:]} {first[1]} {second[0][7:]} {second[1]}")
    assert 0 < line["reward_p50_s"] <= line["reward_p99_s"] < 1


def test_a_slower_deadline_is_no_other_run(tmp_path: Path) -> None:
    """What the message of a stopped run advises must be possible."""
    plugin = write(tmp_path / "plugin.py", "pass")
    grpo.main(settings(tmp_path / "run", plugin, "trouble", "algo.steps=1"))
    more = ["algo.steps=1", "reward.timeout=60", "reward.workers=2"]
    grpo.main([*(word for word in settings(tmp_path / "run", plugin, "trouble") if "workers" not in word), *more])
    assert json.loads((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()[0])["name"] == "before GRPO"
