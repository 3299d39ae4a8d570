"""What a folder says of its model, what is wrong with it, and how a new one is written."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, MambaConfig, MambaForCausalLM, PhiConfig, PhiForCausalLM

from rlkit.errors import UserError
from rlkit.model import DeepseekV3
from rlkit.model.hf import HfModel
from rlkit.model.hf_architecture import NO_LIMIT, HfArchitecture
from rlkit.model.load import KINDS, load_model, read_architecture
from tests.hf_folders import make, save, tokenizer

UP = "model.layers.1.mlp.up_proj.weight"


def changed(folder: Path, change: Callable[[dict], object]) -> Path:
    """The same folder with its weights changed."""
    file = folder / "model.safetensors"
    tensors = load_file(file)
    change(tensors)
    save_file(tensors, file, metadata={"format": "pt"})
    return folder


def configured(folder: Path, **keys: object) -> Path:
    file = folder / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **keys}))
    return folder


def test_what_config_says(tmp_path: Path) -> None:
    found = HfArchitecture.from_folder(save(make("qwen2"), tmp_path))
    assert found.vocab_size == len(tokenizer()) + 3
    assert (found.num_hidden_layers, found.max_position_embeddings) == (2, 128)
    assert found.files.tied == {"lm_head.weight"} and "lm_head.weight" not in found.files.published
    assert found.size().parameters == sum(parameter.numel() for parameter in make("qwen2").parameters())
    found.check_files()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda w: w.pop(UP), rf"{UP}: missing; the checkpoint is not complete"),
        (lambda w: w.update({UP: w[UP][:, :8].clone()}), rf"safetensors: {UP}: shape \(96, 8\), but config.json makes"),
        (lambda w: w.update({"extra": torch.zeros(1)}), r"safetensors: extra: this model has no such weight"),
        (lambda w: w.update({UP: w[UP].int()}), rf"safetensors: {UP}: dtype I32; there are"),
    ],
)
def test_weights_that_do_not_fit_are_named_with_their_file(
    change: Callable[[dict], object], words: str, tmp_path: Path
) -> None:
    folder = changed(save(make("llama"), tmp_path), change)
    with pytest.raises(ValueError, match=words):
        HfArchitecture.from_folder(folder).check_files()


def test_a_file_cut_short(tmp_path: Path) -> None:
    file = save(make("llama"), tmp_path) / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-64])
    with pytest.raises(ValueError, match=r"model.safetensors: cut short"):
        HfArchitecture.from_folder(tmp_path).check_files()


def test_an_expert_that_is_missing_and_names_that_may_be_there(tmp_path: Path) -> None:
    """Published DeepSeek-V3 has its MTP layer as layer 61, which transformers leaves out."""
    folder = save(make("deepseek"), tmp_path)
    changed(folder, lambda w: w.update({"model.layers.61.eh_proj.weight": torch.zeros(2)}))
    HfArchitecture.from_folder(folder).check_files()
    lost = "model.layers.1.mlp.experts.2.down_proj.weight"
    changed(folder, lambda w: w.pop(lost))
    with pytest.raises(ValueError, match=lost):
        HfArchitecture.from_folder(folder).check_files()


def test_models_that_cannot_be_trained_are_refused(tmp_path: Path) -> None:
    folder = save(make("llama"), tmp_path / "llama")
    with pytest.raises(ValueError, match=r"config.json: model_type='nowhere' is not known to transformers"):
        HfArchitecture.from_folder(configured(folder, model_type="nowhere"))
    with pytest.raises(UserError, match=r"config.json: model_type='llama' cannot be made by transformers .*copy the"):
        HfArchitecture.from_folder(configured(save(make("llama"), tmp_path / "sizes"), hidden_act="nothing"))
    fp8 = configured(save(make("llama"), tmp_path / "fp8"), quantization_config={"quant_method": "fp8"})
    with pytest.raises(ValueError, match=r"quantization_config=.*does not start from quantised weights"):
        HfArchitecture.from_folder(fp8)
    sizes = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    PhiForCausalLM(PhiConfig(vocab_size=64, **sizes)).save_pretrained(tmp_path / "phi")
    with pytest.raises(ValueError, match=r"model_type='phi' has a head with a bias"):
        HfArchitecture.from_folder(tmp_path / "phi")
    (tmp_path / "clip").mkdir()
    (tmp_path / "clip" / "config.json").write_text(json.dumps({"model_type": "clip"}))
    with pytest.raises(ValueError, match=r"model_type='clip' is no causal language model"):
        HfArchitecture.from_folder(tmp_path / "clip")
    (tmp_path / "list").mkdir()
    (tmp_path / "list" / "config.json").write_text("[]")
    with pytest.raises(ValueError, match=r"model_type=\[\], but there should be keys"):
        HfArchitecture.from_folder(tmp_path / "list")


def test_our_own_class_sends_other_models_to_hf(tmp_path: Path) -> None:
    folder = save(make("qwen2"), tmp_path)
    with pytest.raises(ValueError, match=r"model_type='qwen2'; only 'deepseek_v3'.*model=hf loads others"):
        read_architecture(folder, "deepseek")
    assert read_architecture(folder, "hf").size().cache_name == "KV cache"


def test_both_classes_count_the_same_deepseek(tmp_path: Path) -> None:
    folder = save(make("deepseek"), tmp_path)
    ours, theirs = read_architecture(folder, "deepseek"), read_architecture(folder, "hf")
    assert replace(theirs.size(), cache_name="latent cache") == ours.size()
    assert theirs.size().cache_numbers == 32 + 16
    a, b = load_model(folder, torch.float32, "deepseek"), load_model(folder, torch.float32, "hf")
    assert isinstance(a, DeepseekV3) and isinstance(b, HfModel)
    assert a.published() == dict(b.published())
    tokens = torch.arange(3, 20)
    torch.testing.assert_close(a.hidden(tokens, [10, 7]), b.hidden(tokens, [10, 7]), rtol=1e-4, atol=1e-5)


def test_numbers_by_hand(tmp_path: Path) -> None:
    """One key head and one value head of 32 numbers; the embedding is untied, so a token reads one of its rows."""
    llama = HfArchitecture.from_folder(save(make("llama"), tmp_path / "llama"))
    assert llama.size().cache_numbers == 2 * 32
    total, active = llama.size().parameters, llama.size().active_parameters
    rows = len(tokenizer()) + 3
    layer = 64 * 64 + 2 * 64 * 32 + 64 * 64 + 3 * 64 * 96 + 2 * 64
    assert total == 2 * layer + 64 + 2 * rows * 64
    assert active == total - (rows - 1) * 64
    tied = HfArchitecture.from_folder(save(make("qwen2"), tmp_path / "qwen2")).size()
    assert tied.parameters == tied.active_parameters == 2 * (layer + 64 + 2 * 32) + 64 + rows * 64
    assert NO_LIMIT > 10**9


def test_empty_models_take_no_memory(tmp_path: Path) -> None:
    save(make("deepseek"), tmp_path)
    for kind in KINDS:
        model = read_architecture(tmp_path, kind).empty_model()
        assert all(tensor.is_meta for tensor in model.state_dict().values())


@pytest.mark.parametrize("kind", ["qwen2", "deepseek"])
@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_written_weights_load_in_transformers(kind: str, dtype: str, tmp_path: Path) -> None:
    folder = configured(save(make(kind), tmp_path / "base"), made_up_key=7)
    model = HfModel.from_checkpoint(folder)
    read_architecture(folder, "hf").write(tmp_path / "out", model.checkpoint_weights(), dtype)
    raw = json.loads((tmp_path / "out" / "config.json").read_text())
    assert raw["made_up_key"] == 7 and raw["dtype"] == {"fp32": "float32", "bf16": "bfloat16"}[dtype]
    assert (tmp_path / "out" / "generation_config.json").exists()
    written, before = load_file(tmp_path / "out" / "model.safetensors"), load_file(folder / "model.safetensors")
    assert written.keys() == before.keys()
    wanted = {"fp32": torch.float32, "bf16": torch.bfloat16}[dtype]
    for name, tensor in written.items():
        kept = torch.float32 if name.endswith("e_score_correction_bias") else wanted
        assert torch.equal(tensor, before[name].to(kept)), name
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype=wanted)
    if kind == "qwen2":
        assert loaded.lm_head.weight is loaded.model.embed_tokens.weight
    assert HfModel.from_checkpoint(tmp_path / "out", wanted).published() == model.published()


def test_nothing_half_written_is_left(tmp_path: Path) -> None:
    model = HfModel.from_checkpoint(save(make("llama"), tmp_path / "base"))
    incomplete = ((name, tensor) for name, tensor in model.checkpoint_weights() if name != UP)
    with pytest.raises(ValueError, match=rf"{UP}: missing, with 0 others"):
        model.files.write(tmp_path / "out", incomplete, "fp32")
    assert {entry.name for entry in tmp_path.iterdir()} == {"base"}


@pytest.mark.parametrize(
    ("kind", "changes", "words"),
    [
        ("llama", {"logit_scale": 0.5}, "has logit_scale=0.5"),
        ("llama", {"final_logit_softcapping": 30.0}, "has final_logit_softcapping=30.0"),
    ],
)
def test_logits_that_config_says_are_scaled_are_refused_in_every_dtype(
    tmp_path: Path, kind: str, changes: dict[str, float], words: str
) -> None:
    """In bf16 a soft cap is within rounding, so comparing logits did not find it."""
    save(make(kind), tmp_path)
    with pytest.raises(ValueError, match=words):
        HfArchitecture.from_folder(configured(tmp_path, **changes))


def test_rope_that_looks_at_the_whole_batch_is_exact_up_to_the_original_context(tmp_path: Path) -> None:
    rope = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 10000.0, "original_max_position_embeddings": 64}
    found = HfArchitecture.from_folder(save(make("llama", rope_parameters=rope), tmp_path))
    assert (found.exact_positions, found.max_position_embeddings) == (64, 128)
    assert HfArchitecture.from_folder(save(make("qwen2"), tmp_path / "plain")).exact_positions == 128


def test_state_space_layers_are_refused(tmp_path: Path) -> None:
    config = MambaConfig(vocab_size=32, hidden_size=16, state_size=4, num_hidden_layers=1)
    MambaForCausalLM(config).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="model_type='mamba' has "):
        HfArchitecture.from_folder(tmp_path)


def test_old_buffers_in_a_file_are_no_weights(tmp_path: Path) -> None:
    folder = save(make("llama"), tmp_path)
    weights = load_file(folder / "model.safetensors")
    save_file(weights | {"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(4)}, folder / "model.safetensors")
    HfArchitecture.from_folder(folder).check_files()


def test_a_head_that_differs_from_the_embedding_it_should_be_tied_to_is_refused(tmp_path: Path) -> None:
    """transformers then trains two matrices, and a checkpoint of them would hold one."""
    folder = save(make("qwen2"), tmp_path)
    weights = load_file(folder / "model.safetensors")
    head = weights["model.embed_tokens.weight"].clone()
    save_file(weights | {"lm_head.weight": head}, folder / "model.safetensors", metadata={"format": "pt"})
    HfModel.from_checkpoint(folder)
    save_file(weights | {"lm_head.weight": head + 1}, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"lm_head\.weight differs from the embedding.*tie_word_embeddings=true"):
        HfModel.from_checkpoint(folder)
