"""Our reward model against transformers' DeepSeek for sequence classification, on the same checkpoint."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForSequenceClassification

from rlkit.errors import UserError
from rlkit.model import DeepseekV3
from rlkit.model.config import DeepseekV3Config, ScorerConfig
from rlkit.model.load import load_model, read_architecture
from rlkit.model.scorer import DeepseekScorer, write_scorer
from tests.model.tiny import BASE, relative, seeded

CONFIGS = {
    "v3": BASE,
    "tied, with a module for multi-token prediction": replace(
        BASE, tie_word_embeddings=True, num_nextn_predict_layers=1, q_lora_rank=24
    ),
    "v2": replace(BASE, scoring_func="softmax", norm_topk_prob=False),
}


def new_scorer(folder: Path, config: DeepseekV3Config, dtype: str = "fp32") -> Path:
    """A reward model's checkpoint, made from a language model's."""
    seeded(config).save_checkpoint(folder / "language", dtype=dtype)
    write_scorer(folder / "language", folder / "scorer", seed=3)
    return folder / "scorer"


@pytest.mark.parametrize("name", CONFIGS)
def test_scores_and_gradients_are_theirs(name: str, tmp_path: Path) -> None:
    folder = new_scorer(tmp_path, CONFIGS[name])
    ours = load_model(folder, torch.float32, "deepseek")
    theirs = AutoModelForSequenceClassification.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager"
    )
    assert isinstance(ours, DeepseekScorer) and type(theirs).__name__.endswith("ForSequenceClassification")
    assert theirs.num_labels == 1
    samples = [torch.randint(2, 96, (length,)) for length in (7, 3, 12)]
    scores_N = ours(torch.cat(samples), tuple(map(len, samples)))
    expected_N = torch.stack([theirs(sample[None], use_cache=False).logits[0, 0] for sample in samples])
    assert (scores_N - expected_N).abs().max() <= 1e-5
    assert expected_N.std() > 1e-2, "scores that are all alike would agree by themselves"
    for both in (scores_N, expected_N):
        both.square().sum().backward()
    gradients = dict(theirs.named_parameters())

    for key in ("score.weight", "model.layers.0.self_attn.o_proj.weight", "model.embed_tokens.weight"):
        mine, other = ours.get_parameter(key).grad, gradients[key].grad
        assert mine is not None and other is not None and relative(mine, other) <= 1e-5, key


def test_a_checkpoint_survives_loading_and_saving(tmp_path: Path) -> None:
    folder = new_scorer(tmp_path, BASE)
    model = load_model(folder, torch.float32, "deepseek")
    read_architecture(folder, "deepseek").write(tmp_path / "again", model.checkpoint_weights(), "fp32")
    for file in ("model.safetensors", "config.json"):
        assert (folder / file).read_bytes() == (tmp_path / "again" / file).read_bytes()
    assert (tmp_path / "again" / "model.safetensors").stat().st_size > 0
    made = load_file(folder / "model.safetensors")
    before = load_file(tmp_path / "language" / "model.safetensors")
    assert made.keys() - before.keys() == {"score.weight"} and before.keys() - made.keys() == {"lm_head.weight"}
    assert all(torch.equal(made[name], before[name]) for name in made.keys() & before.keys())


def test_the_head_depends_on_the_seed_alone(tmp_path: Path) -> None:
    folder = new_scorer(tmp_path, BASE, "bf16")
    torch.manual_seed(99)
    write_scorer(tmp_path / "language", tmp_path / "same", seed=3)
    write_scorer(tmp_path / "language", tmp_path / "other", seed=4)
    heads = [
        load_file(path / "model.safetensors")["score.weight"]
        for path in (folder, tmp_path / "same", tmp_path / "other")
    ]
    assert heads[0].dtype == torch.bfloat16 and torch.equal(heads[0], heads[1]) and not torch.equal(heads[0], heads[2])


def test_a_reward_model_is_no_language_model(tmp_path: Path) -> None:
    folder = new_scorer(tmp_path, BASE)
    assert isinstance(DeepseekV3Config.from_folder(folder), ScorerConfig)
    with pytest.raises(UserError, match="describes a ScorerConfig, and not a DeepseekV3"):
        DeepseekV3.from_checkpoint(folder)
    with pytest.raises(UserError, match="is a reward model already"):
        write_scorer(folder, tmp_path / "twice", seed=0)
