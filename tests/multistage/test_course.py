"""A pipeline of recipes that are plain functions here: what is checked first, what is run, what is done before."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from types import ModuleType

import pytest

from rlkit.distill.journal import Journal
from rlkit.multistage import course
from rlkit.multistage.course import run_pipeline
from rlkit.multistage.stage import Pipeline, Recipe

CALLS: list[list[str]] = []
LOOKS: list[list[str]] = []
DRY: list[list[str]] = []


def recipe(name: str) -> Recipe:
    """A recipe that writes down its command line and leaves a model of its settings; with seed 13 it dies."""
    module = ModuleType(f"recipes.{name}")

    def main(argv: Sequence[str] | None = None) -> None:
        words = list(argv or [])
        if "--cfg" in words:
            LOOKS.append(words)
            return
        if "dry_run=true" in words:
            DRY.append(words)
            return
        CALLS.append(words)
        if "seed=13" in words:
            raise SystemExit(1)
        folder = Path(words[-1].partition("=")[2])
        (folder / "model").mkdir(parents=True, exist_ok=True)
        learned = [word for word in words if word.startswith(("seed=", "sft.steps="))]
        (folder / "model" / "config.json").write_text(json.dumps(learned))
        steps = [{"stage": name, "step": step, "elapsed_s": 2.5 * step, "tokens": 10} for step in (1, 2)]
        (folder / "metrics.jsonl").write_text("".join(json.dumps(step) + "\n" for step in steps))

    module.main = main  # pyright: ignore[reportAttributeAccessIssue]
    return module  # pyright: ignore[reportReturnType]


def story(pipeline: Pipeline) -> None:
    base = pipeline.base(recipe("sft"))
    pipeline.run("rl", recipe("grpo"), {"model.path": base.model})


def refused(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    """What stands on the screen when a pipeline leaves before anything is run."""
    with pytest.raises(SystemExit) as leaving:
        run_pipeline("r1_zero", story, words)
    assert leaving.value.code == 2 and ran() == []
    return capsys.readouterr().err


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
    error = refused(capsys, f"output_dir={tmp_path}", "base.sft.steps=7")
    assert "1-base is done, but with other settings (sft.steps was 300, now 7)" in error


def test_the_last_of_two_words_counts_for_what_is_done_too(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "mine").mkdir()
    own = [f"output_dir={tmp_path}/out", f"base={tmp_path}/mine"]
    run_pipeline("r1_zero", story, [*own, "seed=1", "rl.seed=2"])
    ran()
    assert "1-rl is done, but with other settings (seed was 2, now 1)" in refused(capsys, *own, "seed=2", "rl.seed=1")
    run_pipeline("r1_zero", story, [*own, "rl.seed=1", "rl.seed=2"])
    assert ran() == [], "other words, the same settings"


@pytest.mark.parametrize("dtype", ["fp8", "fp8_weights"])
def test_a_stage_does_not_start_from_a_model_in_fp8(
    dtype: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Such a model is refused by the next stage's own run, hours later."""
    error = refused(capsys, f"output_dir={tmp_path}", f"trainer.dtype={dtype}")
    assert "the stage base has trainer.dtype in FP8" in error and "set base.trainer.dtype=bf16" in error
    run_pipeline("r1_zero", story, [f"output_dir={tmp_path}", f"rl.trainer.dtype={dtype}"])
    assert len(ran()) == 2, "nothing starts from the last one"


@pytest.mark.parametrize("word", ["cluster.address=10.0.0.2:6379", "rl.reward.workers=7", "checkpoint.every=9"])
def test_a_pipeline_goes_on_with_what_a_run_may_change(tmp_path: Path, word: str) -> None:
    with pytest.raises(SystemExit):
        run_pipeline("r1_zero", story, [f"output_dir={tmp_path}", "cluster.address=10.0.0.1:6379", "rl.seed=13"])
    ran()
    run_pipeline("r1_zero", story, [f"output_dir={tmp_path}", word])
    assert [words[-1] for words in ran()] == [f"output_dir={tmp_path}/2-rl"]


def test_a_folder_is_the_same_however_it_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    run_pipeline("r1_zero", story, ["output_dir=out"])
    written = ran()
    assert written[1][-2:] == [f"model.path={tmp_path}/out/1-base/model", f"output_dir={tmp_path}/out/2-rl"]
    run_pipeline("r1_zero", story, [f"output_dir={tmp_path}/out"])
    (tmp_path / "out").rename(tmp_path / "moved")
    run_pipeline("r1_zero", story, ["output_dir=moved"])
    assert ran() == []


