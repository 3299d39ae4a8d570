"""The GPU's benchmark where there is none: it says so, its steps run in small, its arithmetic is right."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch

from benchmarks import gpu
from tests.architecture import ROOT

ABSENT = ("hydra", "omegaconf", "ray", "deepspeed", "vllm", "reasoning_gym", "math_verify", "tensorboard", "peft")
"""What a bare machine does not have and the benchmark must not need."""
BARE = f"""
import sys

sys.modules.update(dict.fromkeys({ABSENT!r}))  # None: cannot be imported, and cannot be found
from benchmarks import gpu
gpu.main(["--rehearse"])
"""


def test_without_a_gpu_it_says_so(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    gpu.main([])
    assert capsys.readouterr().out.startswith("skipped: torch finds no GPU, and nothing was measured; --rehearse runs")


@pytest.mark.slow
def test_every_part_runs_on_a_bare_machine() -> None:
    """In a process that finds neither hydra nor ray, deepspeed or vllm."""
    environment = os.environ | {"CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run([sys.executable, "-c", BARE], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert all(f"**{title}**" in done.stdout for title in gpu.PARTS)
    assert "| emulate | the same bytes | 0.0e+00 | 0.0e+00 |" in done.stdout
    assert "scaled_mm was not measured: torch finds no GPU" in done.stdout and "left out" not in done.stdout
    tables = [line for line in done.stdout.splitlines() if line.startswith("|")]
    assert len(tables) >= 2 * len(gpu.PARTS)


def test_what_begins_too_late_is_left_out(capsys: pytest.CaptureFixture[str]) -> None:
    gpu.measure(gpu.REHEARSAL, limit_s=-1)
    printed = capsys.readouterr().out
    assert printed.count("left out, -1 s are over") == len(gpu.PARTS) and "|" not in printed


def test_operations_and_gain_by_hand() -> None:
    """8192 tokens through 4096 x 7168: 3 products of 2 x 8192 x 4096 x 7168 operations."""
    matrix = gpu.Matrix(name="m", outputs=4096, inputs=7168)
    assert gpu.tflops(matrix, 8192, 0.001) == pytest.approx(6 * 8192 * 4096 * 7168 / 1e9)
    row = gpu.Timed(matrix=matrix, backend="triton", bf16_s=0.003, fp8_s=0.002, errors=(0.0, 0.0, 0.0))
    assert row.gain == pytest.approx(1.5)
    assert gpu.verdict("triton", [1.4, 1.6, 9.0]) == "triton: median of 3 large ones 1.60x, which reaches 1.5x"
    assert gpu.verdict("triton", [1.4, 1.6, 1.0]) == "triton: median of 3 large ones 1.40x, which misses 1.5x"
    assert gpu.verdict("triton", []) == "triton: no large matrix"


def test_the_matrices_are_those_of_deepseek_v3() -> None:
    """By the table of names; gate and up of an expert are one product."""
    from rlkit.model import DeepseekV3Config
    from rlkit.model.files.names import published_names

    table = published_names(DeepseekV3Config())
    shapes = {place.shape for place in table.values() if place.fp8}
    ours = {(matrix.outputs, matrix.inputs) for matrix in gpu.V3} - {(4096, 7168)}
    assert ours | {(2048, 7168)} == shapes


def test_shares_of_memory() -> None:
    assert gpu.shares([2**30]) == ("1,024", "1/1.0")
    assert gpu.shares([2**30, 2**26]) == ("64", "1/16.0")
    assert gpu.shares([None, None]) == ("-", "-")


def test_times_and_lengths() -> None:
    ran = []
    assert gpu.seconds(lambda: ran.append(1), "cpu", 3) >= 0 and len(ran) == 4, "one more to warm up"
    lengths = gpu.sample_lengths(64)
    assert lengths == gpu.sample_lengths(64) and len(lengths) == 64
    assert 16 <= min(lengths) < 60 and max(lengths) <= 1024 and max(lengths) > 2 * sum(lengths) / 64


def test_a_wrong_kernel_stops_it(monkeypatch: pytest.MonkeyPatch) -> None:
    right = gpu.quantise_tiles

    def doubled(x_TK: torch.Tensor, backend: str | None = None) -> tuple[torch.Tensor, torch.Tensor]:
        codes, scales = right(x_TK, backend=backend)
        calls.append(1)
        return codes, scales * (2 if len(calls) > 2 else 1)

    calls: list[int] = []
    monkeypatch.setattr(gpu, "quantise_tiles", doubled)
    with pytest.raises(RuntimeError, match="emulate does not compute what the emulation does"):
        list(gpu.kernels(gpu.REHEARSAL))
    wrong = torch.nn.functional.linear
    monkeypatch.setattr(gpu, "float8_linear", lambda x, weight, backend: wrong(x, weight) * 1.1)
    with pytest.raises(RuntimeError, match="are not those of rounding to E4M3"):
        list(gpu.linear_layers(gpu.REHEARSAL))
