"""Whole runs in which FP8 is involved, as a user starts them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from recipes import sft_then_grpo
from rlkit.engine.local import TorchEngine
from rlkit.engine.vllm.fp8 import fp8_problem
from rlkit.model.files.verify import checkpoint_faults
from rlkit.types import Weights
from tests.e2e.runs import SPREAD_REWARD, TINY, finish

pytestmark = pytest.mark.slow

SMALL = [
    *(word for word in TINY if not word.startswith("model.")),
    "model=deepseek_v3_tiny_fp8",
    "model.architecture.num_hidden_layers=2",
    "algo.steps=2",
    "sft.steps=2",
]
LOCAL = ["cluster=local", "engine=torch", "trainer=deepspeed"]
"""FP8 needs DeepSpeed's fp32 master weights."""


def grpo_lines(folder: Path) -> list[dict]:
    every = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [line for line in every if line["stage"] == "grpo"]


@pytest.mark.skipif(fp8_problem() is not None, reason=f"vLLM cannot compute in FP8 here: {fp8_problem()}")
def test_trainer_and_engine_in_fp8_on_ray(tmp_path: Path) -> None:
    """With the experts on two ranks, each of which publishes and vouches for its own."""
    pytest.importorskip("vllm")
    (tmp_path / "plugin.py").write_text(SPREAD_REWARD)
    dtypes = ["trainer.dtype=fp8_weights", "engine.dtype=fp8"]
    ranks = ["trainer.num_ranks=2", "trainer.expert_parallel=2"]
    words = [*SMALL, *dtypes, *ranks, "reward=plugin.py:spread", "output_dir=run"]
    printed = finish("sft_then_grpo", *words, cwd=tmp_path)
    gates = [line for line in printed.splitlines() if line.startswith("parity: ")]
    assert len(gates) == 2, "after loading, and after SFT"
    # A layer has 5 matrices of attention; the dense MLP and the shared experts 3 each, 8 routed experts 24, all with a
    # scale each. Two layers have 4 norms each; then there are a router with its bias, embedding, head and last norm.
    assert all(f"{2 * (2 * 5 + 3 + 3 + 24) + 2 * 4 + 2 + 3} tensors alike byte for byte" in line for line in gates)
    steps = grpo_lines(tmp_path / "run")
    assert len(steps) == 2
    for line in steps:
        print({name: line[name] for name in line if name.startswith(("parity", "logprob"))})
        assert line["parity_mean"] <= 2 * line["parity_bf16"], "as far apart as two programs in bf16"
        assert line["parity_flips"] < 0.1 and line["parity_p99"] <= line["parity"]
    assert "Parity on average" in (tmp_path / "run" / "report.html").read_text()
    assert not list(checkpoint_faults(tmp_path / "run" / "initial_fp8")), "what vLLM started from"


def test_an_engine_that_computes_high_takes_what_the_codes_stand_for(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "plugin.py").write_text(SPREAD_REWARD)
    reward = f"reward={tmp_path}/plugin.py:spread"
    for dtype in ("fp8_weights", "fp8"):
        sft_then_grpo.main([*SMALL, *LOCAL, reward, f"trainer.dtype={dtype}", f"output_dir={tmp_path / dtype}"])
        printed = capsys.readouterr().out
        warned = "warning: one of the two rounds activations to FP8 and the other does not" in printed
        assert warned == (dtype == "fp8")
    weights, both = (grpo_lines(tmp_path / dtype)[-1] for dtype in ("fp8_weights", "fp8"))
    print(weights["parity_mean"], {name: both[name] for name in both if name.startswith("parity")})
    assert "parity_bf16" not in weights and both["parity_mean"] < 3 * both["parity_bf16"] < both["parity_trained"]


def test_a_sync_that_lost_a_layer_ends_the_run_of_a_trainer_with_activations_in_fp8(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Once so much of the gap was put down to FP8 that such an engine went on sampling."""
    (tmp_path / "plugin.py").write_text(SPREAD_REWARD)

    def broken(self: TorchEngine, weights: Weights, version: int) -> None:
        lost = ((name, torch.zeros_like(w) if "layers.1.self_attn.o_proj" in name else w) for name, w in weights)
        load(self, lost, version)

    load = TorchEngine.load
    monkeypatch.setattr(TorchEngine, "load", broken)
    reward = f"reward={tmp_path}/plugin.py:spread"
    with pytest.raises(SystemExit):
        sft_then_grpo.main([*SMALL, *LOCAL, reward, "trainer.dtype=fp8", f"output_dir={tmp_path / 'run'}"])
    said = capsys.readouterr().err
    assert "3 x what rounding changes" in said and "First block that differs: model.layers.1.self_attn" in said
