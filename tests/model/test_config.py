"""DeepseekV3Config: what it refuses, and what it reads and writes."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from rlkit.model import DeepseekV3Config
from tests.model.tiny import BASE


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"hidden_size": 0}, r"hidden_size=0: give a positive"),
        ({"kv_lora_rank": -4}, r"kv_lora_rank=-4"),
        ({"num_hidden_layers": 2.0}, r"num_hidden_layers=2.0: give a positive whole number"),
        ({"n_group": None}, r"n_group=None: give a positive whole number"),
        ({"rms_norm_eps": 0.0}, r"rms_norm_eps=0.0: give a positive number"),
        ({"hidden_size": 60}, r"hidden_size=60: give a multiple of 8"),
        ({"moe_intermediate_size": 12}, r"moe_intermediate_size=12: give a multiple of 8"),
        ({"qk_rope_head_dim": 7}, r"qk_rope_head_dim=7: give an even"),
        ({"n_group": 3}, r"n_group=3: it must divide n_routed_experts=8"),
        ({"n_group": 8}, r"n_group=8: it must divide n_routed_experts=8 into groups of at least 2"),
        ({"n_group": 2, "topk_group": 3}, r"topk_group=3: give at most n_group=2"),
        ({"n_group": 4, "num_experts_per_tok": 3}, r"num_experts_per_tok=3: .* hold only 2 experts"),
        ({"first_k_dense_replace": 4}, r"first_k_dense_replace=4: give 0..3"),
        ({"eos_token_id": 96}, r"eos_token_id=96: give one id in 0..95"),
        ({"eos_token_id": [1, 2]}, r"eos_token_id=\[1, 2\]: give one id"),
        ({"pad_token_id": -1}, r"pad_token_id=-1"),
    ],
)
def test_refuses_what_cannot_be_built(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replace(BASE, **change)


def test_a_dense_model_needs_no_valid_groups() -> None:
    assert replace(BASE, first_k_dense_replace=3, n_group=5).n_group == 5


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rope_scaling": {"type": "yarn", "factor": 40}}, "rope_scaling=.*YaRN"),
        ({"rope_parameters": {"rope_type": "yarn", "rope_theta": 1e4}}, "rope_parameters=.*YaRN"),
        ({"topk_method": "greedy"}, "topk_method='greedy': only 'noaux_tc'"),
        ({"scoring_func": "softmax"}, "scoring_func='softmax'"),
        ({"hidden_act": "gelu"}, "hidden_act='gelu'"),
        ({"attention_bias": True}, "attention_bias=True"),
        ({"num_key_value_heads": 2}, "num_key_value_heads=2: it must equal num_attention_heads=4"),
        ({"quantization_config": {"quant_method": "fp8"}}, "quantization_config=.*FP8"),
        ({"n_group": 3}, "n_group=3"),
        ({"model_type": "llama"}, "model_type='llama'"),
    ],
)
def test_from_folder_names_the_file_and_what_is_not_supported(
    change: dict[str, Any], message: str, tmp_path: Path
) -> None:
    (tmp_path / "config.json").write_text(json.dumps({**BASE.to_hf(), **change}))
    with pytest.raises(ValueError, match=f"config.json: {message}"):
        DeepseekV3Config.from_folder(tmp_path)


def test_from_folder_says_what_is_missing(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="nowhere: no such folder"):
        DeepseekV3Config.from_folder(tmp_path / "nowhere")
    with pytest.raises(ValueError, match=r"config\.json: missing"):
        DeepseekV3Config.from_folder(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": ')
    with pytest.raises(ValueError, match=r"config\.json: not valid JSON"):
        DeepseekV3Config.from_folder(tmp_path)


def test_rope_theta_is_read_from_both_places() -> None:
    old = {**BASE.to_hf(), "rope_theta": 500.0, "rope_scaling": None}
    del old["rope_parameters"]
    assert DeepseekV3Config.from_hf(old).rope_theta == 500.0
    new = {**BASE.to_hf(), "rope_parameters": {"rope_type": "default", "rope_theta": 700.0}}
    del new["rope_theta"]
    assert DeepseekV3Config.from_hf(new).rope_theta == 700.0


def test_to_hf_round_trip_and_what_vllm_needs() -> None:
    config = replace(BASE, q_lora_rank=24, eos_token_id=5, rope_theta=123.0, norm_topk_prob=False)
    written = json.loads(json.dumps(config.to_hf()))
    assert DeepseekV3Config.from_hf(written) == config
    assert written["architectures"] == ["DeepseekV3ForCausalLM"]
    assert (written["topk_method"], written["scoring_func"]) == ("noaux_tc", "sigmoid")
    assert written["num_nextn_predict_layers"] == 0, "no multi-token prediction weights are written"
