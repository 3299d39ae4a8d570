"""One grammar for every value of a command line, wherever it stands; what cannot be read is refused with a fix."""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import Any

import pytest
import yaml

from rlkit.config import GrpoRun, SftRun
from rlkit.config.compose import ConfigError, compose_dict, flat_keys, load_config, to_yaml
from rlkit.overrides import read_override, read_text, read_value


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-6", 1e-6),
        ("-2.5E+3", -2500.0),
        (".5", 0.5),
        ("3", 3),
        ("1_000", 1000),
        ("-0", 0),
        ("1e400", math.inf),
        ("-inf", -math.inf),
        ("true", True),
        ("False", False),
        ("null", None),
        ("'1e-6'", "1e-6"),
        ('"null"', "null"),
        ("[1, 2.0, x]", [1, 2.0, "x"]),
        ("[]", []),
        ("{}", {}),
        ("yes", "yes"),
        ("1:30", "1:30"),
        ("007", "007"),
        ("0x10", "0x10"),
        ("2026-11-28", "2026-11-28"),
        ("~", "~"),
        ("a=(b)", "a=(b)"),
        ("Größe, Maß", "Größe, Maß"),
        ("'a' or 'b'", "'a' or 'b'"),
        ("#1 of 3: done", "#1 of 3: done"),
        ("mine.py:f", "mine.py:f"),
        ("choice(a,b)", "choice(a,b)"),
        ("", ""),
    ],
)
def test_a_value_is_the_same_alone_in_a_list_and_in_a_group(text: str, value: Any) -> None:
    assert read_value("key", text) == value and type(read_value("key", text)) is type(value)
    if "," in text or "#" in text or ": " in text or "' or" in text or text in ("", "[]", "{}"):
        return  # what separates the members of a list is text only in quotes
    for inside, found in ((f"[{text}]", [value]), (f"{{a: {text}}}", {"a": value}), (f"{{a:{text}}}", {"a": value})):
        assert read_value("key", inside) == found, inside
        assert repr(read_value("key", inside)) == repr(found), inside


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ('{"a": 1, "b": "x y"}', {"a": 1, "b": "x y"}),
        ("{a:1,b:2}", {"a": 1, "b": 2}),
        ("{url:http://x.y/z}", {"url": "http://x.y/z"}),
        ("{a:{b:[1,{c:null}]}}", {"a": {"b": [1, {"c": None}]}}),
        ("{größe: 'ü = (1)'}", {"größe": "ü = (1)"}),
        ("{pattern: 'a, b: {c}'}", {"pattern": "a, b: {c}"}),
        ('{a:"1"}', {"a": "1"}),
    ],
)
def test_groups_with_and_without_spaces_and_quotes(text: str, value: Any) -> None:
    assert read_value("key", text) == value


@pytest.mark.parametrize(
    "text",
    ["{a}", "{a: }", "[1, 2", "{a: 1} b", "{text} and {more}", "{a: *b}", "{a: !!python/name:os.x x}", "{]"],
)
def test_what_only_begins_like_a_group_is_refused_with_a_fix(text: str) -> None:
    with pytest.raises(ConfigError) as refused:
        read_value("reward.kwargs.x", text)
    assert f"reward.kwargs.x={text}" in str(refused.value) and "in quotes" in str(refused.value)


@pytest.mark.parametrize("number", ["1e-6", "0.5", "3", "true", "null", "'7'", "x"])
def test_both_ways_to_set_a_setting_of_the_reward_agree(number: str) -> None:
    found = [
        compose_dict("grpo", [word])["reward"]["kwargs"]
        for word in (f"reward.kwargs={{a: {number}}}", f"reward.kwargs.a={number}", f"+reward.kwargs.a={number}")
    ]
    assert found[0] == found[1] == found[2] and repr(found[0]) == repr(found[1])


def test_tasks_and_adapters_are_read_the_same_way() -> None:
    tasks = load_config("grpo", GrpoRun, ["data.tasks={chain_sum: {rate: 1e-6}}"]).data.tasks
    assert tasks == load_config("grpo", GrpoRun, ["data.tasks={}", "data.tasks.chain_sum.rate=1e-6"]).data.tasks
    assert tasks["chain_sum"]["rate"] == 1e-6
    whole = load_config("grpo", GrpoRun, ["trainer.lora={rank: 4, alpha: 1e1}"]).trainer.lora
    assert whole == load_config("grpo", GrpoRun, ["trainer.lora.rank=4", "trainer.lora.alpha=1e1"]).trainer.lora
    assert whole == load_config("grpo", GrpoRun, ["trainer.lora={rank:4,alpha:10}"]).trainer.lora
    with pytest.raises(ConfigError, match=r"trainer\.lora\.rnak is not a key \(did you mean 'rank'"):
        load_config("grpo", GrpoRun, ["trainer.lora.rnak=4"])


@pytest.mark.parametrize(
    "text",
    [
        "a=b",
        "run (copy)",
        "läufe/größe",
        "with spaces  inside",
        'it\'s "quoted"',
        "a,b;c:d",
        "100%",
        "{text} Tests: {test_list}",
        "[1] Answer:",
        "2024",
        "1e5",
        "true",
        "#1",
        "line one\nline two",
        r"Put \boxed{x} at the end, as $\frac{1}{2}$",
        "日本語",
        "a\\b",
        "*&!|>@`",
    ],
)
def test_text_is_taken_as_it_is_written(text: str) -> None:
    cfg = load_config("grpo", GrpoRun, [f"data.instruction={text}", f"output_dir={text}", f"reward={text}.py:f"])
    assert (cfg.data.instruction, cfg.output_dir, cfg.reward.fn) == (text, Path(text), f"{text}.py:f")
    assert yaml.safe_load(to_yaml(cfg))["data"]["instruction"] == text


