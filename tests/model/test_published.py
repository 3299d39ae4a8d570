"""The shipped model configs: published sizes, counts and names, on the meta device; nothing is allocated."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from pydantic import TypeAdapter
from transformers import DeepseekV2Config, DeepseekV2ForCausalLM, DeepseekV3ForCausalLM, PreTrainedModel
from transformers import DeepseekV3Config as TheirConfig
from transformers.core_model_loading import revert_weight_conversion

from rlkit.config import GrpoRun
from rlkit.config.compose import load_config
from rlkit.model import DeepseekV3, DeepseekV3Config
from rlkit.model.deepseek_architecture import DeepseekArchitecture
from rlkit.model.size import Size

pytestmark = pytest.mark.slow

FOLDER = Path(__file__).parents[2] / "configs" / "model"
SHARED: dict[str, Any] = {
    "attention_bias": False, "attention_dropout": 0.0, "first_k_dense_replace": 1, "hidden_act": "silu",
    "initializer_range": 0.02, "kv_lora_rank": 512, "model_type": "deepseek_v3", "moe_layer_freq": 1,
    "qk_nope_head_dim": 128, "qk_rope_head_dim": 64, "tie_word_embeddings": False, "use_cache": True, "v_head_dim": 128,
}  # fmt: skip
LITE = {
    "hidden_size": 2048, "moe_intermediate_size": 1408, "n_group": 1, "n_routed_experts": 64, "n_shared_experts": 2,
    "num_attention_heads": 16, "num_experts_per_tok": 6, "num_hidden_layers": 27, "num_key_value_heads": 16,
    "q_lora_rank": None, "topk_group": 1,
}  # fmt: skip
YARN = {"beta_fast": 32, "beta_slow": 1, "factor": 40, "original_max_position_embeddings": 4096, "type": "yarn"}
PUBLISHED: dict[str, dict[str, Any]] = {
    "deepseek_v3_671b": {
        **SHARED, "bos_token_id": 0, "eos_token_id": 1, "first_k_dense_replace": 3, "hidden_size": 7168,
        "intermediate_size": 18432, "max_position_embeddings": 163840, "moe_intermediate_size": 2048, "n_group": 8,
        "n_routed_experts": 256, "n_shared_experts": 1, "norm_topk_prob": True, "num_attention_heads": 128,
        "num_experts_per_tok": 8, "num_hidden_layers": 61, "num_key_value_heads": 128, "num_nextn_predict_layers": 1,
        "q_lora_rank": 1536, "rms_norm_eps": 1e-06, "rope_scaling": {**YARN, "mscale": 1.0, "mscale_all_dim": 1.0},
        "rope_theta": 10000, "routed_scaling_factor": 2.5, "scoring_func": "sigmoid", "topk_group": 4,
        "topk_method": "noaux_tc", "vocab_size": 129280,
    },
    "moonlight_16b": {
        **SHARED, **LITE, "bos_token_id": 163584, "eos_token_id": 163586, "intermediate_size": 11264,
        "max_position_embeddings": 8192, "norm_topk_prob": True, "num_nextn_predict_layers": 0, "rms_norm_eps": 1e-05,
        "rope_theta": 50000.0, "routed_scaling_factor": 2.446, "scoring_func": "sigmoid", "topk_method": "noaux_tc",
        "vocab_size": 163840,
    },
    "deepseek_v2_lite": {
        **SHARED, **LITE, "aux_loss_alpha": 0.001, "bos_token_id": 100000, "eos_token_id": 100001,
        "intermediate_size": 10944, "model_type": "deepseek_v2", "seq_aux": True,
        "max_position_embeddings": 163840, "norm_topk_prob": False, "rms_norm_eps": 1e-06,
        "rope_scaling": {**YARN, "mscale": 0.707, "mscale_all_dim": 0.707}, "rope_theta": 10000,
        "routed_scaling_factor": 1.0, "scoring_func": "softmax", "topk_method": "greedy", "vocab_size": 102400,
    },
}  # fmt: skip

MTP_ROWS = ("enorm", "hnorm", "eh_proj", "embed_tokens", "shared_head.norm", "shared_head.head")
"""What the published layer 61 has beside a block (README_WEIGHTS of DeepSeek-V3)."""


def shipped(name: str) -> DeepseekV3Config:
    raw = yaml.safe_load((FOLDER / f"{name}.yaml").read_text())
    return TypeAdapter(DeepseekV3Config).validate_python(raw["architecture"])


def size(name: str) -> Size:
    return DeepseekArchitecture(config=shipped(name)).size()


def on_meta(config: DeepseekV3Config) -> tuple[DeepseekV3, PreTrainedModel]:
    with torch.device("meta"):
        if config.scoring_func == "softmax":
            return DeepseekV3(config), DeepseekV2ForCausalLM(DeepseekV2Config(**config.to_hf()))
        return DeepseekV3(config), DeepseekV3ForCausalLM(TheirConfig(**config.to_hf()))


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_file_is_the_published_config_json(name: str) -> None:
    assert shipped(name) == DeepseekV3Config.from_hf(PUBLISHED[name])


@pytest.mark.parametrize("name", sorted(path.stem for path in FOLDER.glob("*.yaml") if path.stem != "hf"))
def test_names_and_shapes_are_theirs_in_memory_and_on_disk(name: str) -> None:
    ours, theirs = on_meta(shipped(name))
    shapes = {key: tuple(tensor.shape) for key, tensor in theirs.state_dict().items()}
    mtp = f"model.layers.{shipped(name).num_hidden_layers}."  # they have no class for it
    own = {key: tuple(tensor.shape) for key, tensor in ours.state_dict().items() if not key.startswith(mtp)}
    assert own == shapes
    # What their save_pretrained writes: the inverse of the conversion that reads a published checkpoint.
    on_disk = {key: tuple(t.shape) for key, t in revert_weight_conversion(theirs, theirs.state_dict()).items()}
    found = {key: tuple(tensor.shape) for key, tensor in ours.checkpoint_weights() if not key.startswith(mtp)}
    assert found == on_disk
    numbers = sum(parameter.numel() for parameter in theirs.parameters())
    print(f"{name}: {size(name).parameters:,} parameters here, {numbers:,} in transformers")
    assert size(name).parameters == numbers


def test_the_671b_checkpoint_has_the_tensors_of_the_published_index() -> None:
    """61 x (7 attention + 2 norms), 3 dense x 3, 58 x (router 2, shared 3, 256 experts x 3), 3; and a layer for MTP."""
    with torch.device("meta"):
        names = [name for name, _ in DeepseekV3(shipped("deepseek_v3_671b")).checkpoint_weights()]
    mtp = {name for name in names if name.startswith("model.layers.61.")}
    assert len(names) - len(mtp) == 61 * 9 + 3 * 3 + 58 * (2 + 3 + 256 * 3) + 3 == 45_395
    assert len(mtp) == 9 + 2 + 3 + 256 * 3 + len(MTP_ROWS)
    assert {f"model.layers.61.{row}.weight" for row in MTP_ROWS} <= mtp
    assert len(names) == len(set(names))
    assert "model.layers.60.mlp.experts.255.down_proj.weight" in names
    assert "model.layers.60.mlp.gate.e_score_correction_bias" in names
    assert "model.layers.2.mlp.gate_proj.weight" in names and "model.layers.2.mlp.gate.weight" not in names


def test_totals_are_those_of_the_papers() -> None:
    """V3: arXiv:2412.19437, abstract. Moonlight, without embedding and head: arXiv:2502.16982, table 5."""
    total, active = size("deepseek_v3_671b").parameters, size("deepseek_v3_671b").active_parameters
    print(f"deepseek_v3_671b: {total:,} parameters, of which {active:,} work on each token")
    assert (total, round(active / 1e9)) == (671_026_404_352, 37)
    moonlight = shipped("moonlight_16b")
    total, active = size("moonlight_16b").parameters, size("moonlight_16b").active_parameters
    matrix = moonlight.vocab_size * moonlight.hidden_size
    assert (round((total - 2 * matrix) / 1e9, 2), round((active - matrix) / 1e9, 2)) == (15.29, 2.24)
    assert round(size("deepseek_v2_lite").parameters / 1e9, 1) == 15.7  # arXiv:2405.04434, appendix B
    assert 0.9e9 < size("deepseek_v3_1b").parameters < 1.1e9


def test_the_module_of_671b_by_hand() -> None:
    """arXiv:2412.19437, section 4.2, for the sizes; README_WEIGHTS says 11.5 B, and 14 B with both copies."""
    attention = 7168 * 1536 + 1536 + 1536 * 128 * 192 + 7168 * 576 + 512 + 512 * 128 * 256 + 128 * 128 * 7168
    experts = 7168 * 256 + 257 * 3 * 7168 * 2048
    norms, projection, copies = 2 * 7168 + 3 * 7168, 2 * 7168 * 7168, 2 * 129280 * 7168
    found = size("deepseek_v3_671b").mtp_parameters
    print(f"deepseek_v3_671b: {found:,} parameters in MTP, {found + copies:,} with the copies of embedding and head")
    assert found == attention + experts + norms + projection == 11_610_067_968
    assert round((found + copies) / 1e9, 1) == 13.5
    assert size("moonlight_16b").mtp_parameters == 0


@pytest.mark.parametrize("name", [*PUBLISHED, "deepseek_v3_1b"])
def test_the_cache_holds_576_numbers_per_token_and_layer(name: str) -> None:
    assert size(name).cache_numbers == 576


def test_a_recipe_takes_them_and_names_a_misspelt_yarn_key() -> None:
    cfg = load_config("grpo", GrpoRun, ["model=deepseek_v3_671b"])
    assert cfg.model.architecture == shipped("deepseek_v3_671b")
    stretched = load_config("grpo", GrpoRun, ["model=deepseek_v2_lite", "model.architecture.rope_scaling.factor=20",
                                              "model.architecture.max_position_embeddings=81920"])  # fmt: skip
    assert stretched.model.architecture.rope_scaling is not None
    assert stretched.model.architecture.rope_scaling.factor == 20
    assert load_config("grpo", GrpoRun, ["model=moonlight_16b"]).model.architecture.rope_scaling is None
    with pytest.raises(ValueError, match=r"rope_scaling.facto is not a key \(did you mean 'factor'\?\)"):
        load_config("grpo", GrpoRun, ["model=deepseek_v3_671b", "+model.architecture.rope_scaling.facto=3"])
    with pytest.raises(ValueError, match="max_position_embeddings=163840: rope_scaling reaches 81920"):
        load_config("grpo", GrpoRun, ["model=deepseek_v3_671b", "model.architecture.rope_scaling.factor=20"])
