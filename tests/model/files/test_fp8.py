"""transformers reads our FP8 export: as a whole where its blocks are whole, and its formula tells why not elsewhere."""

from __future__ import annotations

import json
import warnings
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import AutoConfig, DeepseekV3ForCausalLM
from transformers.integrations.finegrained_fp8 import Fp8Dequantize

from rlkit.model import DeepseekV3, DeepseekV3Config
from rlkit.model.files.convert import convert_checkpoint
from rlkit.quant.fp8 import dequantise_blocks, quantise_blocks
from tests.model.tiny import BASE, relative, seeded

WHOLE = replace(
    BASE,
    hidden_size=256,
    intermediate_size=384,
    moe_intermediate_size=128,
    q_lora_rank=128,
    kv_lora_rank=256,
    qk_nope_head_dim=64,
    qk_rope_head_dim=128,
    v_head_dim=64,
)
"""Every matrix in FP8 has rows and columns in multiples of 128: whole blocks only, two or three of them in most."""


def theirs(folder: Path) -> DeepseekV3ForCausalLM:
    """Without a GPU transformers turns FP8 into the dtype asked for on loading (FineGrainedFP8HfQuantizer)."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return DeepseekV3ForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager")


def test_transformers_loads_our_fp8_as_we_do(tmp_path: Path) -> None:
    if torch.cuda.is_available():
        pytest.skip("with a GPU transformers keeps FP8 and computes in it; this compares dequantised weights")
    seeded(WHOLE).save_checkpoint(tmp_path, dtype="fp8")
    ours, reference = DeepseekV3.from_checkpoint(tmp_path), theirs(tmp_path)
    states = ours.state_dict()
    for name, parameter in reference.named_parameters():
        assert torch.equal(parameter.float(), states[name]), name
    tokens = torch.arange(34).view(2, 17)
    with torch.no_grad():
        gap = relative(ours(tokens), reference(tokens, use_cache=False).logits)
    assert gap <= 1e-5, f"logits differ by {gap:.2e}"


def test_transformers_loads_what_was_converted_from_fp8(tmp_path: Path) -> None:
    """Of published geometry: 576 rows; the scales that are carried along do not disturb it."""
    seeded(replace(WHOLE, kv_lora_rank=448)).save_checkpoint(tmp_path / "fp8", dtype="fp8")
    convert_checkpoint(tmp_path / "fp8", tmp_path / "bf16", "bf16")
    assert (tmp_path / "bf16" / "fp8_scales.sft").is_file()
    states = DeepseekV3.from_checkpoint(tmp_path / "bf16").state_dict()
    for name, parameter in theirs(tmp_path / "bf16").named_parameters():
        assert torch.equal(parameter, states[name]), name


def test_transformers_reads_our_quantization_config(tmp_path: Path) -> None:
    seeded(WHOLE).save_checkpoint(tmp_path, dtype="fp8")
    read = AutoConfig.from_pretrained(tmp_path).to_dict()
    assert read["quantization_config"] == json.loads((tmp_path / "config.json").read_text())["quantization_config"]
    assert DeepseekV3Config.from_hf({key: read[key] for key in read if key != "quantization_config"}) == WHOLE


def test_partial_blocks_are_read_by_us_alone() -> None:
    """transformers 5.19 takes the block size from rows / scales: 576 rows in 5 blocks are an error there, for the
    published kv_a_proj_with_mqa too, and 192 rows in 2 blocks would be split at row 96 instead of 128.
    """
    random = torch.Generator().manual_seed(0)
    for rows, split in ((576, None), (192, 96)):
        weight = torch.randn(rows, 128, generator=random) * torch.arange(1, rows + 1).unsqueeze(1)
        codes, scales = quantise_blocks(weight.bfloat16())
        assert relative(dequantise_blocks(codes, scales), weight) < 0.05
        if split is None:
            with pytest.raises(ValueError, match=r"\(576, 128\) not divisible by scale grid \(5, 1\)"):
                Fp8Dequantize(None)._dequantize_one(codes, scales, torch.float32)
        else:
            other = Fp8Dequantize(None)._dequantize_one(codes, scales, torch.float32)
            wrong = (other != dequantise_blocks(codes, scales)).any(1).nonzero().flatten()
            assert (int(wrong[0]), int(wrong[-1])) == (split, 127)
