"""Predicted bytes against the peak of processes that do run: a trainer's rank with both steppers, and an engine.

What is compared is resident memory, as the kernel counts it, less that of the libraries (`tests.plan.peak`); the models
are large enough that tensors outweigh everything else. Not compared: bf16, where torch's CPU kernels keep repacked
copies of weights of their own; Muon, whose steps take a minute here.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from rlkit.config import SftRun
from rlkit.config.compose import load_config
from rlkit.model import DeepseekV3, DeepseekV3Config
from rlkit.model.deepseek_architecture import DeepseekArchitecture
from rlkit.plan.plan import make_plan
from rlkit.plan.settings import PlanSettings
from tests.architecture import ROOT
from tests.plan.peak import SAMPLE

NEAR = 0.20
SIZES = {
    "hidden_size": 512,
    "vocab_size": 8192,
    "intermediate_size": 1536,
    "moe_intermediate_size": 512,
    "n_routed_experts": 12,
    "num_attention_heads": 8,
    "q_lora_rank": 256,
    "kv_lora_rank": 128,
    "qk_nope_head_dim": 64,
    "qk_rope_head_dim": 32,
    "v_head_dim": 64,
}
SHAPE = [f"model.architecture.{key}={value}" for key, value in SIZES.items()]
"""45 million parameters, 179 MB in fp32."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("peak")
    for name, words in (("tiny", []), ("model", SHAPE)):
        torch.manual_seed(0)
        DeepseekV3(config_of(words)).save_checkpoint(made / name, dtype="fp32")
    return made


def config_of(words: list[str]) -> DeepseekV3Config:
    found = load_config("sft", SftRun, words).model.architecture
    assert found is not None
    return found


def measured(folder: Path, kind: str, words: list[str], ranks: int) -> int:
    """The peak of the fullest rank, in bytes."""
    # Blocks of 64 KiB and more go back to the system when they are freed, so that resident memory is what is in use.
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536", "OMP_NUM_THREADS": "1"}
    (folder / "store").unlink(missing_ok=True)
    started = [
        subprocess.Popen(
            [sys.executable, "-m", "tests.plan.peak", str(folder), str(rank), kind, *words],
            cwd=ROOT,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(ranks)
    ]
    ends = [process.communicate() for process in started]
    assert all(process.returncode == 0 for process in started), "\n".join(errors for _, errors in ends)
    return max(int(printed.split()[-1]) for printed, _ in ends)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("trainer", ["trainer=torch"]),
        ("trainer", ["trainer.zero_stage=1"]),
        ("trainer", ["trainer.zero_stage=2", "trainer.num_ranks=2"]),
        ("engine", ["engine=torch", "engine.max_num_seqs=64", "engine.max_model_len=96", "cluster=local"]),
    ],
)
def test_predicted_bytes_are_those_of_a_process(kind: str, words: list[str], folder: Path) -> None:
    words = [*SHAPE, f"engine.max_model_len={SAMPLE}", "evaluation.sampling.max_new_tokens=8", *words]
    words += ["trainer.max_tokens=512"]
    cfg = load_config("sft", SftRun, words)
    plan = make_plan(cfg, DeepseekArchitecture(config=config_of(words)), PlanSettings())
    assert plan.engine is not None
    predicted = plan.trainer.needs.peak if kind == "trainer" else plan.engine.needs.peak
    found = measured(folder, kind, words, cfg.trainer.num_ranks if kind == "trainer" else 1)
    print(f"{kind} {words[-2:]}: predicted {predicted / 1e6:.0f} MB, measured {found / 1e6:.0f} MB")
    assert abs(predicted / found - 1) < NEAR
