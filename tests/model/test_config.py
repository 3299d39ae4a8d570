"""DeepseekV3Config: what it refuses, and what it reads and writes."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from transformers import DeepseekV3Config as TheirConfig

from rlkit.model import DeepseekV3Config
from rlkit.model.config import Yarn
from tests.model.tiny import BASE

YARN = {"type": "yarn", "factor": 2, "original_max_position_embeddings": 64}


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
        ({"rope_scaling": {"type": "linear", "factor": 4}}, "rope_scaling=.*only YaRN"),
        ({"rope_parameters": {"rope_type": "llama3", "rope_theta": 1e4}}, "rope_parameters=.*only YaRN"),
        ({"rope_scaling": {"type": "yarn", "factor": 40}}, "rope_scaling=.*original_max_position_embeddings missing"),
        ({"rope_parameters": {"rope_type": "yarn"}}, "rope_parameters=.*factor and original_max_.* missing"),
        ({"rope_scaling": {**YARN, "mscale_all_dim": 1.0}}, "rope_scaling=.*mscale missing"),
        ({"rope_scaling": {**YARN, "truncate": False}}, "rope_scaling=.*truncate is not supported; there are factor"),
        ({"rope_scaling": {**YARN, "factor": 0.5}}, "rope_scaling.factor=0.5: give a number of at least 1"),
        ({"rope_scaling": {**YARN, "factor": "40"}}, "rope_scaling.factor='40': give a number"),
        ({"rope_scaling": {**YARN, "mscale": 0.7}}, "rope_scaling.mscale_all_dim=0.0: .* implementations differ"),
        ({"rope_scaling": {**YARN, "mscale": 0, "mscale_all_dim": 1}}, "rope_scaling.mscale=0: give a positive"),
        ({"rope_scaling": {**YARN, "beta_fast": 1}}, "rope_scaling.beta_slow=1.0: .* below beta_fast=1"),
        ({"rope_scaling": {**YARN, "original_max_position_embeddings": 64.5}}, "rope_scaling.original_max_pos.*=64.5"),
        ({"rope_scaling": {**YARN, "factor": 1}}, "max_position_embeddings=128: rope_scaling reaches 64"),
        (
            {"rope_scaling": YARN, "rope_parameters": {**YARN, "rope_type": "yarn", "factor": 8}},
            "rope_parameters=.*contradicts rope_scaling",
        ),
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
    assert written["num_nextn_predict_layers"] == config.num_nextn_predict_layers


def test_yarn_is_read_from_both_places_and_written_to_both() -> None:
    yarn = Yarn(factor=40, original_max_position_embeddings=4096, mscale=1.0, mscale_all_dim=1.0)
    config = replace(BASE, rope_scaling=yarn, max_position_embeddings=163840, rope_theta=777.0)
    written = json.loads(json.dumps(config.to_hf()))
    keys = {"factor": 40, "original_max_position_embeddings": 4096, "beta_fast": 32, "beta_slow": 1}
    keys |= {"mscale": 1.0, "mscale_all_dim": 1.0}
    assert written["rope_scaling"] == {"type": "yarn", **keys}, "the published form"
    assert written["rope_parameters"] == {"rope_type": "yarn", "rope_theta": 777.0, **keys}, "that of transformers 5"
    for dropped in ({"rope_scaling"}, {"rope_parameters"}, set()):
        assert DeepseekV3Config.from_hf({key: written[key] for key in written.keys() - dropped}) == config, dropped
    legacy = {**written["rope_parameters"], "type": "yarn"}
    assert DeepseekV3Config.from_hf({**written, "rope_scaling": None, "rope_parameters": legacy}) == config
    none = {"rope_scaling": {"type": "default"}, "rope_parameters": {"rope_theta": 777.0}}
    assert DeepseekV3Config.from_hf({**written, **none}).rope_scaling is None


def test_yarn_survives_transformers(tmp_path: Path) -> None:
    """Published form -> transformers 5 -> its config.json -> ours -> transformers: nothing is edited by hand."""
    published = {**BASE.to_hf(), "rope_scaling": {**YARN, "beta_fast": 16, "mscale": 0.7, "mscale_all_dim": 0.7}}
    del published["rope_parameters"]
    ours = DeepseekV3Config.from_hf(published)
    assert ours.rope_scaling == Yarn(
        factor=2, original_max_position_embeddings=64, beta_fast=16, mscale=0.7, mscale_all_dim=0.7
    )
    TheirConfig(**published).save_pretrained(tmp_path)
    assert "rope_scaling" not in json.loads((tmp_path / "config.json").read_text())
    assert DeepseekV3Config.from_folder(tmp_path) == ours
    again = TheirConfig(**ours.to_hf()).rope_parameters
    assert {key: again[key] for key in published["rope_scaling"]} == published["rope_scaling"]
