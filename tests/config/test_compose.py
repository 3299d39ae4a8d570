from __future__ import annotations

from typing import Any

import pytest
import yaml

from rlkit.config import GrpoRun, LoraConfig, SftThenGrpoRun
from rlkit.config.compose import (
    ConfigError,
    compose_dict,
    flat_keys,
    known_keys,
    load_config,
    parse,
    parse_command,
    to_yaml,
)
from tests.config.recipes import RECIPES


@pytest.mark.parametrize("recipe", RECIPES)
def test_the_files_set_all_keys_that_the_classes_have_and_no_other(recipe: str) -> None:
    known = {key for key, _ in known_keys(RECIPES[recipe])}
    opened = ("data.tasks", "reward.kwargs", "stages", "data.mixture")
    written = {next((o for o in opened if key.startswith(o)), key) for key, _ in flat_keys(compose_dict(recipe))}
    # what the files leave out is the architecture's own defaults and groups that are null, never a knob of the run
    left_out = ("model.architecture", "trainer.lora", "stages", "data.mixture")
    assert {key for key in known ^ written if not key.startswith(left_out)} == set()


@pytest.mark.parametrize("recipe", RECIPES)
def test_what_is_saved_reads_back_as_the_same_configuration(recipe: str) -> None:
    cfg = load_config(recipe, RECIPES[recipe], ["seed=3", "data.tasks={gcd: {}}"])
    assert parse(RECIPES[recipe], yaml.safe_load(to_yaml(cfg))) == cfg


def test_groups_and_values_come_from_the_command_line() -> None:
    cfg = load_config(
        "sft_then_grpo", SftThenGrpoRun, ["data=gsm8k", "engine=torch", "cluster=local", "sft.schedule.lr=1e-5"]
    )
    assert (cfg.data.source, cfg.engine.kind, cfg.cluster.kind) == ("gsm8k", "torch", "local")
    assert cfg.sft.schedule.lr == 1e-5
    assert cfg.algo.schedule.lr == 2e-4, "the stages have schedules of their own"


def test_one_task_can_be_added_changed_and_removed() -> None:
    def tasks(*overrides: str) -> dict[str, Any]:
        return load_config("grpo", GrpoRun, overrides).data.tasks

    assert set(tasks("data.tasks.gcd={}")) == {"chain_sum", "gcd"}
    assert tasks("data.tasks.chain_sum.max_terms=9")["chain_sum"]["max_terms"] == 9
    assert set(tasks("~data.tasks.chain_sum", "data.tasks.gcd={}")) == {"gcd"}
    assert tasks("data.tasks={}") == {}


@pytest.mark.parametrize(
    ("word", "key", "value"),
    [
        ("reward=my_file.py:f", "reward.fn", "my_file.py:f"),
        ("reward=pkg.mod:f", "reward.fn", "pkg.mod:f"),
        ("reward=number", "reward.fn", "number"),
        ("data=some/rows.jsonl", "data.source", "some/rows.jsonl"),
        ("data=owner/name", "data.source", "owner/name"),
        ("data=gsm8k", "data.source", "gsm8k"),
    ],
)
def test_files_and_functions_stand_for_a_group(word: str, key: str, value: str) -> None:
    assert dict(flat_keys(compose_dict("grpo", [word])))[key] == value


def test_a_file_of_ones_own_does_not_inherit_the_default_task() -> None:
    values = compose_dict("grpo", ["data=rows.jsonl"])["data"]
    assert (values["tasks"], values["train_size"], values["solution_column"]) == ({}, -1, "")


def test_missing_keys_are_named() -> None:
    values = compose_dict("grpo")
    del values["algo"]["group_size"]
    with pytest.raises(ConfigError, match=r"algo\.group_size is missing"):
        parse(GrpoRun, values)


def test_several_mistakes_are_told_at_once() -> None:
    with pytest.raises(ConfigError) as error:
        load_config("grpo", GrpoRun, ["algo.steps=x", "algo.group_size=y"])
    assert "algo.steps='x'" in str(error.value) and "algo.group_size='y'" in str(error.value)


def test_help_shows_the_groups_and_their_files(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as leaving:
        parse_command("grpo", ["--help"])
    assert leaving.value.code == 0
    printed = " ".join(capsys.readouterr().out.split())
    assert "configs/grpo.yaml" in printed
    assert "engine={torch,vllm}" in printed.replace(" ", "")


def test_adapters_are_one_key_with_defaults() -> None:
    assert load_config("grpo", GrpoRun).trainer.lora is None
    assert load_config("grpo", GrpoRun, ["trainer.lora={}"]).trainer.lora == LoraConfig(rank=16, alpha=32)
    given = "trainer.lora={rank: 4, alpha: 8.5, targets: [q_proj, v_proj]}"
    cfg = load_config("grpo", GrpoRun, [given])
    assert cfg.trainer.lora == LoraConfig(rank=4, alpha=8.5, targets=("q_proj", "v_proj"))
    assert parse(GrpoRun, yaml.safe_load(to_yaml(cfg))) == cfg


def test_a_model_of_transformers_has_no_architecture() -> None:
    cfg = load_config("grpo", GrpoRun, ["model=hf", "model.path=somewhere"])
    assert cfg.model.architecture is None
    assert parse(GrpoRun, yaml.safe_load(to_yaml(cfg))) == cfg
