from __future__ import annotations

import subprocess
import sys
from dataclasses import replace

import pytest
import torch

from rlkit.config import GrpoRun, SftRun, SftThenGrpoRun
from rlkit.config.compose import load_config
from rlkit.model import DeepseekV3, DeepseekV3Config
from rlkit.model.deepseek_architecture import DeepseekArchitecture
from rlkit.run.plan import derived
from tests.architecture import ROOT


def counted(config: DeepseekV3Config) -> tuple[int, int]:
    """All parameters, and those that work on one token."""
    size = DeepseekArchitecture(config=config).size()
    return size.parameters, size.active_parameters


def test_deepseek_v3_has_671_billion_parameters_of_which_37_are_active() -> None:
    """Section 1 of the paper (arXiv:2412.19437); nothing is allocated."""
    total, active = counted(DeepseekV3Config())
    assert round(total / 1e9) == 671
    assert round(active / 1e9) == 37


def test_the_tiny_model_is_counted_as_built() -> None:
    architecture = load_config("grpo", GrpoRun).model.architecture
    total, active = counted(architecture)
    assert total == sum(parameter.numel() for parameter in DeepseekV3(architecture).parameters())
    # 3 layers with 8 experts of 3 matrices, of which a token passes 2
    idle = 3 * 6 * 3 * architecture.hidden_size * architecture.moe_intermediate_size
    # of the embedding it reads one row; the head is another matrix here
    assert active == total - idle - (architecture.vocab_size - 1) * architecture.hidden_size
    tied = replace(architecture, tie_word_embeddings=True)
    assert counted(tied)[1] == counted(tied)[0] - idle, "a tied head works with all rows"


def rows(recipe: str, cls: type, *overrides: str) -> dict[str, str]:
    return dict(derived(load_config(recipe, cls, overrides), None))


def test_numbers_of_a_grpo_step_by_hand() -> None:
    found = rows(
        "grpo",
        GrpoRun,
        "algo.prompts_per_step=6",
        "algo.group_size=4",
        "algo.minibatches=3",
        "algo.sampling.max_new_tokens=10",
    )
    assert "6 groups x 4 rollouts = 24" in found["GRPO"]
    assert "at most 240 sampled" in found["tokens per step"]
    assert found["optimiser steps"] == "3 a step on 8 rollouts each"
    assert "SFT" not in found


def test_modules_for_multi_token_prediction_are_counted_apart() -> None:
    overrides = ["model.architecture.num_nextn_predict_layers=1"]
    plain, found = rows("grpo", GrpoRun), rows("grpo", GrpoRun, *overrides)
    architecture = load_config("grpo", GrpoRun, overrides).model.architecture
    total, _ = counted(architecture)
    everything = sum(parameter.numel() for parameter in DeepseekV3(architecture).parameters())
    assert found["parameters"] == f"{plain['parameters']}; plus {everything - total:,} in MTP"
    assert found["trainer memory"].startswith(f"{everything * (4 + 4 + 4 + 12) / 2**30:.3f} GiB a rank")
    assert "; plus 11,610,067,968 in MTP" in rows("grpo", GrpoRun, "model=deepseek_v3_671b")["parameters"]


@pytest.mark.parametrize(("dtype", "size"), [("fp32", "140,544"), ("bf16", "70,272")])
def test_cache_of_deepseek_v3_by_hand(dtype: str, size: str) -> None:
    """61 layers x (512 + 64) numbers of 4 or 2 bytes; 64 sequences of 1,024 tokens."""
    overrides = [f"engine.dtype={dtype}", "engine.max_model_len=1024", "engine.max_num_seqs=64"]
    found = rows("grpo", GrpoRun, "model=deepseek_v3_671b", *overrides)
    assert found["parameters"].startswith("671,026,404,352, of which 36,")
    assert found["latent cache"] == f"576 numbers per token and layer, {size} bytes per token in {dtype}"
    gib = int(size.replace(",", "")) * 1024 * 64 / 2**30
    assert found["engine memory"].endswith(f"full latent cache {gib:.3f} GiB")


def test_numbers_of_sft_by_hand() -> None:
    found = rows("sft", SftRun, "sft.steps=100", "sft.batch_size=32", "data.train_size=1600", "trainer.num_ranks=2")
    assert found["SFT"] == "100 steps x 32 demonstrations, 2.00 epochs of 1,600; 16 per rank"
    assert "GRPO" not in found


@pytest.mark.parametrize(
    ("overrides", "bytes_per_parameter"),
    [
        ([], 4 + 4 + 4 + 12),  # weights, gradients, reference, AdamW
        (["algo.loss.kl_coef=0"], 4 + 4 + 12),
        (["trainer.dtype=bf16"], 2 + 4 + 2 + 12),
        (["trainer.dtype=fp8"], 2 + 4 + 2 + 12),  # the parameters are bf16
        (["trainer.num_ranks=2"], 4 + 4 + 4 + 6),
    ],
)
def test_memory_of_a_rank_by_hand(overrides: list[str], bytes_per_parameter: int) -> None:
    cfg = load_config("sft_then_grpo", SftThenGrpoRun, overrides)
    total, _ = counted(cfg.model.architecture)
    expected = f"{total * bytes_per_parameter / 2**30:.3f} GiB a rank"
    assert dict(derived(cfg, None))["trainer memory"].startswith(expected)


def test_the_plan_says_what_is_computed_in_fp8() -> None:
    """Of DeepSeek-V3: 61 layers and a module of 5 matrices of attention, 3 dense ones, 59 with 257 experts."""
    assert "FP8" not in rows("grpo", GrpoRun, "model=deepseek_v3_671b")
    for dtype in ("fp8", "fp8_weights"):
        found = rows("grpo", GrpoRun, "model=deepseek_v3_671b", f"trainer.dtype={dtype}")["FP8"]
        assert found == (
            "45,808 matrices in FP8 (self_attn 310, mlp 9, mlp.experts 45,312, mlp.shared_experts 177); not: "
            "embed_tokens, lm_head, mlp.gate, mlp.gate.e_score_correction_bias, eh_proj and 8 kinds of norms"
        )


def test_the_plan_does_not_touch_the_random_state() -> None:
    before = torch.get_rng_state()
    counted(DeepseekV3Config())
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.slow
def test_a_configuration_is_shown_without_what_takes_seconds_to_import() -> None:
    """Nor does the word that a key is misspelt wait for it."""
    heavy = {"transformers", "torch._dynamo", "deepspeed", "vllm", "ray"}
    code = "import sys; from recipes import grpo; grpo.main(['--cfg', 'job']); print('loaded', *sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    shown, _, loaded = done.stdout.partition("loaded ")
    assert "parameters" in shown, done.stderr
    assert "torch" in loaded.split() and not heavy & set(loaded.split())
