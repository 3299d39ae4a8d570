"""`rlkit plan` as it is typed: the table, the same numbers as JSON, and what is refused."""

from __future__ import annotations

import json
import re
from dataclasses import fields, replace
from pathlib import Path

import pytest

from rlkit.cli.main import main
from rlkit.config import GrpoRun, TrainingRun
from rlkit.config.compose import load_config
from rlkit.errors import UserError
from rlkit.model.deepseek_architecture import DeepseekArchitecture
from rlkit.plan.recipes import RECIPES
from rlkit.run import machine
from tests.architecture import ROOT
from tests.hf_folders import make, save

BIG = ["model=deepseek_v3_671b", "trainer.dtype=bf16", "engine.dtype=bf16", "recompute=true"]


def shown(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    main(["plan", *words])
    return capsys.readouterr().out


@pytest.mark.slow
def test_the_table_of_v3_says_what_the_paper_says(capsys: pytest.CaptureFixture[str]) -> None:
    out = shown(capsys, "grpo", *BIG, "deployment=v3_training", "cost=v3")
    for words in (
        "671,026,404,352, 36.6 B of them active",
        "576 numbers per token and layer, 70,272 bytes a token",
        "688.6 GB in FP8 with scales, 1.37 TB in bf16",
        "2,048 ranks on 256 nodes, EP64 PP16 ZeRO-1",
        "pre-training       2,664,000     5,328,000",
        "all                2,788,000     5,576,000",
    ):
        assert words in out, out


@pytest.mark.slow
def test_json_has_the_same_numbers(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["grpo", *BIG, "hardware=h800", "gpus=128", "expert_parallel=32", "pipeline_stages=4", "rehearse=true"]
    plan = json.loads(shown(capsys, *words, "--json"))
    out = shown(capsys, *words)
    assert plan["model"]["parameters"] == 671_026_404_352
    assert plan["trainer"]["layout"]["pipeline_stages"] == 4
    ranks = plan["rehearsal"]["ranks"]
    assert [share["rank"] for share in ranks] == list(range(128))
    assert plan["rehearsal"]["tensors"] == 91_991 and "91,991 tensors" in out
    for key in ("weights", "gradients", "optimiser", "activations"):
        assert re.search(rf"^  {key} +{plan['trainer']['needs'][key] / 1e9:.1f} GB", out, re.MULTILINE), out
    floors = out[out.index("floor of one step") : out.index("cost at")]
    names = [phase["name"] for phase in plan["phases"]]
    assert [line.split()[0] for line in floors.splitlines()[2:-1]] == [*names, "all"]


@pytest.mark.slow
def test_the_fewest_nodes(capsys: pytest.CaptureFixture[str]) -> None:
    plan = json.loads(shown(capsys, "grpo", *BIG, "hardware=h800", "--json"))
    found = plan["smallest"]
    assert 0 < found["offload_nodes"] < found["nodes"]
    assert found["trainer"]["fits"] and found["trainer"]["needs"]["peak"] <= plan["room"]
    # 16 bytes for each parameter and more: on fewer GPUs not even weights, gradients and optimiser have room.
    assert found["nodes"] * 8 * 72e9 > 682_636_472_320 * 18
    assert not plan["trainer"]["fits"]


@pytest.mark.parametrize("recipe", ["sft", "grpo", "sft_then_grpo"])
def test_this_machine_has_room_for_the_tiny_model(recipe: str, capsys: pytest.CaptureFixture[str]) -> None:
    out = shown(capsys, recipe)
    assert "DOES NOT FIT" not in out and "all parts:" in out
    assert ("decode" in out) == (recipe != "sft")


@pytest.mark.slow
def test_longer_contexts_are_planned_by_their_longest_stage(capsys: pytest.CaptureFixture[str]) -> None:
    """V3's last stage has samples of 131,072 tokens, a quarter as many as the stage before."""
    words = ["extend_context", "model=deepseek_v3_671b", "context=v3_128k", "hardware=h800", "gpus=2048"]
    plan = json.loads(
        shown(capsys, *words, "sft.batch_size=4096", "pipeline_stages=16", "expert_parallel=64", "--json")
    )
    assert plan["work"]["sequences"] == 4096 // 4
    assert plan["work"]["prompt_tokens"] + plan["work"]["completion_tokens"] == 131_072


class MyRun(GrpoRun):
    """A recipe's configuration of a user's own."""


@pytest.mark.parametrize("recipe", [*RECIPES, "mine"])
def test_the_refusal_for_want_of_memory_names_a_command_that_works(
    recipe: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    base, cls = ("grpo", MyRun) if recipe == "mine" else (recipe, RECIPES[recipe])
    cfg = replace(load_config(base, cls, []), recipe=recipe)
    assert cfg.model.architecture is not None
    monkeypatch.setattr(machine, "main_memory", lambda: 1)
    with pytest.raises(UserError, match="what fits where") as refusal:
        machine.check_memory(cfg, DeepseekArchitecture(config=cfg.model.architecture))
    named = re.search(r"'rlkit (plan \w+)' with the (same settings|settings of mine)", str(refusal.value))
    assert named is not None
    main(named[1].split())
    assert "plan of " in capsys.readouterr().out


def test_a_recipe_with_other_stages_is_told_of_no_plan(monkeypatch: pytest.MonkeyPatch) -> None:
    cfg = load_config("grpo", GrpoRun, [])
    other = TrainingRun(**{field.name: getattr(cfg, field.name) for field in fields(TrainingRun)} | {"recipe": "mine"})
    assert cfg.model.architecture is not None
    monkeypatch.setattr(machine, "main_memory", lambda: 1)
    with pytest.raises(UserError, match=r"cluster\.address\)$"):
        machine.check_memory(other, DeepseekArchitecture(config=cfg.model.architecture))


def test_a_model_of_transformers(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save(make("llama"), tmp_path / "llama")
    out = shown(capsys, "sft", "model=hf", f"model.path={tmp_path / 'llama'}", "hardware=h100")
    assert "KV cache" in out and "engine:" not in out and "a sync of all weights" in out
    with pytest.raises(SystemExit):
        main(["plan", "sft", "model=hf", f"model.path={tmp_path / 'llama'}", "rehearse=true"])
    assert "rehearse=true: a model of transformers has no published index" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["gpro"], "recipe 'gpro' cannot be planned (did you mean 'grpo'?); use one of sft, grpo, sft_then_grpo, ext"),
        (["grpo", "--jsn"], "--jsn is no flag of 'rlkit plan'; there are --json and --help"),
        (["grpo", "hardware=tpu"], "hardware='tpu' is unknown; use one of h100, h800, h200, h20, b200, this"),
        (["grpo", "expert_parallel=3", "gpus=3"], "expert_parallel=3 does not divide n_routed_experts=8; use 2 or 4"),
        (["grpo", "cost=v4"], "cost='v4' is unknown; use one of v3, r1"),
        (["grpo", "hardwear=h100"], "hardwear is not a key of recipe grpo"),
        (
            ["grpo", "prompt_tokens=500"],
            "prompt_tokens=500 and completion_tokens=64 are more than engine.max_model",
        ),
        (["grpo", "gpus=2", "pipeline_stages=4"], "pipeline_stages=4 does not divide gpus=2; use 2"),
    ],
)
def test_what_is_refused(words: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as leaving:
        main(["plan", *words])
    assert leaving.value.code == 2
    assert message in capsys.readouterr().err


def test_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert "usage: rlkit plan RECIPE" in shown(capsys, "--help")
    assert "usage: rlkit plan RECIPE" in shown(capsys, "grpo", "--help")


def test_every_key_of_the_plan_is_in_its_usage() -> None:
    from rlkit.cli.plan import USAGE
    from rlkit.plan.settings import TYPES

    assert [key for key in TYPES if f"{key}=" not in USAGE] == []


@pytest.mark.slow
def test_every_number_on_the_page_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    """docs/run-on-gpus.md shows commands and, below each, lines of what they print."""
    page = (ROOT / "docs" / "run-on-gpus.md").read_text(encoding="utf-8")
    blocks = re.findall(r"```\n\$ rlkit plan ((?:[^\n]*\\\n)*[^\n]*)\n(.*?)```", page, re.DOTALL)
    assert len(blocks) == page.count("$ rlkit plan ") == 6
    for command, lines in blocks:
        printed = shown(capsys, *command.replace("\\\n", " ").split()).splitlines()
        known = {" ".join(line.split()) for line in printed}  # the widths of columns may change
        missing = [line for line in lines.splitlines() if " ".join(line.split()) not in known]
        assert not missing, "\n".join([f"rlkit plan {command} does not print", *missing, "but", *printed])
