"""What does not go together with an engine in FP8 is refused before anything starts."""

from __future__ import annotations

from pathlib import Path

import pytest

from recipes import grpo
from rlkit.engine.vllm import fp8
from tests.hf_folders import make, save

FP8 = ["model=deepseek_v3_tiny_fp8", "engine.dtype=fp8", "trainer.dtype=fp8_weights", "data.train_size=50"]


def refusal(capsys: pytest.CaptureFixture[str], tmp_path: Path, *overrides: str) -> str:
    with pytest.raises(SystemExit) as leaving:
        grpo.main([*FP8, f"output_dir={tmp_path / 'run'}", *overrides])
    assert leaving.value.code == 2 and not (tmp_path / "run" / "config.yaml").exists()
    printed = capsys.readouterr().err
    assert printed.startswith("error: ") and "Traceback" not in printed
    return printed


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (
            ["engine=torch", "engine.dtype=fp8", "cluster=local"],
            ["engine.dtype=fp8 needs engine=vllm; engine=torch samples in fp32"],
        ),
        (
            ["trainer.dtype=bf16"],
            ["engine.dtype=fp8", "trainer.dtype=bf16", "set trainer.dtype=fp8_weights, or engine.dtype=bf16"],
        ),
        (
            ["engine.tensor_parallel=2"],
            ["engine.tensor_parallel=2", "audits whole tensors, not slices", "engine.dtype=bf16"],
        ),
        (["trainer.dtype=fp32"], ["engine.dtype=fp8", "trainer.dtype=fp32"]),
        (["engine.dtype=int8"], ["engine.dtype='int8'", "fp32 or bf16 or fp8"]),
        (
            ["model.architecture.moe_intermediate_size=64"],
            ["model.architecture.moe_intermediate_size=64", "128"],
        ),
        (
            ["model.architecture.qk_rope_head_dim=16"],
            [
                "engine.dtype=fp8: model.architecture.kv_lora_rank + qk_rope_head_dim=144 must be a multiple of 32",
                "use engine.dtype=bf16",
            ],
        ),
    ],
)
def test_what_fp8_does_not_go_with(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, overrides: list[str], words: list[str]
) -> None:
    printed = refusal(capsys, tmp_path, *overrides)
    for word in words:
        assert word in printed


def test_a_cpu_without_products_in_bf16(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fp8, "_has_bf16_products", lambda: False)
    monkeypatch.setattr(fp8.torch.cuda, "is_available", lambda: False)
    printed = refusal(capsys, tmp_path)
    assert "engine.dtype=fp8: vLLM's FP8 on the CPU needs products in bf16 (AMX, or AVX-512 with BF16)" in printed
    assert "use engine.dtype=bf16" in printed


def test_models_of_transformers(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    folder = save(make("qwen2"), tmp_path / "qwen2")
    short = ["engine.max_model_len=128", *(f"{group}.sampling.max_new_tokens=9" for group in ("algo", "evaluation"))]
    printed = refusal(capsys, tmp_path, "model=hf", f"model.path={folder}", *short)
    assert "trainer.dtype=fp8_weights: model=hf has no table of the matrices that FP8 is for" in printed
