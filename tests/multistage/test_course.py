"""A pipeline of recipes that are plain functions here: what is checked first, what is run, what is done before."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

import pytest

from rlkit.multistage.course import run_pipeline
from rlkit.multistage.stage import Pipeline, Recipe

CALLS: list[list[str]] = []
LOOKS: list[list[str]] = []


def recipe(name: str) -> Recipe:
    """A recipe that writes down its command line and leaves a model; at a step that it is told it dies."""
    module = ModuleType(f"recipes.{name}")

    def main(argv: Sequence[str] | None = None) -> None:
        words = list(argv or [])
        if "--cfg" in words:
            LOOKS.append(words)
            return
        CALLS.append(words)
        if "seed=13" in words:
            raise SystemExit(1)
        folder = Path(words[-1].partition("=")[2])
        (folder / "model").mkdir(parents=True)
        steps = [{"stage": name, "step": step, "elapsed_s": 2.5 * step, "tokens": 10} for step in (1, 2)]
        (folder / "metrics.jsonl").write_text("".join(json.dumps(step) + "\n" for step in steps))

    module.main = main  # pyright: ignore[reportAttributeAccessIssue]
    return module  # pyright: ignore[reportReturnType]


def story(pipeline: Pipeline) -> None:
    base = pipeline.base(recipe("sft"))
    pipeline.run("rl", recipe("grpo"), {"model.path": base.model})


def ran() -> list[list[str]]:
    """The command lines since the last question."""
    found = CALLS.copy()
    CALLS.clear()
    return found


def test_stages_run_in_order_and_start_from_what_came_before(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run_pipeline("r1_zero", story, [f"output_dir={tmp_path}", "seed=1"])
    base, rl = ran()
    assert base[-1] == f"output_dir={tmp_path}/1-base" and "seed=1" in base
    assert rl[-2:] == [f"model.path={tmp_path}/1-base/model", f"output_dir={tmp_path}/2-rl"]
    printed = capsys.readouterr().out.splitlines()
    assert "stage 2/2 rl: grpo in" in "\n".join(printed)
    row = next(line for line in printed if line.startswith("rl "))
    assert row.split() == ["rl", "grpo", "20", "0:05"]
    page = (tmp_path / "report.html").read_text()
    assert 'href="2-rl/report.html"' in page


def test_what_is_done_is_not_done_again(tmp_path: Path) -> None:
    with pytest.raises(SystemExit):
        run_pipeline("r1_zero", story, [f"output_dir={tmp_path}", "rl.seed=13"])
    assert len(ran()) == 2
    run_pipeline("r1_zero", story, [f"output_dir={tmp_path}", "rl.seed=2"])
    assert [words[-1] for words in ran()] == [f"output_dir={tmp_path}/2-rl"]
    run_pipeline("r1_zero", story, [f"output_dir={tmp_path}", "rl.seed=2"])
    assert ran() == []


def test_other_settings_for_a_stage_that_is_done_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run_pipeline("r1_zero", story, [f"output_dir={tmp_path}"])
    ran()
    with pytest.raises(SystemExit) as leaving:
        run_pipeline("r1_zero", story, [f"output_dir={tmp_path}", "base.sft.steps=7"])
    assert leaving.value.code == 2 and ran() == []
    assert "1-base is done, but with other settings (sft.steps=7)" in capsys.readouterr().err


def test_a_base_takes_the_place_of_its_stage(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "mine").mkdir()
    run_pipeline("r1_zero", story, [f"output_dir={tmp_path}/out", f"base={tmp_path}/mine"])
    (rl,) = ran()
    assert rl[-2:] == [f"model.path={tmp_path}/mine", f"output_dir={tmp_path}/out/1-rl"]
    with pytest.raises(SystemExit):
        run_pipeline("r1_zero", story, [f"output_dir={tmp_path}/other", f"base={tmp_path}/none"])
    assert f"base={tmp_path}/none is no folder; give the folder of a checkpoint" in capsys.readouterr().err


def test_a_word_that_no_stage_has_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as leaving:
        run_pipeline("r1_zero", story, [f"output_dir={tmp_path}", "sed=1"])
    assert leaving.value.code == 2 and ran() == []
    assert "sed=1: no stage of r1_zero has this key" in capsys.readouterr().err


def test_looking_starts_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run_pipeline("r1_zero", story, [f"output_dir={tmp_path}/out", "--cfg", "job"])
    assert ran() == [] and not (tmp_path / "out").exists()
    assert "rlkit run grpo model=deepseek_v3_tiny" in capsys.readouterr().out
    run_pipeline("r1_zero", story, ["--help"])
    assert "STAGE.key=value" in capsys.readouterr().out


def test_a_look_reads_no_model_that_is_still_to_be_made(tmp_path: Path) -> None:
    """A recipe that works out numbers of the model is told its shape; one that needs a path is told the path alone."""

    def scored(pipeline: Pipeline) -> None:
        base = pipeline.base(recipe("sft"))
        pipeline.run("rl", recipe("reward_model"), {"model.path": base.model})

    LOOKS.clear()
    words, path = [f"output_dir={tmp_path}", "model.architecture.hidden_size=64", "--cfg", "job"], "1-base/model"
    run_pipeline("r1_zero", story, words)
    run_pipeline("r1_zero", scored, words)
    (tmp_path / path).mkdir(parents=True)
    run_pipeline("r1_zero", story, words)
    shapes = ["model.architecture.hidden_size=64" in rl for rl in LOOKS[1::2]]
    paths = [f"model.path={tmp_path}/{path}" in rl for rl in LOOKS[1::2]]
    assert (shapes, paths) == ([True, False, True], [False, True, True])
