"""Which tokens end a completion, as both engines, the checks before a run and an export see it."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import GenerationConfig

from rlkit.model import DeepseekV3, DeepseekV3Config
from rlkit.model.files.convert import convert_checkpoint
from rlkit.model.files.end_tokens import end_tokens
from rlkit.model.load import KINDS, read_architecture
from tests.hf_folders import make, save
from tests.model.tiny import BASE, seeded


def folder(tmp_path: Path, config: object, generation: object = "no file") -> Path:
    tmp_path.mkdir(exist_ok=True)
    (tmp_path / "config.json").write_text(json.dumps(config))
    if generation != "no file":
        (tmp_path / "generation_config.json").write_text(json.dumps(generation))
    return tmp_path


@pytest.mark.parametrize(
    ("config", "generation", "expected"),
    [
        ({"eos_token_id": 1}, "no file", {1}),
        ({"eos_token_id": [1, 7]}, "no file", {1, 7}),
        ({"eos_token_id": 1}, {"eos_token_id": [1, 7]}, {1, 7}),
        ({"eos_token_id": 2}, {"eos_token_id": 9}, {2, 9}),
        ({}, {"eos_token_id": 9}, {9}),
        ({"eos_token_id": None}, {"eos_token_id": [3]}, {3}),
        ({"eos_token_id": 0}, {}, {0}),
        ({"eos_token_id": [4]}, {"eos_token_id": None}, {4}),
        ({"text_config": {"eos_token_id": [5, 6]}}, "no file", {5, 6}),
        ({"eos_token_id": 1, "text_config": {"eos_token_id": 5}}, "no file", {1}),
    ],
)
def test_both_files_name_ends(config: object, generation: object, expected: set[int], tmp_path: Path) -> None:
    assert end_tokens(folder(tmp_path, config, generation)) == expected


@pytest.mark.parametrize(
    ("config", "generation", "words"),
    [
        ({}, "no file", r"config\.json: eos_token_id is missing, so no completion would end; set it"),
        ({"eos_token_id": []}, {"eos_token_id": None}, r"eos_token_id is missing"),
        ({"eos_token_id": "</s>"}, "no file", r"config\.json: eos_token_id='</s>': give a token id, or a list"),
        ({"eos_token_id": 1}, {"eos_token_id": [1, 2.5]}, r"generation_config\.json: eos_token_id=\[1, 2\.5\]"),
        ({"eos_token_id": [1, True]}, "no file", r"eos_token_id=\[1, True\]"),
        ({"eos_token_id": -1}, "no file", r"eos_token_id=-1"),
        ([], "no file", r"config\.json: there should be keys and values"),
    ],
)
def test_what_names_no_end_is_refused(config: object, generation: object, words: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=words):
        end_tokens(folder(tmp_path, config, generation))


def test_a_file_that_is_cut_short_is_named(tmp_path: Path) -> None:
    folder(tmp_path, {"eos_token_id": 1})
    (tmp_path / "generation_config.json").write_text('{"eos_token_id": [1,')
    with pytest.raises(ValueError, match=r"generation_config\.json: not valid JSON"):
        end_tokens(tmp_path)


@pytest.mark.parametrize("ends", [(1, 7), (5,), ()])
def test_a_list_in_our_config_makes_the_round_trip(ends: tuple[int, ...], tmp_path: Path) -> None:
    config = replace(BASE, eos_token_id=ends)
    assert config.to_hf()["eos_token_id"] == list(ends)
    assert DeepseekV3Config.from_hf(json.loads(json.dumps(config.to_hf()))) == config
    seeded(config).save_checkpoint(tmp_path, dtype="fp32")
    assert DeepseekV3.from_checkpoint(tmp_path).config == config


@pytest.mark.parametrize("ends", [(1, 10**6), (1, -1), ("a",), (True,)])
def test_an_id_of_a_list_that_is_not_one_is_refused(ends: tuple) -> None:
    with pytest.raises(ValueError, match=r"eos_token_id=.*give one id in 0\.\."):
        replace(BASE, eos_token_id=ends)


@pytest.mark.parametrize("kind", KINDS)
def test_an_export_ends_where_its_base_did(kind: str, tmp_path: Path) -> None:
    """generation_config.json named the second end of the base, and the next stage ran on past it."""
    base = save(make("deepseek"), tmp_path / "base")
    GenerationConfig(eos_token_id=[1, 7]).save_pretrained(base)
    model = DeepseekV3.from_checkpoint(base)
    read_architecture(base, kind).write(tmp_path / "out", model.checkpoint_weights(), "fp32")
    read_architecture(tmp_path / "out", kind).write(tmp_path / "again", model.checkpoint_weights(), "bf16")
    convert_checkpoint(tmp_path / "again", tmp_path / "converted", "fp8")
    for name in ("base", "out", "again", "converted"):
        assert end_tokens(tmp_path / name) == {1, 7}, name
        assert (tmp_path / name / "generation_config.json").read_bytes() == (
            base / "generation_config.json"
        ).read_bytes()


@pytest.mark.parametrize("kind", KINDS)
def test_writing_draws_no_second_model_and_leaves_nothing_half_written(kind: str, tmp_path: Path) -> None:
    base = save(make("deepseek"), tmp_path / "base")
    architecture, weights = read_architecture(base, kind), dict(DeepseekV3.from_checkpoint(base).checkpoint_weights())
    before = torch.get_rng_state()
    architecture.write(tmp_path / "out", weights.items(), "fp32")
    assert torch.equal(torch.get_rng_state(), before)
    lost = "model.layers.1.mlp.experts.2.up_proj.weight"
    with pytest.raises(ValueError, match=f"{lost}: missing, with 0 others"):
        architecture.write(tmp_path / "half", ((n, t) for n, t in weights.items() if n != lost), "fp32")
    with pytest.raises(ValueError, match="extra: this model has no such weight"):
        architecture.write(tmp_path / "half", [*weights.items(), ("extra", torch.zeros(1))], "fp32")
    assert {entry.name for entry in tmp_path.iterdir()} == {"base", "out"}
