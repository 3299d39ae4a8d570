"""Models of transformers behind our interface: packs, decoding, names and what is refused, against transformers."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import Gemma2Config, Gemma2ForCausalLM, PreTrainedModel, Qwen3MoeConfig, Qwen3MoeForCausalLM

from rlkit.model import DeepseekV3
from rlkit.model.hf import HfModel
from tests.hf_folders import make, save

KINDS = ["qwen2", "llama", "mistral", "deepseek"]
SEQUENCES = [[5, 6, 7, 8, 9, 10, 11, 3, 4, 5, 6], [9, 9, 3], [4], [7, 6, 5, 4, 3, 2, 11, 12], [8, 8, 8]]
LENGTHS = [len(sequence) for sequence in SEQUENCES]
load = HfModel.from_checkpoint
PACK = torch.tensor([token for sequence in SEQUENCES for token in sequence])


@pytest.fixture(scope="module", params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module")
def folder(kind: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(make(kind), tmp_path_factory.mktemp(kind))


@pytest.fixture
def model(folder: Path) -> HfModel:
    return HfModel.from_checkpoint(folder)


@pytest.fixture
def theirs(folder: Path, kind: str) -> PreTrainedModel:
    return make(kind)


def test_samples_of_a_pack_do_not_see_each_other(model: HfModel, theirs: PreTrainedModel) -> None:
    logits = model.lm_head(model.hidden(PACK, LENGTHS)).split(LENGTHS)
    for sequence, ours_TV in zip(SEQUENCES, logits, strict=True):
        expected_TV = theirs(torch.tensor([sequence])).logits[0]
        torch.testing.assert_close(ours_TV, expected_TV, rtol=1e-5, atol=1e-5)


def test_gradients_of_a_pack_are_those_of_its_samples_one_by_one(model: HfModel, theirs: PreTrainedModel) -> None:
    coefficients = torch.randn(len(PACK), model.lm_head.weight.shape[0])
    (model.lm_head(model.hidden(PACK, LENGTHS)) * coefficients).sum().backward()
    for sequence, part_TV in zip(SEQUENCES, coefficients.split(LENGTHS), strict=True):
        (theirs(torch.tensor([sequence])).logits[0] * part_TV).sum().backward()
    ours = dict(model.inner.named_parameters())
    for name, parameter in theirs.named_parameters():
        if parameter.grad is not None:
            error = (ours[name].grad - parameter.grad).norm() / parameter.grad.norm().clamp_min(1e-6)
            assert error <= 1e-5, name


@torch.no_grad()
def test_decoding_equals_the_whole_forward(model: HfModel, theirs: PreTrainedModel) -> None:
    """Prompts of different lengths, some drawn twice, some leaving the batch, beyond Mistral's window."""
    logits_BV, cache = model.prefill(SEQUENCES)
    for sequence, ours_V in zip(SEQUENCES, logits_BV, strict=True):
        torch.testing.assert_close(ours_V, theirs(torch.tensor([sequence])).logits[0, -1], rtol=1e-5, atol=1e-5)
    order = [1, 0, 3, 3, 2]
    cache, written = cache.rows(torch.tensor(order), 99), [list(SEQUENCES[i]) for i in order]
    for step in range(9):
        if step == 4:
            cache, written = cache.rows(torch.tensor([1, 2, 4]), 99), [written[i] for i in (1, 2, 4)]
        tokens = [3 + (5 * i + step) % 20 for i in range(len(written))]
        written = [[*row, token] for row, token in zip(written, tokens, strict=True)]
        assert cache.lengths_B.tolist() == [len(row) - 1 for row in written]
        logits_BV, cache = model.decode_step(torch.tensor(tokens), cache)
        for row, ours_V in zip(written, logits_BV, strict=True):
            torch.testing.assert_close(ours_V, theirs(torch.tensor([row])).logits[0, -1], rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_rows_leave_the_old_cache_alone(model: HfModel) -> None:
    _, cache = model.prefill(SEQUENCES[:2])
    kept = cache.rows(torch.tensor([1]), 9)
    model.decode_step(torch.tensor([5]), kept)
    before, _ = model.decode_step(torch.tensor([5, 6]), cache.rows(torch.tensor([0, 1]), 9))
    after, _ = model.decode_step(torch.tensor([5, 6]), cache)
    assert torch.equal(before, after)


def test_names_are_the_published_ones(model: HfModel, folder: Path, kind: str) -> None:
    published = load_file(folder / "model.safetensors")
    ours = dict(model.checkpoint_weights())
    assert {*model.published()} == published.keys() == ours.keys() - ({"lm_head.weight"} if kind == "qwen2" else set())
    for name, tensor in published.items():
        assert model.published()[name] == tuple(tensor.shape)
        assert torch.equal(ours[name], tensor), name
    assert ("model.layers.1.mlp.experts.3.up_proj.weight" in published) == (kind == "deepseek")


def test_loaded_weights_are_those_that_were_sent(model: HfModel, theirs: PreTrainedModel) -> None:
    sent = {name: tensor + 0.01 * torch.randn_like(tensor) for name, tensor in model.checkpoint_weights()}
    if "lm_head.weight" in model.files.tied:
        sent["lm_head.weight"] = sent["model.embed_tokens.weight"]
    parameters = dict(model.inner.named_parameters())
    model.load_weights(iter(sent.items()))
    assert dict(model.inner.named_parameters()).keys() == parameters.keys()
    for name, tensor in model.checkpoint_weights():
        assert torch.equal(tensor, sent[name]), name
    if "lm_head.weight" in model.files.tied:
        assert model.lm_head.weight is model.inner.get_input_embeddings().weight


def test_weights_that_do_not_fit_are_refused(model: HfModel) -> None:
    sent = dict(model.checkpoint_weights())
    name = "model.layers.0.mlp.up_proj.weight"
    with pytest.raises(ValueError, match=rf"{name}: missing, with 0 others"):
        model.load_weights((n, t) for n, t in sent.items() if n != name)
    with pytest.raises(ValueError, match="extra: this model has no such weight"):
        model.load_weights([*sent.items(), ("extra", torch.zeros(1))])
    with pytest.raises(ValueError, match=rf"{name}: given twice"):
        model.load_weights([*sent.items(), (name, sent[name])])
    with pytest.raises(ValueError, match=rf"{name}: shape \(64, 96\), but config.json makes it \(96, 64\)"):
        model.load_weights([*({**sent, name: sent[name].T}).items()])


def test_blocks_are_named_as_in_our_model_and_in_order(model: HfModel, theirs: PreTrainedModel) -> None:
    outputs = {name: tensor for name, tensor in model.trace(SEQUENCES[0]).items() if not name.endswith(".gate")}
    blocks = [f"model.layers.{i}.{part}" for i in (0, 1) for part in ("self_attn", "mlp")]
    assert list(outputs) == [*blocks, "model.norm"]
    expected_TD = theirs.base_model(torch.tensor(SEQUENCES[:1])).last_hidden_state[0]
    torch.testing.assert_close(outputs["model.norm"], expected_TD, rtol=1e-5, atol=1e-5)
    assert all(output_TD.shape == (11, 64) for output_TD in outputs.values())
    assert not any(module._forward_hooks for module in model.modules())


def test_margins_of_deepseeks_router_are_those_of_our_class(tmp_path: Path) -> None:
    folder = save(make("deepseek"), tmp_path)
    ours, theirs = (loaded.trace(PACK.tolist()) for loaded in (DeepseekV3.from_checkpoint(folder), load(folder)))
    name = "model.layers.1.mlp.gate"
    assert ours[name].shape == theirs[name].shape == (len(PACK), 1)
    torch.testing.assert_close(theirs[name], ours[name], rtol=1e-4, atol=1e-5)


def test_margins_of_a_softmax_router(tmp_path: Path) -> None:
    """The gap between the second and the third probability of four, in float64."""
    sizes = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    experts = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32, "decoder_sparse_step": 1}
    config = Qwen3MoeConfig(vocab_size=64, num_key_value_heads=2, initializer_range=0.2, **sizes, **experts)
    torch.manual_seed(0)
    Qwen3MoeForCausalLM(config).save_pretrained(tmp_path)
    model = load(tmp_path)
    seen: list[torch.Tensor] = []
    gate = model.inner.get_submodule("model.layers.0.mlp.gate")
    gate.register_forward_pre_hook(lambda _gate, args: seen.append(args[0].flatten(0, -2).double()))
    margins_T = model.trace(PACK.tolist())["model.layers.0.mlp.gate"].flatten()
    ranked_TE = (seen[0] @ gate.weight.double().T).softmax(-1).sort(-1, descending=True).values
    torch.testing.assert_close(margins_T.double(), ranked_TE[:, 1] - ranked_TE[:, 2], rtol=1e-4, atol=1e-6)


