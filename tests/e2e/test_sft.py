"""Recipe sft on conversations, texts with holes and streams, mixed; killed and continued, with adapters, and on Ray."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from recipes import sft
from rlkit.config import SftRun
from rlkit.config.compose import load_config
from rlkit.run.prepare import prepare
from rlkit.types import Demonstration
from tests.data.test_demonstrations import documents, sums, talks, write
from tests.e2e.runs import LOCAL, TINY, final_weights, finish_here

pytestmark = pytest.mark.slow

SMALL = [word for word in TINY if not word.startswith(("algo.", "data."))]
DYING = """
import os, signal, sys
from rlkit.train.trainer import ModelTrainer
from recipes import sft
calls, update = 0, ModelTrainer.update
def dies(self, *args):
    global calls
    calls += 1
    if calls == 8:
        os.kill(os.getpid(), signal.SIGKILL)
    return update(self, *args)
ModelTrainer.update = dies
sft.main(sys.argv[1:])
"""


def mixed(folder: Path) -> list[str]:
    """A run on three kinds of rows: conversations, a stream of texts with a long one, and questions with responses."""
    chats = write(folder / "chat.jsonl", talks(40))
    code = documents(9)
    code.insert(6, {"content": "x = 1\n" * 99})
    stream = write(folder / "code.jsonl", code)
    asked = write(folder / "sums.jsonl", sums(30))
    parts = [
        f"{{source: {chats}, weight: 2}}",
        f"{{source: {stream}, stream: true, text_column: content, fim_rate: 0.3}}",
        f"{{source: {asked}, response_column: r1, system_prompt: 'Reflect, then verify.'}}",
    ]
    return [
        *SMALL,
        *("data=file", "data.source=", f"data.mixture=[{', '.join(parts)}]", "data.eval_size=8", "data.too_long=drop"),
        *("sft.steps=10", "sft.held_out_every=3", "checkpoint.every=2", "engine.max_model_len=96"),
    ]


def steps(folder: Path) -> list[dict[str, Any]]:
    """What the record says of every step, but for times."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if not key.endswith(("_s", "tok_s"))} for line in lines]


def loss_in_transformers(folder: Path, shown: tuple[Demonstration, ...]) -> float:
    """The mean over trained tokens of -log p, by another implementation of the model."""
    model = AutoModelForCausalLM.from_pretrained(folder)
    terms = []
    for one in shown:
        with torch.no_grad():
            logprobs_TV = model(torch.tensor([one.tokens])).logits[0].double().log_softmax(-1)
        terms += [float(logprobs_TV[t - 1, one.tokens[t]]) for first, end in one.trained for t in range(first, end)]
    return -sum(terms) / len(terms)


def test_killed_and_resumed_with_a_stream_equals_uninterrupted(tmp_path: Path) -> None:
    given = [*mixed(tmp_path), *LOCAL]
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    sft.main([*given, f"output_dir={whole}"])
    command = [sys.executable, "-c", DYING, *given, f"output_dir={killed}"]
    assert subprocess.run(command, capture_output=True, env=os.environ).returncode == -signal.SIGKILL
    assert not (killed / "model").exists() and (killed / "best").exists()
    sft.main([*given, f"output_dir={killed}"])
    assert steps(killed) == steps(whole)
    for model in ("model", "best"):
        expected, found = final_weights(whole, model), final_weights(killed, model)
        assert expected.keys() == found.keys()
        assert all(torch.equal(found[name], tensor) for name, tensor in expected.items()), model
    assert (killed / "best" / "held_out.json").read_text() == (whole / "best" / "held_out.json").read_text()

    losses = {line["step"]: line["held_out_loss"] for line in steps(whole) if "held_out_loss" in line}
    assert list(losses) == [3, 6, 9, 10]
    best = json.loads((whole / "best" / "held_out.json").read_text())
    assert best["held_out_loss"] == min(losses.values()) == losses[best["step"]]
    held_out = prepare(load_config("sft", SftRun, [*given])).demonstrations.held_out
    assert loss_in_transformers(whole / "best", held_out) == pytest.approx(best["held_out_loss"], abs=1e-5)
    assert AutoTokenizer.from_pretrained(whole / "best").chat_template
    # 40 of 160 samples are of a stream whose rows behind the two held out are 4 that fit, a long one, and 3 that fit
    assert steps(whole)[-1]["left_out"] == 6
    report = (whole / "report.html").read_text()
    assert "lowest held-out loss" in report and "Held-out loss" in report
    assert not any(line["stage"] == "eval" for line in steps(whole)), "nothing is asked"


def test_epochs_with_adapters_keep_the_best_of_both(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = write(tmp_path / "chat.jsonl", talks(44))
    given = [
        *SMALL,
        *LOCAL,
        f"data={file}",
        "data.eval_size=4",
        "sft.steps=0",
        "sft.epochs=1.5",
        "sft.held_out_every=2",
    ]
    lora = "trainer.lora={rank: 2, alpha: 4, targets: all-linear}"
    sft.main([*given, lora, f"output_dir={tmp_path}/run"])
    assert [line["step"] for line in steps(tmp_path / "run")] == [1, 2, 3, 4], (
        "40 rows, 16 a step, one and a half times"
    )
    assert (tmp_path / "run" / "best" / "adapter" / "adapter_model.safetensors").is_file()
    printed = capsys.readouterr().out
    assert "held out " in printed and "best so far: " in printed
    sft.main([*given, lora, f"output_dir={tmp_path}/run"])
    assert "this run is complete" in capsys.readouterr().out, "epochs are the same number of steps again"


def test_conversations_on_ray_with_shared_experts_and_then_in_a_pipeline(tmp_path: Path, ray: None) -> None:
    """Two ranks share out the experts; the last steps are taken again by two stages of layers, from the checkpoint."""
    layers = "model.architecture.num_hidden_layers=4"
    given = [
        *mixed(tmp_path),
        layers,
        "sft.steps=6",
        "engine=torch",
        "trainer.num_ranks=2",
        f"output_dir={tmp_path}/run",
    ]
    finish_here("sft", *given, "trainer.expert_parallel=2", "trainer.zero_stage=3")
    first = steps(tmp_path / "run")
    for name in ("model", "best", "checkpoints/sft-000006"):
        shutil.rmtree(tmp_path / "run" / name)
    assert "resuming after sft step 4" in finish_here("sft", *given, "trainer.pipeline=2")
    second = steps(tmp_path / "run")
    assert [line["step"] for line in second] == [1, 2, 3, 4, 5, 6] and second[:4] == first[:4]
    for one, other in zip(first[4:], second[4:], strict=True):
        assert other["loss"] == pytest.approx(one["loss"], abs=1e-4) and other["tokens"] == one["tokens"]
    assert second[5]["held_out_loss"] == pytest.approx(first[5]["held_out_loss"], abs=1e-4)
    held_out = prepare(load_config("sft", SftRun, given)).demonstrations.held_out
    best = json.loads((tmp_path / "run" / "best" / "held_out.json").read_text())
    assert loss_in_transformers(tmp_path / "run" / "best", held_out) == pytest.approx(best["held_out_loss"], abs=1e-5)
