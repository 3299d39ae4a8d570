"""What a stage is made from: which settings count, which files, and what has to be there."""

from __future__ import annotations

from pathlib import Path

import pytest

from rlkit.errors import UserError
from rlkit.multistage.origin import Origin, check_places, origin_of


def origin(recipe: str, *words: str) -> Origin:
    return origin_of(recipe, words, words)


@pytest.mark.parametrize(
    "word",
    ["output_dir=x", "cluster.address=h:1", "logging.tensorboard=false", "reward.workers=3", "trainer.recompute=true"],
)
def test_what_a_run_may_change_does_not_count(word: str) -> None:
    assert origin("grpo", word) == origin("grpo")


@pytest.mark.parametrize("word", ["seed=2", "algo.steps=3", "reward=math", "model.architecture.hidden_size=64"])
def test_any_other_setting_counts(word: str) -> None:
    assert origin("grpo", word) != origin("grpo")


def test_what_is_selected_counts_for_a_job_that_is_done() -> None:
    assert origin("distill_generate", "selection.language=en") != origin("distill_generate")


def test_names_stand_for_what_earlier_stages_make(tmp_path: Path) -> None:
    """Two folders with the same files are the same; in the settings there is only the name."""
    found = []
    for name, text in (("a", "{}"), ("b", "{}"), ("c", "{ }")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text(text)
        found.append(origin_of("grpo", [f"model.path={tmp_path / name}"], ["model.path=<model.path>"]))
    assert found[0] == found[1] != found[2] and found[0].settings["model.path"] == "<model.path>"


@pytest.mark.parametrize(
    ("recipe", "words", "names"),
    [
        ("sft", ["data={0}/rows.jsonl"], ["data.source rows.jsonl"]),
        ("sft", ["data.eval_source={0}/rows.jsonl"], ["data.eval_source rows.jsonl"]),
        ("sft", ["data.mixture=[{{source: gsm8k}}, {{source: '{0}/rows.jsonl'}}]"],
         ["data.mixture[1].source rows.jsonl"]),
        ("sft", ["model.path={0}/model"], ["model.path config.json", "model.path w.safetensors"]),
        ("grpo", ["reward={0}/judge.py:f"], ["reward.fn judge.py"]),
        ("grpo", ["reward=composite", "reward.kwargs={{rewards: [number, '{0}/judge.py:f']}}"],
         ["reward.kwargs.rewards judge.py"]),
        ("grpo", ["reward=composite", "reward.kwargs={{rewards: [['model:{0}/model', 1]]}}"],
         ["reward.kwargs.rewards config.json", "reward.kwargs.rewards w.safetensors"]),
        ("grpo", ["algo.loss_fn={0}/judge.py:f"], ["algo.loss_fn judge.py"]),
        ("distill_generate", ["cleaning.tests=[math, '{0}/rows.jsonl']"], ["cleaning.tests rows.jsonl"]),
    ],
)  # fmt: skip
def test_files_that_are_read(tmp_path: Path, recipe: str, words: list[str], names: list[str]) -> None:
    (tmp_path / "model").mkdir()
    for file in ("rows.jsonl", "judge.py", "model/config.json", "model/w.safetensors", "model/notes.md"):
        (tmp_path / file).write_text("{}")
    assert sorted(origin(recipe, *(word.format(tmp_path) for word in words)).files) == names


def test_two_folders_of_one_key_both_count(tmp_path: Path) -> None:
    words = f"reward.kwargs={{rewards: [['model:{tmp_path}/a', 1], ['model:{tmp_path}/b', 1]]}}"
    found = []
    for texts in (("1", "2"), ("3", "2"), ("1", "3")):
        for name, text in zip("ab", texts, strict=True):
            (tmp_path / name).mkdir(exist_ok=True)
            (tmp_path / name / "config.json").write_text(text)
        found.append(tuple(origin("grpo", "reward=composite", words).files.items()))
    assert len(set(found)) == 3


def test_where_a_judge_keeps_its_answers_does_not_count(tmp_path: Path) -> None:
    """Alone or in a list, the file grows while the stage runs."""
    alone = ["reward=judge", f"reward.kwargs.cache={tmp_path}/judge.sqlite"]
    listed = [
        "reward=composite",
        f"reward.kwargs={{rewards: [{{fn: judge, kwargs: {{cache: '{tmp_path}/judge.sqlite'}}}}]}}",
    ]
    before = [origin("grpo", *words) for words in (alone, listed)]
    (tmp_path / "judge.sqlite").write_text("an answer")
    assert before == [origin("grpo", *words) for words in (alone, listed)]
    assert before[0] == origin("grpo", "reward=judge")


@pytest.mark.parametrize(
    ("recipe", "word", "key"),
    [
        ("sft", "data={0}/rows.jsonl", "data.source"),
        ("sft", "data.eval_source=rows.parquet", "data.eval_source"),
        ("sft", "data.mixture=[{{source: '{0}/folder'}}]", "data.mixture[0].source"),
        ("sft", "model.path={0}/model", "model.path"),
        ("grpo", "reward={0}/judge.py:f", "reward.fn"),
        ("grpo", "reward.kwargs={{rewards: ['model:{0}/model']}}", "reward.kwargs.rewards"),
        ("distill_generate", "cleaning.tests=[math, '{0}/rows.jsonl']", "cleaning.tests"),
    ],
)
def test_a_file_or_folder_that_is_not_there(tmp_path: Path, recipe: str, word: str, key: str) -> None:
    with pytest.raises(UserError) as refused:
        check_places("rl", recipe, [word.format(tmp_path)], [])
    assert str(refused.value).startswith(f"in stage rl: {key}=") and "correct the path" in str(refused.value)


@pytest.mark.parametrize(
    "words",
    [["data.source=owner/name:main"], ["data=gsm8k"], ["data.mixture=[{source: math}]"], ["reward=mine.judges:f"]],
)
def test_what_may_be_elsewhere_is_not_looked_for(words: list[str]) -> None:
    check_places("base", "sft", words, [])


def test_what_earlier_stages_make_is_not_there_yet(tmp_path: Path) -> None:
    made = [tmp_path / "1-base" / "model", tmp_path / "7-reward_model" / "model"]
    words = [f"model.path={made[0]}", f"reward.kwargs={{rewards: ['model:{made[1]}']}}"]
    check_places("rl", "grpo", words, made)
    with pytest.raises(UserError, match=r"reward\.kwargs\.rewards=model:"):
        check_places("rl", "grpo", words, made[:1])