def test_there_is_no_dropout_in_training(tmp_path: Path) -> None:
    model = HfModel.from_checkpoint(save(make("llama", attention_dropout=0.5), tmp_path)).train()
    assert torch.equal(model.hidden(PACK, LENGTHS), model.eval().hidden(PACK, LENGTHS))
    assert model.train().training and not model.inner.training


def test_bf16_is_loaded_and_keeps_what_must_be_exact(tmp_path: Path) -> None:
    model = HfModel.from_checkpoint(save(make("deepseek"), tmp_path), torch.bfloat16)
    assert model.lm_head.weight.dtype == torch.bfloat16
    kept = {name.rpartition(".")[2] for name, buffer in model.named_buffers() if buffer.dtype == torch.float32}
    assert {"e_score_correction_bias", "inv_freq"} <= kept


def test_logits_that_are_more_than_a_product_are_refused(tmp_path: Path) -> None:
    sizes = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "head_dim": 16}
    config = Gemma2Config(**sizes, num_attention_heads=2, num_key_value_heads=1, eos_token_id=1, bos_token_id=0)
    assert config.final_logit_softcapping == 30
    Gemma2ForCausalLM(config).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"model_type='gemma2' has final_logit_softcapping=30\.0; only models whose"):
        HfModel.from_checkpoint(tmp_path)


@pytest.mark.parametrize("number", [float("nan"), float("inf")])
def test_a_weight_that_is_no_number_is_named(tmp_path: Path, number: float) -> None:
    file = save(make("llama"), tmp_path) / "model.safetensors"
    tensors = load_file(file)
    tensors["model.layers.1.self_attn.k_proj.weight"][0, 0] = number
    save_file(tensors, file, metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"model.layers.1.self_attn.k_proj.weight: a number is NaN or infinite"):
        HfModel.from_checkpoint(tmp_path)


def test_lengths_and_prompts_without_tokens(tmp_path: Path) -> None:
    model = HfModel.from_checkpoint(save(make("llama"), tmp_path))
    with pytest.raises(ValueError, match=r"lengths=\(2, 2\) sum to 4; they must sum to 5 tokens"):
        model.hidden(torch.arange(5), (2, 2))
    with pytest.raises(ValueError, match="a prompt without tokens"):
        model.prefill([[3], []])
