"""A run whose trainer computes in FP8, through the recipe: what it says, what it gates, what it exports."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from recipes import sft
from rlkit.build import load_model
from rlkit.cli import checkpoint
from rlkit.model.files.names import published_names
from rlkit.model.precision import compute_in_float8
from tests.e2e.runs import TINY

SHAPE = {
    **{"hidden_size": 128, "intermediate_size": 128, "moe_intermediate_size": 128, "q_lora_rank": 128},
    **{"kv_lora_rank": 128, "num_hidden_layers": 2},
}
TILED = [f"model.architecture.{key}={size}" for key, size in SHAPE.items()]
SFT = [word for word in TINY if not word.startswith(("algo.", "model."))]


@pytest.mark.slow
def test_sft_in_fp8_exports_the_codes_of_its_last_step(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    where = ["cluster=local", "engine=torch", "trainer=deepspeed", "trainer.dtype=fp8", f"output_dir={tmp_path}/run"]
    sft.main([*SFT, *TILED, *where])
    printed = capsys.readouterr().out
    said = (
        "trainer.dtype=fp8: 40 matrices in FP8 (self_attn 10, mlp 3, mlp.experts 24, mlp.shared_experts 3); not: embed"
    )
    assert said in printed and "parity: engine and trainer agree" in printed

    checkpoint.main(["verify", f"{tmp_path}/run/model"])
    checkpoint.main(["convert", f"{tmp_path}/run/model", f"{tmp_path}/bf16", "--dtype", "bf16"])
    checkpoint.main(["convert", f"{tmp_path}/bf16", f"{tmp_path}/fp8", "--dtype", "fp8"])
    assert "40 in F8_E4M3" in capsys.readouterr().out
    exported, again = (load_file(folder / "model.safetensors") for folder in (tmp_path / "run/model", tmp_path / "fp8"))
    assert all(torch.equal(exported[name].view(torch.uint8), again[name].view(torch.uint8)) for name in exported)

    model = load_model(tmp_path / "bf16", torch.bfloat16, "deepseek")
    compute_in_float8(model, "fp8")
    table = published_names(model.config)  # type: ignore[arg-type]
    assert {name for name in table if f"{name}_scale_inv" in exported} == {n for n, place in table.items() if place.fp8}
