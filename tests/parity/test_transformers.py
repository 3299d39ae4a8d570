"""Our DeepSeek-V3 against transformers' on the same checkpoint, in fp32: logits, every gradient, files both ways."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors import safe_open
from transformers import AutoConfig, AutoModelForCausalLM, DeepseekV3ForCausalLM
from transformers import DeepseekV3Config as TheirConfig

from rlkit.model import DeepseekV3, DeepseekV3Config
from tests.model.tiny import BASE, relative, seeded

CONFIGS = {
    "plain": BASE,
    "low_rank_queries": replace(BASE, q_lora_rank=24),
    "groups": replace(BASE, n_routed_experts=16, n_group=4, topk_group=2, num_experts_per_tok=4),
    "two_shared_two_dense": replace(BASE, n_shared_experts=2, first_k_dense_replace=2, routed_scaling_factor=1.0),
    "wide_values": replace(BASE, v_head_dim=32, rms_norm_eps=1e-5, rope_theta=500.0),
    "weights_not_normalised": replace(BASE, norm_topk_prob=False),
    "all_dense": replace(BASE, first_k_dense_replace=3),
    "tied": replace(BASE, tie_word_embeddings=True),
}


def theirs(folder: Path) -> DeepseekV3ForCausalLM:
    return DeepseekV3ForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager")


@pytest.mark.parametrize("name", CONFIGS)
def test_logits_and_all_gradients_are_theirs(name: str, tmp_path: Path) -> None:
    ours = seeded(CONFIGS[name])
    ours.save_checkpoint(tmp_path, dtype="fp32")
    reference = theirs(tmp_path)
    tokens = torch.randint(0, 96, (3, 17))
    logits, expected = ours(tokens), reference(tokens, use_cache=False).logits
    assert relative(logits, expected) <= 1e-5, f"{name}: logits differ by {relative(logits, expected):.2e}"
    for out in (logits, expected):
        F.cross_entropy(out[:, :-1].flatten(0, 1), tokens[:, 1:].flatten()).backward()
    gradients = {key: parameter.grad for key, parameter in reference.named_parameters()}
    assert gradients.keys() == dict(ours.named_parameters()).keys()
    for key, parameter in ours.named_parameters():
        assert parameter.grad is not None and gradients[key] is not None, key
        gap = relative(parameter.grad, gradients[key])
        assert gap <= 1e-5, f"{name}: gradient of {key} {tuple(parameter.shape)} differs by {gap:.2e}"


def test_packed_samples_equal_their_separate_runs(tmp_path: Path) -> None:
    ours = seeded(CONFIGS["groups"])
    ours.save_checkpoint(tmp_path, dtype="fp32")
    reference = theirs(tmp_path)
    lengths = (5, 40, 1, 7, 7, 23)
    tokens_T = torch.randint(0, 96, (sum(lengths),))
    with torch.no_grad():
        packed = ours(tokens_T, lengths).split(lengths)
        for sample, logits in zip(tokens_T.split(lengths), packed, strict=True):
            assert relative(logits, reference(sample[None]).logits[0]) <= 1e-5, f"sample of {len(sample)} tokens"


@pytest.mark.parametrize("name", ["low_rank_queries", "groups", "all_dense", "tied"])
def test_reads_what_save_pretrained_writes(name: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    reference = DeepseekV3ForCausalLM(TheirConfig(**CONFIGS[name].to_hf()))
    for key, buffer in reference.named_buffers():
        if key.endswith("e_score_correction_bias"):
            buffer.normal_(std=0.1)
    reference.save_pretrained(tmp_path)
    ours = DeepseekV3.from_checkpoint(tmp_path)
    assert ours.config == CONFIGS[name]
    tokens = torch.randint(0, 96, (2, 9))
    with torch.no_grad():
        assert relative(ours(tokens), reference(tokens).logits) <= 1e-5


def test_reads_their_shards(tmp_path: Path) -> None:
    torch.manual_seed(0)
    reference = DeepseekV3ForCausalLM(TheirConfig(**CONFIGS["groups"].to_hf()))
    reference.save_pretrained(tmp_path, max_shard_size="100KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    ours = dict(DeepseekV3.from_checkpoint(tmp_path).checkpoint_weights())
    count = 0
    for shard in tmp_path.glob("*.safetensors"):
        with safe_open(shard, framework="pt") as reader:
            for key in reader.keys():  # noqa: SIM118 - not a mapping
                assert torch.equal(ours[key], reader.get_tensor(key)), key
                count += 1
    assert count == len(ours)


def test_published_names_are_those_of_save_pretrained(tmp_path: Path) -> None:
    for name in ("plain", "low_rank_queries", "two_shared_two_dense"):
        folder = tmp_path / name
        DeepseekV3ForCausalLM(TheirConfig(**CONFIGS[name].to_hf())).save_pretrained(folder)
        with safe_open(folder / "model.safetensors", framework="pt") as reader:
            written = {key: tuple(reader.get_slice(key).get_shape()) for key in reader.keys()}  # noqa: SIM118
        assert {key: tuple(tensor.shape) for key, tensor in DeepseekV3(CONFIGS[name]).checkpoint_weights()} == written


def test_bf16_checkpoint_loads_in_transformers_and_keeps_the_bias_exact(tmp_path: Path) -> None:
    ours = seeded(CONFIGS["groups"])
    ours.save_checkpoint(tmp_path)
    reference = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert type(reference) is DeepseekV3ForCausalLM and reference.dtype == torch.bfloat16
    buffers, states = dict(reference.named_buffers()), ours.state_dict()
    biases = [key for key in states if key.endswith("e_score_correction_bias")]
    assert len(biases) == 2
    for key in biases:
        assert buffers[key].dtype == torch.float32 and torch.equal(buffers[key], states[key])
    for key, parameter in reference.named_parameters():
        assert torch.equal(parameter, states[key].to(torch.bfloat16)), key


def test_bf16_logits_are_theirs_within_bf16(tmp_path: Path) -> None:
    """No routed experts here: bf16 noise flips router choices, and then two right answers differ."""
    ours = seeded(CONFIGS["all_dense"])
    ours.save_checkpoint(tmp_path)
    reference = DeepseekV3ForCausalLM.from_pretrained(tmp_path, dtype=torch.bfloat16)
    tokens = torch.randint(0, 96, (2, 12))
    with torch.no_grad():
        exact = DeepseekV3.from_checkpoint(tmp_path)(tokens)
        ours_gap = relative(DeepseekV3.from_checkpoint(tmp_path, dtype=torch.bfloat16)(tokens).float(), exact)
        their_gap = relative(reference(tokens).logits.float(), exact)
    assert ours_gap <= 1.5 * their_gap, f"we are {ours_gap:.2e} from fp32, they are {their_gap:.2e}"


def test_config_json_is_the_one_transformers_understands(tmp_path: Path) -> None:
    config = CONFIGS["low_rank_queries"]
    seeded(config).save_checkpoint(tmp_path)
    read = AutoConfig.from_pretrained(tmp_path)
    assert type(read) is TheirConfig
    assert DeepseekV3Config.from_hf(read.to_dict()) == config
    theirs = DeepseekV3Config.from_hf(TheirConfig().to_dict())
    assert theirs == DeepseekV3Config(num_nextn_predict_layers=1), "our defaults are not theirs"
