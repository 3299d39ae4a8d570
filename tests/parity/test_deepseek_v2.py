"""The softmax router against transformers' DeepseekV2ForCausalLM in fp32: logits, every gradient, files both ways."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors import safe_open
from transformers import AutoModelForCausalLM, DeepseekV2ForCausalLM
from transformers import DeepseekV2Config as TheirConfig

from rlkit.model import DeepseekV3, DeepseekV3Config
from rlkit.model.config import Yarn
from tests.model.tiny import BASE, relative, seeded

V2 = replace(BASE, scoring_func="softmax", norm_topk_prob=False, routed_scaling_factor=1.0, n_shared_experts=2)
LIMITED = replace(V2, n_routed_experts=16, n_group=4, topk_group=2, num_experts_per_tok=4, routed_scaling_factor=16.0)
LITE_YARN = Yarn(factor=40, original_max_position_embeddings=32, mscale=0.707, mscale_all_dim=0.707)
CONFIGS = {
    "greedy": V2,
    "group_limited": LIMITED,
    "low_rank_queries": replace(V2, q_lora_rank=24, first_k_dense_replace=0),
    "yarn_of_v2_lite": replace(V2, rope_scaling=LITE_YARN, max_position_embeddings=1280),
    "group_limited_yarn": replace(LIMITED, rope_scaling=LITE_YARN, max_position_embeddings=1280, q_lora_rank=24),
    "all_dense": replace(V2, first_k_dense_replace=3),
}
"""V2 is group-limited with a scaling factor of 16, V2-Lite greedy with 1."""


def theirs(folder: Path) -> DeepseekV2ForCausalLM:
    found = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager")
    assert type(found) is DeepseekV2ForCausalLM
    return found


@pytest.mark.parametrize("name", CONFIGS)
def test_logits_and_all_gradients_are_theirs(name: str, tmp_path: Path) -> None:
    ours = seeded(CONFIGS[name])
    ours.save_checkpoint(tmp_path, dtype="fp32")
    reference = theirs(tmp_path)
    assert reference.state_dict().keys() == ours.state_dict().keys()
    tokens = torch.randint(0, 96, (3, 57))  # beyond the 32 tokens before YaRN
    logits, expected = ours(tokens), reference(tokens, use_cache=False).logits
    assert relative(logits, expected) <= 1e-5, f"{name}: logits differ by {relative(logits, expected):.2e}"
    for out in (logits, expected):
        F.cross_entropy(out[:, :-1].flatten(0, 1), tokens[:, 1:].flatten()).backward()
    gradients = {key: parameter.grad for key, parameter in reference.named_parameters()}
    gaps = {}
    for key, parameter in ours.named_parameters():
        assert parameter.grad is not None and gradients[key] is not None, key
        gaps[key] = relative(parameter.grad, gradients[key])
    worst = max(gaps, key=lambda key: gaps[key])
    print(f"{name}: logits {relative(logits, expected):.1e}, gradients {gaps[worst]:.1e} ({worst})")
    assert gaps[worst] <= 1e-5, f"{name}: gradient of {worst} differs by {gaps[worst]:.2e}"


@pytest.mark.parametrize("name", ["greedy", "group_limited", "yarn_of_v2_lite", "all_dense"])
def test_reads_what_save_pretrained_writes(name: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    reference = DeepseekV2ForCausalLM(TheirConfig(**CONFIGS[name].to_hf()))
    reference.save_pretrained(tmp_path)
    ours = DeepseekV3.from_checkpoint(tmp_path)
    assert ours.config == CONFIGS[name]
    tokens = torch.randint(0, 96, (2, 9))
    with torch.no_grad():
        assert relative(ours(tokens), reference(tokens).logits) <= 1e-5
    with safe_open(tmp_path / "model.safetensors", framework="pt") as reader:
        written = {key: tuple(reader.get_slice(key).get_shape()) for key in reader.keys()}  # noqa: SIM118
    assert {key: tuple(tensor.shape) for key, tensor in ours.checkpoint_weights()} == written
    assert not [key for key in written if "bias" in key]


def test_bf16_and_fp8_come_back(tmp_path: Path) -> None:
    ours = seeded(LIMITED)
    for dtype in ("bf16", "fp8"):
        ours.save_checkpoint(tmp_path / dtype, dtype=dtype)
    exact = ours.state_dict()
    read = DeepseekV3.from_checkpoint(tmp_path / "bf16").state_dict()
    assert all(torch.equal(read[key], tensor.bfloat16().float()) for key, tensor in exact.items())
    read = DeepseekV3.from_checkpoint(tmp_path / "fp8").state_dict()
    assert max(relative(read[key], tensor) for key, tensor in exact.items()) <= 2**-4, "half a step of E4M3"
    assert torch.equal(
        read["model.layers.1.mlp.gate.weight"], exact["model.layers.1.mlp.gate.weight"].bfloat16().float()
    )


def test_published_config_json_of_v2_lite_and_its_nulls() -> None:
    """With the keys that DeepSeek's file has and we compute nothing from; transformers' own default has null groups."""
    published = {
        **V2.to_hf(), "aux_loss_alpha": 0.001, "seq_aux": True, "ep_size": 1, "pretraining_tp": 1,
        "rope_scaling": {"type": "yarn", "factor": 40, "original_max_position_embeddings": 32, "beta_fast": 32,
                         "beta_slow": 1, "mscale": 0.707, "mscale_all_dim": 0.707},
        "max_position_embeddings": 1280,
    }  # fmt: skip
    del published["rope_parameters"]
    assert DeepseekV3Config.from_hf(published) == CONFIGS["yarn_of_v2_lite"]
    nulls = {**published, "n_group": None, "topk_group": None}
    del nulls["scoring_func"]
    assert DeepseekV3Config.from_hf(nulls) == CONFIGS["yarn_of_v2_lite"]
    assert DeepseekV3Config.from_hf({**published, "topk_method": "group_limited_greedy"}).topk_method == "greedy"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"norm_topk_prob": True}, "norm_topk_prob=True: implementations of V2's softmax router differ there"),
        ({"scoring_func": "sigmoid"}, "scoring_func='sigmoid': only 'softmax' .* with model_type='deepseek_v2'"),
        ({"topk_method": "noaux_tc"}, "topk_method='noaux_tc': only 'group_limited_greedy' .* n_group=4 and topk"),
        ({"topk_method": "greedy"}, "topk_method='greedy': only 'group_limited_greedy'"),
        ({"hidden_size": 72, "num_attention_heads": 5, "num_key_value_heads": 5}, "hidden_size=72: transformers' V2"),
    ],
)  # fmt: skip
def test_what_transformers_and_vllm_compute_differently_is_refused(change: dict, message: str, tmp_path: Path) -> None:
    """vLLM limits groups whatever topk_method says; transformers only with "group_limited_greedy"."""
    (tmp_path / "config.json").write_text(json.dumps({**LIMITED.to_hf(), **change}))
    with pytest.raises(ValueError, match=f"config.json: {message}"):
        DeepseekV3Config.from_folder(tmp_path)


def test_v3_with_softmax_is_refused() -> None:
    with pytest.raises(
        ValueError, match="scoring_func='softmax': only 'sigmoid' is supported with model_type='deepseek_v3'"
    ):
        DeepseekV3Config.from_hf({**BASE.to_hf(), "scoring_func": "softmax"})
    with pytest.raises(ValueError, match="scoring_func='relu': give one of sigmoid, softmax"):
        replace(BASE, scoring_func="relu")
