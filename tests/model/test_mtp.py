"""Multi-token prediction: the modules against transformers' layers, their place in a pack, their weights on disk."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForCausalLM

from rlkit.model import DeepseekV3, DeepseekV3Config
from rlkit.model.deepseek_architecture import DeepseekArchitecture
from rlkit.model.files.convert import convert_checkpoint
from rlkit.model.files.folder import DTYPES
from rlkit.model.files.names import published_names
from rlkit.model.files.verify import checkpoint_faults, compare_checkpoints
from tests.model.mtp_reference import Reference
from tests.model.tiny import BASE, relative, seeded

CONFIG = replace(BASE, num_nextn_predict_layers=2, q_lora_rank=24, n_group=2)
DENSE = replace(CONFIG, first_k_dense_replace=3, n_group=1)
COPIES = [f"model.layers.{3 + i}.{name}.weight" for i in range(2) for name in ("embed_tokens", "shared_head.head")]
SAMPLES = ([3, 1, 4, 1, 5, 9, 2, 6, 5], [7], [27, 18], [28, 18, 28], [1, 2, 3, 4, 5, 6])


def modules_output(model: DeepseekV3, samples: list[list[int]]) -> list[tuple[Tensor, Tensor]]:
    """Places and hidden states of every depth, for samples packed end to end."""
    tokens, lengths = torch.tensor([token for sample in samples for token in sample]), [len(s) for s in samples]
    found = model.mtp_hidden(tokens, lengths, model.hidden(tokens, lengths), detached=False)
    return [(places, hidden.detach()) for places, hidden in found]


@pytest.mark.parametrize(
    "config", [CONFIG, DENSE, replace(BASE, num_nextn_predict_layers=1)], ids=["moe", "dense", "1"]
)
def test_hidden_states_equal_transformers_layers(config: DeepseekV3Config) -> None:
    """Every row that predicts something, of every depth; samples of one and two tokens predict nothing."""
    model = seeded(config)
    reference = Reference(model)
    starts = torch.tensor([0, *(len(sample) for sample in SAMPLES)]).cumsum(0).tolist()
    theirs = [reference.hidden(sample) for sample in SAMPLES]
    for depth, (places_M, hidden_MD) in enumerate(modules_output(model, list(SAMPLES)), start=1):
        expected = {
            start + row + depth + 1: found[depth][row]
            for start, sample, found in zip(starts, SAMPLES, theirs, strict=False)
            for row in range(len(sample) - depth - 1)
        }
        assert places_M.tolist() == list(expected)
        assert relative(hidden_MD, torch.stack(list(expected.values())).detach()) <= 1e-5, f"depth {depth}"


@torch.no_grad()
def test_samples_of_a_pack_do_not_see_each_other_nor_what_comes_later() -> None:
    model = seeded(CONFIG)
    together = modules_output(model, list(SAMPLES))
    changed = modules_output(model, [SAMPLES[0], [8], [1, 1], [2, 2, 2], SAMPLES[4]])
    cut = modules_output(model, [SAMPLES[0][:6]])
    for depth in (1, 2):
        (_, all_MD), (_, other_MD), (_, cut_MD) = together[depth - 1], changed[depth - 1], cut[depth - 1]
        first, last = 9 - depth - 1, 6 - depth - 1
        torch.testing.assert_close(other_MD[:first], all_MD[:first])
        torch.testing.assert_close(other_MD[-last:], all_MD[-last:])
        torch.testing.assert_close(cut_MD, all_MD[:last], rtol=1e-5, atol=1e-5)


def test_a_pack_of_too_short_samples_has_no_rows() -> None:
    assert [len(places) for places, _ in modules_output(seeded(CONFIG), [[5], [6, 7]])] == [0, 0]
    assert [len(places) for places, _ in modules_output(seeded(CONFIG), [[5], [6, 7, 8]])] == [1, 0]


def test_the_main_model_does_not_know_of_its_modules() -> None:
    model, tokens = seeded(CONFIG), torch.tensor(SAMPLES[0])
    plain = DeepseekV3(replace(CONFIG, num_nextn_predict_layers=0))
    plain.load_state_dict({name: t for name, t in model.state_dict().items() if name in plain.state_dict()})
    assert torch.equal(plain(tokens), model(tokens))


def test_embedding_and_head_are_kept_once_and_written_as_copies() -> None:
    model = seeded(CONFIG)
    ours = [name for name, _ in model.named_parameters()]
    assert not {"model.layers.3.embed_tokens.weight", "model.layers.3.shared_head.head.weight"} & set(ours)
    published = dict(model.checkpoint_weights())
    assert list(published) == list(published_names(CONFIG))
    for name in COPIES:
        main = "model.embed_tokens.weight" if "embed" in name else "lm_head.weight"
        assert published[name].data_ptr() == published[main].data_ptr()
    one_module = sum(p.numel() for name, p in model.named_parameters() if ".layers.3." in name)
    assert one_module * 2 == DeepseekArchitecture(config=CONFIG).size().mtp_parameters


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("copies", ["with", "without", "first"])
def test_loading_restores_every_bit_with_or_without_the_copies(copies: str, tied: bool) -> None:
    source, target = (seeded(replace(CONFIG, tie_word_embeddings=tied), seed) for seed in (1, 2))
    sent = [(name, tensor) for name, tensor in source.checkpoint_weights() if copies != "without" or name not in COPIES]
    target.load_weights(reversed(sent) if copies == "first" else sent)
    states = target.state_dict()
    assert all(torch.equal(tensor, states[name]) for name, tensor in source.state_dict().items())


@pytest.mark.parametrize("name", [COPIES[0], COPIES[3]])
def test_a_copy_that_differs_is_named(name: str, tmp_path: Path) -> None:
    model = seeded(CONFIG)
    sent = [(key, tensor + 1 if key == name else tensor) for key, tensor in model.checkpoint_weights()]
    main = "model.embed_tokens.weight" if "embed" in name else "lm_head.weight"
    with pytest.raises(ValueError, match=f"{name}: not equal to {main}, but the model has one tensor"):
        seeded(CONFIG).load_weights(sent)
    model.save_checkpoint(tmp_path, dtype="fp32")
    file = tmp_path / "model.safetensors"
    save_file({key: t + 1 if key == name else t for key, t in load_file(file).items()}, file, metadata={"format": "pt"})
    assert [fault.tensor for fault in checkpoint_faults(tmp_path)] == [name]
    with pytest.raises(ValueError, match=f"model.safetensors: {name}: not equal to {main}"):
        DeepseekV3.from_checkpoint(tmp_path)


def test_a_checkpoint_without_the_copies_is_whole(tmp_path: Path) -> None:
    model = seeded(CONFIG)
    model.save_checkpoint(tmp_path, dtype="fp32")
    file = tmp_path / "model.safetensors"
    save_file({name: t for name, t in load_file(file).items() if name not in COPIES}, file, metadata={"format": "pt"})
    assert not list(checkpoint_faults(tmp_path))
    DeepseekArchitecture.from_folder(tmp_path).check_files()
    states = DeepseekV3.from_checkpoint(tmp_path).state_dict()
    assert all(torch.equal(tensor, states[name]) for name, tensor in model.state_dict().items())


@pytest.mark.slow
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_checkpoint_holds_the_modules_under_their_published_names(dtype: str, tmp_path: Path) -> None:
    model = seeded(CONFIG)
    model.save_checkpoint(tmp_path / "a", dtype=dtype, max_shard_bytes=100_000)
    assert json.loads((tmp_path / "a" / "config.json").read_text())["num_nextn_predict_layers"] == 2
    assert not list(checkpoint_faults(tmp_path / "a"))
    back = DeepseekV3.from_checkpoint(tmp_path / "a")
    assert back.config == CONFIG
    back.save_checkpoint(tmp_path / "b", dtype=dtype)
    assert not list(compare_checkpoints(tmp_path / "a", tmp_path / "b"))
    if dtype == "fp32":
        states = back.state_dict()
        assert all(torch.equal(tensor, states[name]) for name, tensor in model.state_dict().items())
    else:
        between = "bf16" if dtype == "fp8" else "fp32"
        convert_checkpoint(tmp_path / "a", tmp_path / "c", between)
        convert_checkpoint(tmp_path / "c", tmp_path / "d", dtype)
        assert not list(compare_checkpoints(tmp_path / "a", tmp_path / "d"))


def test_transformers_loads_it_as_the_main_model(tmp_path: Path) -> None:
    """Its class leaves layer 61 out in silence; at other depths it reports the tensors as unexpected and goes on."""
    model = seeded(CONFIG)
    model.save_checkpoint(tmp_path, dtype="fp32")
    theirs, report = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32, output_loading_info=True)
    assert not report["missing_keys"] and not report["mismatched_keys"]
    assert {".".join(name.split(".")[:3]) for name in report["unexpected_keys"]} == {"model.layers.3", "model.layers.4"}
    tokens = torch.tensor([SAMPLES[0]])
    assert relative(model(tokens), theirs(tokens).logits) <= 1e-5


def test_an_incomplete_module_is_refused(tmp_path: Path) -> None:
    model = seeded(CONFIG)
    name = "model.layers.4.eh_proj.weight"
    with pytest.raises(ValueError, match=f"{name}: missing"):
        model.load_weights(((key, tensor) for key, tensor in seeded(CONFIG, 1).checkpoint_weights() if key != name))
    seeded(replace(CONFIG, num_nextn_predict_layers=1)).save_checkpoint(tmp_path)
    raw = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(raw | {"num_nextn_predict_layers": 2}))
    with pytest.raises(ValueError, match=r"model\.layers\.4\..*: missing"):
        DeepseekV3.from_checkpoint(tmp_path)


@pytest.mark.parametrize("depth", [-1, 1.5, True])
def test_a_depth_that_is_none_is_refused(depth: object) -> None:
    with pytest.raises(ValueError, match=rf"num_nextn_predict_layers={depth}: give 0 \(none\) or more"):
        DeepseekV3Config(num_nextn_predict_layers=depth)  # type: ignore[arg-type]
    assert DeepseekV3Config.from_hf({"num_nextn_predict_layers": None}).num_nextn_predict_layers == 0


def test_modules_need_experts_that_can_be_chosen_even_where_no_layer_has_any() -> None:
    dense = replace(BASE, first_k_dense_replace=3, n_group=3)
    assert dense.n_routed_experts % dense.n_group
    with pytest.raises(ValueError, match="n_group=3: it must divide"):
        replace(dense, num_nextn_predict_layers=1)
