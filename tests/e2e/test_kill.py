"""SIGKILL in the middle of a GRPO step: nothing is left running, and the resumed run ends with the same bits."""

from __future__ import annotations

import json
import os
import signal
import time
from pathlib import Path

import pytest
import torch

from tests.e2e.runs import ALL_CORES, GRPO_ONLY, SPREAD_REWARD, final_weights, finish_here, start

# A group is judged while others are sampled or wait for their verdict: a kill from there is in the middle of a step.
KILLING_REWARD = (
    SPREAD_REWARD
    + """
import os, signal, time
calls = 0

def deadly(completions, answer, **columns):
    global calls
    calls += 1
    if calls == int(os.environ.get("DIE_AT_CALL", "0")):
        os.kill(os.getppid(), signal.SIGKILL)
        time.sleep(600)  # and hangs itself
    return [spread(completion, "") for completion in completions]
"""
)


def processes_of(mark: str) -> list[str]:
    """Command lines of all processes that carry a mark in their environment, wherever they hang in the tree."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            try:
                if mark.encode() in (entry / "environ").read_bytes():
                    found.append((entry / "cmdline").read_bytes().replace(b"\0", b" ").decode()[:80])
            except OSError:
                continue  # it ended meanwhile
    return found


@pytest.mark.slow
@pytest.mark.usefixtures("ray")  # for the two lives that nobody ends; the other one starts its own
@pytest.mark.parametrize(
    ("place", "call"),
    [
        # In step 4: step 3 is done, not measured, again.
        (["cluster=local", "engine=torch", "checkpoint.every=2", "evaluation.every=1"], 30),
        (["cluster=ray", "trainer.num_ranks=2", "trainer.expert_parallel=2"], 14),
    ],
    ids=["local", "ray"],
)
def test_killed_and_resumed_equals_uninterrupted(place: list[str], call: int, tmp_path: Path) -> None:
    plugin = tmp_path / "plugin.py"
    plugin.write_text(KILLING_REWARD)
    common = [*GRPO_ONLY, f"reward={plugin}:deadly", "reward.workers=1", "checkpoint.every=1", *place]
    common += ["data.eval_size=4", "trainer.bias_update_speed=0.001", "trainer.balance_coef=1e-4", *ALL_CORES]
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    finish_here("grpo", *common, f"output_dir={whole}")

    # A call is a group: 4 in each evaluation, of which one comes before; 4 in each step. So call 14 is inside step 3.
    mark = f"RLKIT_TEST_RUN={tmp_path}"
    env = {"DIE_AT_CALL": str(call), "RLKIT_TEST_RUN": str(tmp_path)}
    process = start("grpo", *common, f"output_dir={killed}", env=env)
    process.wait()
    died = time.monotonic()
    assert process.returncode == -signal.SIGKILL, process.stdout.read() if process.stdout else ""
    while processes_of(mark):
        assert time.monotonic() - died < 30, f"still running: {processes_of(mark)}"
        time.sleep(0.2)
    if process.stdout:
        process.stdout.close()
    assert not (killed / "model").exists()

    printed = finish_here("grpo", *common, f"output_dir={killed}", "resume=auto")
    assert "resuming after grpo step 2" in printed
    expected, found = final_weights(whole), final_weights(killed)
    assert expected.keys() == found.keys()
    assert any(tensor.any() for name, tensor in expected.items() if name.endswith("e_score_correction_bias"))
    for name, tensor in expected.items():
        assert torch.equal(found[name], tensor), f"{name} differs by {(found[name] - tensor).abs().max()}"
    assert steps(killed) == steps(whole)


def steps(folder: Path) -> list[tuple]:
    """What the record says of every step, but for times."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    timed = ("_s", "tok_s")
    return [tuple((k, v) for k, v in line.items() if not k.endswith(timed)) for line in lines]
