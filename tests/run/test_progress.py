"""A run's folder: what is written when, what may change, and what is refused."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import yaml

from rlkit.algo import SftLoss
from rlkit.assemble import started
from rlkit.config import SftThenGrpoRun
from rlkit.config.compose import load_config
from rlkit.engine.local import TorchEngine
from rlkit.errors import UserError
from rlkit.model import DeepseekV3
from rlkit.parity import ParityError
from rlkit.parts import Parts
from rlkit.run.folder import Position
from rlkit.run.plan import show
from rlkit.run.prepare import INITIAL, Task, initial_checkpoint
from rlkit.run.progress import Run
from rlkit.train.skipped import WatchedTrainer
from rlkit.train.steppers.torch import TorchStepper
from rlkit.train.trainer import ModelTrainer
from rlkit.types import Step
from rlkit.watch import read_evaluations, read_metrics
from tests.e2e.runs import LOCAL, TINY
from tests.train.test_trainer import demonstrations

pytestmark = pytest.mark.slow

LOAD = {"max_violation": 1.5, "max_violation/1": 1.5, "mean_violation": 0.2, "load_entropy": 0.9}


def configured(folder: Path, *overrides: str) -> tuple[SftThenGrpoRun, Task]:
    cfg = load_config("sft_then_grpo", SftThenGrpoRun, [*TINY, *LOCAL, f"output_dir={folder}", *overrides])
    task = show(cfg, print_only=False)
    assert task is not None
    return cfg, task


def shown(step: int, **more: float) -> Step:
    """A step of SFT."""
    numbers = {"loss": 1.0 / step, "entropy": 0.1, "grad_norm": 1.0, "lr": 1e-3, "tokens": 100, "tok_s": 50.0, **more}
    return Step(stage="sft", step=step, numbers=numbers, weight_version=None)


def learned(step: int, version: int | None = None, **more: float) -> Step:
    """A step of GRPO; with another `version` than its own number it was skipped."""
    numbers = {"reward": 0.5, "accuracy": 0.5, "length": 9.0, "groups": 4, "sample_s": 1.0, **more}
    if version is None:
        numbers |= {"flat_groups": 0, "kl": 0.0, "entropy": 0.5, "parity": 1e-6, "lr": 1e-3, "train_s": 1.0}
    else:
        numbers |= {"flat_groups": 4}
    return Step(stage="grpo", step=step, numbers=numbers, weight_version=step if version is None else version)


def checkpoints(folder: Path) -> list[str]:
    return sorted(path.name for path in (folder / "checkpoints").glob("*"))


def test_checkpoints_come_on_schedule_and_at_the_end_of_a_stage(tmp_path: Path) -> None:
    cfg, task = configured(tmp_path, "checkpoint.every=2", "checkpoint.keep=9")
    with Run(cfg, task) as run, started(cfg, run) as parts:
        for step in range(1, 6):
            run.record(shown(step), 5, parts)
        run.record(learned(1), 3, parts)
        run.record(learned(2, version=1), 3, parts)
    assert checkpoints(tmp_path) == ["grpo-000002", "sft-000002", "sft-000004", "sft-000005"]
    # the engine still has the weights of step 1, because step 2 learned nothing
    assert run.position == Position(stage="grpo", step=2, weight_version=1, finished=("sft",))


def test_every_step_is_in_the_record_and_only_some_sft_steps_on_screen(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cfg, task = configured(tmp_path, "checkpoint.every=0")
    with Run(cfg, task) as run, started(cfg, run) as parts:
        for step in range(1, 61):
            run.record(shown(step), 100, parts)
    assert [line["step"] for line in read_metrics(tmp_path)] == list(range(1, 61))
    rows = [line for line in capsys.readouterr().out.splitlines() if "/100 " in line]
    assert [row.split()[0] for row in rows] == ["1/100", *(f"{step}/100" for step in range(5, 61, 5))]


def test_the_load_of_the_experts_is_in_the_record_and_on_screen(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cfg, task = configured(tmp_path, "checkpoint.every=0")
    with Run(cfg, task) as run, started(cfg, run) as parts:
        run.record(shown(1, **LOAD), 100, parts)
        run.record(learned(1, **LOAD), 3, parts)
        run.record(learned(2, version=1), 3, parts)
    sft, grpo, skipped = read_metrics(tmp_path)
    assert LOAD.items() <= sft.items() and LOAD.items() <= grpo.items()
    assert "load" not in sft and "load" not in grpo and not LOAD.keys() & skipped.keys()
    printed = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in printed if "load 1.50x" in line] == ["1/100", "1/3"]


def test_an_evaluation_is_made_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cfg, task = configured(tmp_path)
    for _ in range(2):
        with Run(cfg, task) as run, started(cfg, run) as parts:
            run.evaluate("before SFT", 0, parts)
    assert capsys.readouterr().out.count("held-out accuracy before SFT") == 1
    [found] = read_evaluations(tmp_path)
    assert found.problems == 20
    assert {sample.question for sample in found.samples} == {str(p.meta["question"]) for p in task.held_out}


def test_evaluations_between_the_steps(tmp_path: Path) -> None:
    cfg, task = configured(tmp_path, "evaluation.every=2")
    with Run(cfg, task) as run, started(cfg, run) as parts:
        for step in range(1, 5):
            run.record(learned(step), 4, parts)
    assert [found.name for found in read_evaluations(tmp_path)] == ["GRPO step 2"]


def test_a_stage_begins_with_the_policy_as_reference_and_no_moments(tmp_path: Path) -> None:
    """Once, before its first step; the engine has the weights too."""
    cfg, task = configured(tmp_path, "checkpoint.every=0")
    with Run(cfg, task) as run, started(cfg, run) as parts:
        watched, engine = parts.trainer, parts.engine
        assert isinstance(watched, WatchedTrainer)
        trainer = watched.trainer
        assert isinstance(trainer, ModelTrainer) and isinstance(trainer.stepper, TorchStepper)
        assert isinstance(engine, TorchEngine) and trainer.reference is not None
        trainer.update(demonstrations(), SftLoss(), 1e-2)
        run.record(shown(1), 2, parts)
        run.begin_stage("grpo", parts)
        assert not trainer.stepper.optimizer.state
        policy = trainer.model.state_dict()
        for other in (trainer.reference.model, engine.model):
            assert all(torch.equal(tensor, policy[name]) for name, tensor in other.state_dict().items())
        trainer.update(demonstrations(), SftLoss(), 1e-2)
        run.record(learned(1), 3, parts)
        run.begin_stage("grpo", parts)
        assert trainer.stepper.optimizer.state, "a run that goes on inside the stage has done this before"


def test_a_run_that_goes_on_in_its_third_stage_begins_none_anew(tmp_path: Path) -> None:
    """Nor one that had no step to take, and so no checkpoint."""
    cfg, task = configured(tmp_path, "checkpoint.every=1")
    stages = ("warm-up", "explore", "empty", "settle")

    def live(run: Run, parts: Parts, steps: int) -> list[str]:
        begun: list[str] = []
        parts.trainer.begin_stage = lambda: begun.append(stage)  # type: ignore[method-assign]
        for stage in stages:
            if stage != "warm-up":
                run.begin_stage(stage, parts)
            total = 0 if stage == "empty" else steps
            done = [replace(learned(k), stage=stage) for k in range(run.steps_done(stage, total) + 1, total + 1)]
            run.follow(stage, total, iter(done[:1] if stage == "settle" else done), parts)
        return begun

    with Run(cfg, task) as run, started(cfg, run) as parts:
        assert live(run, parts, 2) == ["explore", "empty", "settle"]
    with Run(cfg, task) as run, started(cfg, run) as parts:
        assert run.position == Position(stage="settle", step=1, weight_version=1, finished=stages[:3])
        assert live(run, parts, 2) == []
        with pytest.raises(UserError, match="stage='settle' is followed twice"):
            run.follow("settle", 2, iter([]), parts)


def test_the_export_is_the_policy(tmp_path: Path) -> None:
    cfg, task = configured(tmp_path)
    with Run(cfg, task) as run, started(cfg, run) as parts:
        run.export(parts)
        expected = {name: tensor.clone() for name, tensor in parts.trainer.weights()}
    exported = dict(DeepseekV3.from_checkpoint(tmp_path / "model").checkpoint_weights())
    assert exported.keys() == expected.keys()
    for name, tensor in expected.items():
        assert torch.equal(exported[name], tensor), name


def test_the_initial_model_depends_on_the_seed_alone(tmp_path: Path) -> None:
    first, second, other = (
        configured(tmp_path / name, f"seed={seed}") for name, seed in (("a", 1), ("b", 1), ("c", 2))
    )
    torch.manual_seed(99)
    weights = []
    for cfg, task in (first, second, other):
        torch.rand(3)
        state = torch.get_rng_state()
        folder = initial_checkpoint(cfg, task)
        assert torch.equal(torch.get_rng_state(), state), "making a model must not move the caller's random numbers"
        assert folder.name == INITIAL
        weights.append(DeepseekV3.from_checkpoint(folder).lm_head.weight)
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


def test_settings_that_make_another_run_are_refused_and_harmless_ones_are_not(tmp_path: Path) -> None:
    cfg, task = configured(tmp_path)
    with Run(cfg, task):
        pass
    harmless = replace(cfg, resume="auto", checkpoint=replace(cfg.checkpoint, every=1))
    with Run(harmless, task):
        pass
    with pytest.raises(ValueError, match=r"algo.group_size \(algo.group_size was 4, now 8\); use another output_dir"):
        Run(replace(cfg, algo=replace(cfg.algo, group_size=8)), task)
    saved = yaml.safe_load((tmp_path / "config.yaml").read_text())
    assert saved["algo"]["group_size"] == 4, "a refused start must not touch the folder"


def test_the_report_is_written_even_when_the_run_fails(tmp_path: Path) -> None:
    cfg, task = configured(tmp_path)
    with pytest.raises(ZeroDivisionError), Run(cfg, task) as run, started(cfg, run) as parts:
        run.record(shown(1), 5, parts)
        raise ZeroDivisionError
    assert "<svg" in (tmp_path / "report.html").read_text()
    assert json.loads((tmp_path / "metrics.jsonl").read_text())["step"] == 1


def test_a_corrupted_sync_stops_the_run(tmp_path: Path) -> None:
    cfg, task = configured(tmp_path)
    with Run(cfg, task) as run, started(cfg, run) as parts:
        name = "model.layers.1.mlp.experts.3.down_proj.weight"
        healthy = parts.trainer.weights

        def corrupted(version: int, form: str):
            return ((n, tensor * 2 if n == name else tensor) for n, tensor in healthy(version, form))

        parts.trainer.weights = corrupted  # type: ignore[method-assign]
        with pytest.raises(ParityError, match=r"First block that differs: model\.layers\.1\.mlp "):
            parts.sync(1)


def test_room_for_prompts_is_what_the_longest_completion_leaves(tmp_path: Path) -> None:
    cfg, _ = configured(tmp_path, "algo.sampling.max_new_tokens=30", "evaluation.sampling.max_new_tokens=20")
    assert cfg.longest_completion == 30


def test_a_killed_run_gets_the_lines_of_its_evaluations_back(tmp_path: Path) -> None:
    cfg, task = configured(tmp_path, "checkpoint.every=0")
    for _ in range(2):  # the second life starts from nothing, but the evaluation is there already
        with Run(cfg, task) as run, started(cfg, run) as parts:
            run.evaluate("before SFT", 0, parts)
            run.record(shown(1), 5, parts)
    assert [(line["stage"], line.get("name")) for line in read_metrics(tmp_path)] == [
        ("eval", "before SFT"),
        ("sft", None),
    ]


def test_an_evaluation_comes_before_its_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else a kill between the two would skip the evaluation for ever."""
    cfg, task = configured(tmp_path, "checkpoint.every=2", "evaluation.every=2")
    with Run(cfg, task) as run, started(cfg, run) as parts:
        monkeypatch.setattr(Run, "evaluate", lambda *_: pytest.fail("killed here"))
        with pytest.raises(pytest.fail.Exception):
            run.record(learned(2), 4, parts)
    assert checkpoints(tmp_path) == []