def test_what_is_done_is_refused_when_what_it_was_made_from_is_gone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run_pipeline("r1_zero", story, [f"output_dir={tmp_path}"])
    ran()
    shutil.rmtree(tmp_path / "1-base")
    error = refused(capsys, f"output_dir={tmp_path}", "base.sft.steps=7")
    assert f"{tmp_path}/2-rl is done, but was made from other files (model.path config.json is gone)" in error
    assert "remove that folder and those behind it, or use another output_dir" in error
    shutil.rmtree(tmp_path / "2-rl")
    run_pipeline("r1_zero", story, [f"output_dir={tmp_path}", "base.sft.steps=7"])
    assert len(ran()) == 2


def test_what_is_done_is_refused_when_what_it_was_made_from_is_made_anew(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run_pipeline("r1_zero", story, [f"output_dir={tmp_path}"])
    ran()
    (tmp_path / "1-base" / "stage.json").unlink()
    with pytest.raises(SystemExit) as leaving:
        run_pipeline("r1_zero", story, [f"output_dir={tmp_path}", "base.sft.steps=7"])
    assert leaving.value.code == 2 and len(ran()) == 1
    assert "2-rl is done, but was made from other files (model.path config.json is changed)" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("file", "name"),
    [
        ("mine/config.json", "model.path config.json"),
        ("rows.jsonl", "data.source rows.jsonl"),
        ("judge.py", "reward.fn judge.py"),
    ],
)
def test_what_is_done_is_refused_when_a_file_of_the_users_is_another(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], file: str, name: str
) -> None:
    (tmp_path / "mine").mkdir()
    for one in ("mine/config.json", "rows.jsonl", "judge.py"):
        (tmp_path / one).write_text("{}\n")
    words = [f"output_dir={tmp_path}/out", f"base={tmp_path}/mine", f"rl.data={tmp_path}/rows.jsonl"]
    words += [f"rl.reward={tmp_path}/judge.py:f", "rl.reward.kwargs={}"]
    run_pipeline("r1_zero", story, words)
    ran()
    run_pipeline("r1_zero", story, words)
    assert ran() == []
    (tmp_path / file).write_text("{ }\n")
    assert f"1-rl is done, but was made from other files ({name} is changed)" in refused(capsys, *words)


def test_the_time_of_a_stage_that_keeps_none_is_that_of_all_its_lives(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A first life of 100 seconds is killed; the second takes 5."""
    now = [1000.0]
    monkeypatch.setattr(course, "time", lambda: now[0])
    monkeypatch.setattr(course, "monotonic", lambda: now[0])

    def main(argv: Sequence[str] | None = None) -> None:
        if "--cfg" in (argv or []):
            return
        now[0] += 100.0 if now[0] == 1000.0 else 5.0
        journal = tmp_path / "1-generate" / "journal.sqlite"
        with closing(Journal(journal, "")):
            pass
        os.utime(journal, (now[0], now[0]))
        if now[0] == 1100.0:
            raise SystemExit(1)

    job = ModuleType("recipes.distill_generate")
    job.main = main  # pyright: ignore[reportAttributeAccessIssue]

    def answered(pipeline: Pipeline) -> None:
        pipeline.run("generate", job, {})  # pyright: ignore[reportArgumentType]

    words = [f"output_dir={tmp_path}"]
    with pytest.raises(SystemExit):
        run_pipeline("distill", answered, words)
    now[0] = 5000.0
    run_pipeline("distill", answered, words)
    assert json.loads((tmp_path / "1-generate" / "stage.json").read_text())["seconds"] == 105.0


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


@pytest.mark.parametrize(
    "word", ["base.data.source=/nope.jsonl", "rl.data.source=/nope.jsonl", "rl.reward=/nope.jsonl.py:f"]
)
def test_files_of_every_stage_are_there_before_anything_starts(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], word: str
) -> None:
    words = [f"output_dir={tmp_path}/out", word, "rl.reward.kwargs={}"]
    for more in ([], ["dry_run=true"]):
        error = refused(capsys, *words, *more)
        assert f"in stage {word.partition('.')[0]}: " in error and "=/nope.jsonl" in error
        assert "there is no such file or folder" in error
    run_pipeline("r1_zero", story, [*words, "--cfg", "job"])
    assert not (tmp_path / "out").exists(), "a look needs no files"


def test_a_dry_run_reads_the_data_of_the_first_stage(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    DRY.clear()
    run_pipeline("r1_zero", story, [f"output_dir={tmp_path}/out", "dry_run=true"])
    assert [words[-2:] for words in DRY] == [[f"output_dir={tmp_path}/out/1-base", "dry_run=true"]] and ran() == []
    assert "the settings of all stages are in order, the first one's data too" in capsys.readouterr().out
    run_pipeline("r1_zero", story, [f"output_dir={tmp_path}/out", "dry_run=true", "--cfg", "job"])
    assert len(DRY) == 1 and "first one's data" not in capsys.readouterr().out


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
