"""The recipes as a user starts them, on real parts."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from recipes import grpo, sft, sft_then_grpo
from rlkit.algo.losses.base import TAKEN
from rlkit.cli import main as cli
from tests.e2e.runs import ALL_CORES, GRPO_ONLY, LOCAL, SPREAD_REWARD, TINY, finish, hide_modules

pytestmark = pytest.mark.slow

SFT_ONLY = [word for word in TINY if not word.startswith("algo.")]


def lines(folder: Path, stage: str) -> list[dict]:
    """The record of one stage."""
    every = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [line for line in every if line["stage"] == stage]


def test_sft_then_grpo_in_one_process(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plugin = tmp_path / "plugin.py"
    plugin.write_text(SPREAD_REWARD)
    sft_then_grpo.main([*TINY, *LOCAL, f"output_dir={tmp_path}", f"reward={plugin}:spread"])
    printed = capsys.readouterr().out
    for words in (
        "held-out accuracy before SFT",
        "held-out accuracy after SFT",
        "held-out accuracy after GRPO",
        "report:",
    ):
        assert words in printed
    assert [line["step"] for line in lines(tmp_path, "sft")] == [1, 2, 3, 4]
    assert [line["step"] for line in lines(tmp_path, "grpo")] == [1, 2, 3, 4]
    for stage in ("sft", "grpo"):
        trained = [line for line in lines(tmp_path, stage) if "loss" in line]
        assert all(line["max_violation"] == line["max_violation/1"] >= 1 for line in trained)
    learned = [line["kl"] for line in lines(tmp_path, "grpo")]
    assert learned[0] == pytest.approx(0.0, abs=1e-6) and learned[-1] > 1e-6, "what SFT made is the reference of GRPO"
    assert "  load " in printed
    assert [line["name"] for line in lines(tmp_path, "eval")] == ["before SFT", "after SFT", "after GRPO"]
    assert (tmp_path / "report.html").read_text().startswith("<!doctype html>")
    names = {
        name.partition("/")[0] for stage in ("sft", "grpo", "eval") for line in lines(tmp_path, stage) for name in line
    }
    assert names - {"kl", "clip_fraction"} <= TAKEN, "a loss of the user's own could take its place"


def test_the_trained_model_loads_elsewhere(tmp_path: Path) -> None:
    sft.main([*SFT_ONLY, *LOCAL, f"output_dir={tmp_path}"])
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "model")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    text = tokenizer.apply_chat_template(
        [{"role": "user", "content": "1 + 2"}], add_generation_prompt=True, tokenize=False
    )
    logits = model(**tokenizer(text, return_tensors="pt", add_special_tokens=False)).logits
    assert torch.isfinite(logits).all()


def test_grpo_continues_from_the_sft_recipe(tmp_path: Path) -> None:
    sft.main([*SFT_ONLY, *LOCAL, f"output_dir={tmp_path}/sft"])
    plugin = tmp_path / "plugin.py"
    plugin.write_text(SPREAD_REWARD)
    overrides = [f"model.path={tmp_path}/sft/model", f"output_dir={tmp_path}/grpo", f"reward={plugin}:spread"]
    cli.main(["run", "grpo", *GRPO_ONLY, *LOCAL, *overrides])
    found = lines(tmp_path / "grpo", "grpo")
    assert len(found) == 4
    for line in found:
        assert line["parity"] <= 1e-4
        assert line["logprob_gap"] <= 1e-4
        assert line["clip_fraction"] == 0.0, "with one optimiser step per rollout batch every ratio is 1"
    assert found[0]["kl"] == pytest.approx(0.0, abs=1e-6), "the first step is taken at the reference"
    assert found[-1]["kl"] > 1e-6, "the policy never moved"


def test_a_finished_run_is_not_run_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    overrides = [*SFT_ONLY, *LOCAL, f"output_dir={tmp_path}"]
    sft.main(overrides)
    before = (tmp_path / "metrics.jsonl").read_text()
    sft.main(overrides)
    assert "resuming after sft step 4" in capsys.readouterr().out
    assert (tmp_path / "metrics.jsonl").read_text() == before


def test_all_flat_steps_are_skipped_and_said_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plugin = tmp_path / "plugin.py"
    plugin.write_text("def zero(completion: str) -> float:\n    return 0.0\n")
    grpo.main([*GRPO_ONLY, *LOCAL, f"output_dir={tmp_path}/run", f"reward={plugin}:zero", "algo.steps=2"])
    printed = capsys.readouterr().out
    assert printed.count("skipped") == 2
    assert "warning: the model starts from random weights" in printed


def test_gsm8k_with_two_ranks_and_two_engines_on_ray(tmp_path: Path) -> None:
    """In a folder whose files have the names of the modules that driver, workers and reward processes import.

    Each rank sends half of the weights: without the other half no load, and no gate, would pass.
    """
    hide_modules(tmp_path)
    plugin = tmp_path / "plugin.py"
    plugin.write_text(SPREAD_REWARD)
    small = [word for word in GRPO_ONLY if not word.startswith(("data.", "engine.max_model_len"))]
    sizes = ["data=gsm8k", "data.train_size=64", "data.eval_size=8", "engine.max_model_len=512", "algo.steps=2"]
    two = ["trainer.num_ranks=2", "engine.num_engines=2", *ALL_CORES]
    finish("grpo", *small, *sizes, *two, "reward=plugin.py:spread", "output_dir=run", cwd=tmp_path)
    assert [line["problems"] for line in lines(tmp_path / "run", "eval")] == [8, 8]
    steps = lines(tmp_path / "run", "grpo")
    assert [line["groups"] for line in steps] == [4, 4]
    assert all(0 < line["parity"] <= 1e-4 and 0 < line["logprob_gap"] <= 1e-4 for line in steps)
