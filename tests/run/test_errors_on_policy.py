"""A teacher that cannot say how likely the student's tokens are is refused before anything starts, with the reason."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from recipes import on_policy_distill, sft
from rlkit.data.tokenizer import first_difference, load_tokenizer, save_tokenizer, train_tokenizer
from rlkit.model.scorer import write_scorer
from tests.hf_folders import make, save
from tests.hf_folders import tokenizer as hf_tokenizer
from tests.model.tiny import BASE, seeded
from tests.run.test_errors import LOCAL, refusal

TEXTS = ["3 + 4 - 2 = 5"]
GOES = ["engine.max_model_len=120"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A student and its teachers: a good one, and one for each way to be none."""
    folder = tmp_path_factory.mktemp("teachers")
    tokenizer, stranger = train_tokenizer(TEXTS, 300), train_tokenizer(["nothing of the kind, no sum at all"], 300)
    config = replace(BASE, vocab_size=300, bos_token_id=0, eos_token_id=1)
    for name, changes, its in (
        ("student", {}, tokenizer),
        ("teacher", {"num_hidden_layers": 4, "hidden_size": 96}, tokenizer),
        ("stranger", {}, stranger),
        ("short", {"max_position_embeddings": 64}, tokenizer),
        ("narrow", {"vocab_size": len(tokenizer)}, tokenizer),
        ("ending", {"eos_token_id": (1, 2)}, tokenizer),
    ):
        seeded(replace(config, **changes)).save_checkpoint(folder / name, dtype="fp32")
        save_tokenizer(its, folder / name)
    write_scorer(folder / "teacher", folder / "scorer", seed=0)
    save_tokenizer(tokenizer, folder / "scorer")
    described = json.loads((folder / "ending" / "tokenizer_config.json").read_text())
    described["eos_token"] = "<pad>"
    (folder / "ending" / "tokenizer_config.json").write_text(json.dumps(described))
    shutil.copytree(folder / "teacher", folder / "other_words")
    template = folder / "other_words" / "chat_template.jinja"
    template.write_text(template.read_text().replace("'<|user|>' +", "'Q: ' +"))
    return folder


@pytest.mark.parametrize(
    ("teacher", "words"),
    [
        ("stranger", ["its tokenizer is not the student's: id ", "for the student and ", "log-probs of the very ids",
                      "model.tokenizer", "distill_generate"]),
        ("ending", ["the student ends with '<eos>', the teacher with '<pad>'"]),
        ("other_words", ["their chat templates differ"]),
        ("narrow", ["a vocab_size of ", "the student one of 300, which may draw ids that the teacher does not have"]),
        ("short", ["engine.max_model_len=120 is more than the model's max_position_embeddings=64"]),
        ("scorer", ["teacher.path=", "is a reward model: it scores and cannot write"]),
        ("nowhere", ["nowhere: no such folder", "teacher.path"]),
    ],
)  # fmt: skip
def test_a_teacher_that_is_none(
    teacher: str, words: list[str], folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    overrides = [*GOES, f"model.path={folder}/student", f"teacher.path={folder}/{teacher}"]
    printed = refusal(capsys, tmp_path, *overrides, recipe=on_policy_distill)
    for word in words:
        assert word in printed
    assert "model.path" not in printed


def test_a_good_one_passes_and_a_missing_one_is_named(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    student = [*GOES, f"model.path={folder}/student"]
    assert "teacher.path has no value" in refusal(capsys, tmp_path, *student, recipe=on_policy_distill)
    on_policy_distill.main([*LOCAL, *student, f"teacher.path={folder}/teacher", "dry_run=true"])
    printed = capsys.readouterr().out
    assert "50 steps x 32 prompts x 4 rollouts = 128 a step" in printed and "nothing was started" in printed
    words = [*student, f"teacher.path={folder}/teacher", "algo.loss.kl_coef=0.1"]
    assert "algo.loss.kl_coef is not a key" in refusal(capsys, tmp_path, *words, recipe=on_policy_distill)


def test_a_new_student_takes_the_tokenizer_of_its_teacher(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    new = [*GOES, "model=dense_tiny", f"teacher.path={folder}/teacher"]
    assert "its tokenizer is not the student's" in refusal(capsys, tmp_path, *new, recipe=on_policy_distill)
    on_policy_distill.main([*LOCAL, *new, f"model.tokenizer={folder}/teacher", "dry_run=true"])
    assert "nothing was started" in capsys.readouterr().out
    both = [f"model.tokenizer={folder}/teacher", f"model.path={folder}/student"]
    assert "is for a new model" in refusal(capsys, tmp_path, *new, *both, recipe=on_policy_distill)
    lost = refusal(capsys, tmp_path, *new, "model.tokenizer=nowhere", recipe=on_policy_distill)
    assert "model.tokenizer=nowhere: there is no tokenizer.json" in lost
    assert "model.tokenizer" in refusal(capsys, tmp_path, "model=hf", "model.tokenizer=x", recipe=sft)


def test_the_first_difference_of_two_tokenizers_is_named(folder: Path) -> None:
    one, other = load_tokenizer(folder / "student"), load_tokenizer(folder / "teacher")
    names = ("A", "B")
    assert first_difference(one, other, names) is None
    longer = train_tokenizer(TEXTS, 300, ["<|more|>"])
    end = len(one)
    assert first_difference(one, longer, names) == f"id {end} is no token for A and '<|more|>' for B"
    assert first_difference(longer, one, names) == f"id {end} is '<|more|>' for A and no token for B"
    strange = first_difference(one, load_tokenizer(folder / "stranger"), names)
    assert strange and strange.startswith("id ") and " for A and " in strange
    number = int(strange.split()[1])
    tokens = [t.convert_ids_to_tokens(range(number)) for t in (one, load_tokenizer(folder / "stranger"))]
    assert tokens[0] == tokens[1], "all ids before it mean the same"


def test_other_rules_with_the_same_words_are_a_difference(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder / "teacher", tmp_path / "rules")
    file = tmp_path / "rules" / "tokenizer.json"
    described = json.loads(file.read_text())
    described["normalizer"] = {"type": "NFC"}
    file.write_text(json.dumps(described))
    one, other = load_tokenizer(folder / "student"), load_tokenizer(tmp_path / "rules")
    assert first_difference(one, other, ("A", "B")) == "they cut the same text into other tokens"


def test_a_dense_student_of_transformers_is_taken(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Student and teacher may be of different classes."""
    save(make("qwen2"), tmp_path / "student")
    ids = {"bos_token_id": hf_tokenizer().bos_token_id, "eos_token_id": hf_tokenizer().eos_token_id}
    seeded(replace(BASE, vocab_size=len(hf_tokenizer()) + 3, **ids)).save_checkpoint(tmp_path / "teacher", dtype="fp32")
    save_tokenizer(hf_tokenizer(), tmp_path / "teacher")
    words = [*GOES, "model=hf", f"model.path={tmp_path}/student", f"teacher.path={tmp_path}/teacher", "dry_run=true"]
    on_policy_distill.main([*LOCAL, *words, f"output_dir={tmp_path}/run"])
    assert "nothing was started" in capsys.readouterr().out
