"""What a trainer in FP8 cannot do ends before anything starts, with key, value and fix."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.run.test_errors import LORA, refusal


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["trainer.dtype=fp8"], "trainer.dtype=fp8 needs trainer=deepspeed, which keeps fp32 master weights"),
        (["trainer.dtype=fp8_weights"], "trainer.dtype=fp8_weights needs trainer=deepspeed"),
        (
            ["trainer=deepspeed", "trainer.dtype=fp8", LORA],
            "trainer.dtype=fp8 rounds W to FP8 and adds LoRA's B A to it in bf16, but exports round their sum",
        ),
        (
            ["trainer=deepspeed", "trainer.dtype=fp8", "trainer.fp8_dispatch=true"],
            "trainer.fp8_dispatch=true sends rows between ranks as trainer.dtype=fp8 multiplies them, but dtype is",
        ),
        (
            ["trainer=deepspeed", "trainer.fp8_dispatch=true"],
            "but dtype is fp32 and trainer.expert_parallel=1; set it to false, or trainer.dtype to fp8",
        ),
        (
            ["trainer=deepspeed", "trainer.dtype=fp8_weights"],
            "trainer.dtype=fp8_weights: model.architecture.kv_lora_rank=32 does not divide into tiles of 128 numbers",
        ),
    ],
)
def test_refusals(capsys: pytest.CaptureFixture[str], tmp_path: Path, overrides: list[str], words: str) -> None:
    assert words in refusal(capsys, tmp_path, *overrides)