def test_quotes_around_the_whole_of_a_text_go() -> None:
    assert read_text('"a, b"') == "a, b" == read_text("'a, b'")
    assert read_text(r'"a\nb"') == "a\nb"
    assert read_text("'it''s'") == "it's"
    assert load_config("grpo", GrpoRun, ['data.instruction=" kept "']).data.instruction == " kept "


def test_home_is_written_out_in_paths(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    words = [
        "output_dir=~/x y",
        "model.path=~/m",
        "data=~/rows.jsonl",
        "reward=~/mine.py:f",
        "data.eval_source=~/t.jsonl",
    ]
    cfg = load_config("grpo", GrpoRun, words)
    assert (cfg.output_dir, cfg.model.path) == (tmp_path / "x y", f"{tmp_path}/m")
    assert (cfg.data.source, cfg.data.eval_source) == (f"{tmp_path}/rows.jsonl", f"{tmp_path}/t.jsonl")
    assert cfg.reward.fn == f"{tmp_path}/mine.py:f"
    with pytest.raises(ConfigError, match=r"output_dir=~nobody-here/x: there is no such user; write \./~nobody-here/x"):
        load_config("grpo", GrpoRun, ["output_dir=~nobody-here/x"])
    assert load_config("grpo", GrpoRun, ["data.instruction=~5 steps"]).data.instruction == "~5 steps"
    mixed = load_config("sft", SftRun, ["data.mixture=[{source: ~/a.jsonl}, {source: gsm8k}]"])
    assert [part.source for part in mixed.data.mixture] == [f"{tmp_path}/a.jsonl", "gsm8k"]


@pytest.mark.parametrize(
    ("word", "words"),
    [
        ("hydra.run.dir=x", ["hydra.run.dir=x", "remove it", "output_dir"]),
        ("+hydra.job.chdir=true", ["hydra.job.chdir"]),
        ("hydra/launcher=joblib", ["hydra/launcher"]),
        ("~hydra.sweep", ["hydra.sweep", "remove it"]),
        ("hydra={}", ["hydra={}"]),
        ("seed", ["'seed' is not an override", "key=value"]),
        ("=3", ["'=3' is not an override", "key=value"]),
        ("algo@x=grpo", ["algo@x is not a key"]),
        ("algo..steps=3", ["algo..steps is not a key"]),
        ("~seed", ["~seed takes nothing away"]),
        ("~data.tasks.gcd", ["~data.tasks.gcd takes nothing away"]),
        ("~engine", ["~engine takes nothing away"]),
        ("algo.steps=1,2", ["algo.steps='1,2'", "give a whole number"]),
        ("algo.steps=[1, 2]", ["algo.steps=[1, 2]", "give a whole number"]),
        ("algo.steps=null", ["algo.steps=None", "give a whole number"]),
        ("model.path=null", ["model.path=None", "give text"]),
        ("output_dir=", ["output_dir= is empty", "name the folder"]),
        ("output_dir=${nowhere}/x", ["nowhere", "where a dollar and a brace are text"]),
        ("data.instruction=cost ${ 5", ["data.instruction", "where a dollar and a brace are text"]),
        ("data=file", ["data.source has no value; set data.source=..."]),
        ("model.architecture=3", ["model.architecture=3 is a group of keys"]),
        ("engine=[torch]", ["engine=[torch] is unknown; there are torch, vllm"]),
    ],
)
def test_what_cannot_be_set_is_refused_with_a_fix(word: str, words: list[str]) -> None:
    with pytest.raises(ConfigError) as refused:
        load_config("grpo", GrpoRun, [word])
    for part in words:
        assert part in str(refused.value), str(refused.value)


def test_interpolations_are_read_and_can_be_escaped() -> None:
    cfg = load_config("grpo", GrpoRun, ["output_dir=out/${recipe}-${seed}", r"data.instruction=cost \${x}"])
    assert (cfg.output_dir, cfg.data.instruction) == (Path("out/grpo-0"), "cost ${x}")


def test_members_of_a_list_can_be_set() -> None:
    for key in ("stages.0.length", "stages[0].length"):
        assert compose_dict("extend_context", [f"{key}=128"])["stages"][0]["length"] == 128
    with pytest.raises(ConfigError, match=r"stages\.7\.length is not a key"):
        compose_dict("extend_context", ["stages.7.length=128"])


def test_signs_of_hydra_before_a_key_are_read() -> None:
    for word in ("seed=3", "+seed=3", "++seed=3"):
        assert compose_dict("grpo", [word])["seed"] == 3
        assert read_override(word).key == "seed"
    assert compose_dict("grpo", ["+engine=torch"])["engine"]["kind"] == "torch"


def test_a_folder_of_settings_here_hides_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "configs" / "engine").mkdir(parents=True)
    (tmp_path / "configs" / "grpo.yaml").write_text("seed: 99\n")
    (tmp_path / "configs" / "engine" / "mine.yaml").write_text("kind: torch\n")
    expected = dict(flat_keys(compose_dict("grpo")))
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(os.curdir)
    assert dict(flat_keys(compose_dict("grpo"))) == expected
