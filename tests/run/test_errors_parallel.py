"""Engines of several processes that cannot be: the command ends before Ray starts, and names key, value and fix."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.run.test_errors import refusal

RAY = ["cluster=ray", "engine=vllm"]
LORA = "trainer.lora={rank: 2, alpha: 4, targets: all-linear, served: adapter}"
MTP = "model.architecture.num_nextn_predict_layers=1"


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["engine.tensor_parallel=0", *RAY], "engine.tensor_parallel=0 must be at least 1"),
        (["engine.tensor_parallel=1.5", *RAY], "engine.tensor_parallel=1.5"),
        (["engine.tensor_parallel=2"], "engine.tensor_parallel=2 needs engine=vllm; set it to 1, or use engine=vllm"),
        (["engine.options={block_size: 8}"], "engine.options={'block_size': 8} needs engine=vllm; set it to {}"),
        (
            ["engine.tensor_parallel=3", *RAY],
            "engine.tensor_parallel=3: model.architecture.num_attention_heads=4 cannot be divided by it; use 1 or 2",
        ),
        (
            ["engine.tensor_parallel=4", *RAY],
            "moe_intermediate_size=64 cannot be divided by it in multiples of 32; use 1 or 2",
        ),
        (
            ["engine.tensor_parallel=2", "engine.speculative_tokens=1", MTP, *RAY],
            "engine.tensor_parallel=2 does not draft: engine.speculative_tokens=1",
        ),
        (
            ["engine.tensor_parallel=2", LORA, *RAY],
            "trainer.lora.served=adapter needs engine.tensor_parallel=1, not 2; set trainer.lora.served=merged",
        ),
        (["engine.options={seed: 1}", *RAY], "engine.options.seed=1 is set by seed; use that key"),
        (["engine.options={sead: 1}", *RAY], "engine.options.sead is not an argument of vLLM (did you mean 'seed'?)"),
        (["engine.options=3", *RAY], "engine.options=3"),
        (
            ["engine.options={enable_expert_parallel: true}", *RAY],
            "engine.options.enable_expert_parallel=True cannot be set on a CPU: vLLM's CPU build ends on its first",
        ),
        (["cluster.share_gpus=perhaps", *RAY], "cluster.share_gpus='perhaps'"),
    ],
)
def test_bad_keys_and_values(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, overrides: list[str], words: str
) -> None:
    assert words in refusal(capsys, tmp_path, *overrides)


def test_the_latent_cache_is_for_one_process(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VLLM_MLA_DISABLE", "0")
    printed = refusal(capsys, tmp_path, "engine.tensor_parallel=2", *RAY)
    assert (
        "engine.tensor_parallel=2 needs the expanded attention of vLLM's CPU build; take VLLM_MLA_DISABLE=0" in printed
    )


@pytest.mark.parametrize(
    ("gpus", "overrides", "words"),
    [
        (1, [], "cluster.share_gpus=false: 1 engine(s) and 1 trainer rank(s) need 2 GPUs, and there are 1; lower"),
        (
            2,
            ["engine.tensor_parallel=2", "cluster.share_gpus=true"],
            "engine.tensor_parallel=2: 1 engine(s) of 2 workers",
        ),
    ],
)
def test_too_few_gpus_on_this_machine(
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    gpus: int,
    overrides: list[str],
    words: str,
) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    assert words in refusal(capsys, tmp_path, *RAY, *overrides)
