"""A reward model from an SFT checkpoint, and GRPO against it, on a task whose truth is known."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from statistics import fmean

import pytest
import torch
from transformers import AutoModelForSequenceClassification

from recipes import grpo, reward_model, sft
from rlkit.watch.preferences import read_judgements
from tests.e2e.letters import SAMPLED, SMALL, TRUTH, badness, labelled, preferences, questions
from tests.e2e.runs import LOCAL, final_weights, finish_here

pytestmark = pytest.mark.slow

LOCAL_TRAINER = ["cluster=local", "trainer=torch"]
LEARN = ["reward_model.steps=40", "reward_model.batch_size=32", "reward_model.max_length=64", "trainer.max_tokens=512"]
LEARN += ["reward_model.schedule={lr: 3e-3, warmup_steps: 5, kind: cosine, final_ratio: 0.1}"]
SHARED = [word for word in SMALL if not word.startswith("model.")]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A language model that writes lines of letters, the questions, and the truth as a rule."""
    folder = tmp_path_factory.mktemp("letters")
    (folder / "plugin.py").write_text(TRUTH)
    source = [f"data={questions(folder)}", f"reward={folder}/plugin.py:truth", "sft.think_share=0"]
    steps = ["sft.steps=60", "sft.batch_size=32", "sft.schedule.lr=5e-3"]
    sft.main([*SMALL, *SAMPLED, *LOCAL, *source, *steps, f"output_dir={folder}/sft"])
    return folder


def learn(folder: Path, rows: Path, name: str, *more: str) -> Path:
    """Train a reward model and return its folder."""
    words = [*SHARED, *LOCAL_TRAINER, *LEARN, f"model.path={folder}/sft/model", f"data={rows}"]
    reward_model.main([*words, *more, f"output_dir={folder}/{name}"])
    return folder / name


def against(folder: Path, scorer: Path, name: str, *more: str) -> list[dict]:
    """Run GRPO against a reward model, the truth recorded beside it, and return its steps."""
    rewards = f"[['{folder}/plugin.py:truth', 0], ['model:{scorer}/model', 1]]"
    words = [*SHARED, *SAMPLED, f"data={folder}/questions.jsonl", f"model.path={folder}/sft/model"]
    words += ["reward=composite", f"reward.kwargs={{rewards: {rewards}}}", "algo.steps=16", "data.eval_size=20"]
    words += ["algo.prompts_per_step=8", "algo.group_size=8", "algo.sampling.max_new_tokens=24"]
    words += ["algo.loss.kl_coef=0", "algo.schedule={lr: 1e-3, warmup_steps: 0, kind: constant, final_ratio: 1.0}"]
    grpo.main([*words, *LOCAL, *more, f"output_dir={folder}/{name}"])
    return steps(folder / name, "grpo")


def steps(folder: Path, stage: str) -> list[dict]:
    every = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [line for line in every if line["stage"] == stage]


def ends(found: list[dict], key: str) -> tuple[float, float]:
    """The means of a number over the first and the last three steps."""
    return fmean(line[key] for line in found[:3]), fmean(line[key] for line in found[-3:])


def test_a_known_truth_is_learned_and_grpo_raises_it(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made = learn(folder, preferences(folder), "good")
    printed = capsys.readouterr().out
    found = re.search(r"after training: accuracy ([\d.]+)% of 60.*expected calibration error ([\d.]+)", printed)
    assert found and float(found[1]) >= 90 and float(found[2]) < 0.15
    before, after = read_judgements(made)
    assert before.accuracy < 0.8 and after.accuracy >= 0.9 and len(after.scores) == 120
    trained = steps(made, "reward_model")
    assert trained[-1]["loss"] < 0.5 * trained[0]["loss"] and trained[-1]["accuracy"] >= 0.9
    assert {"ece", "length_correlation"} <= steps(made, "eval")[-1].keys()
    report = (made / "report.html").read_text()
    assert "Calibration" in report and "where the chosen is longer" in report and "confidence, %" in report
    assert type(AutoModelForSequenceClassification.from_pretrained(made / "model")).__name__.startswith("DeepseekV3")

    learned = against(folder, made, "raised")
    truth, model = ends(learned, "part/truth"), ends(learned, "part/model")
    assert truth[1] > truth[0] + 1.0 and model[1] > model[0]
    assert all(line["reward"] == pytest.approx(line["part/model"]) for line in learned), "the rule weighs nothing"
    report = (folder / "raised" / "report.html").read_text()
    assert "Parts of the reward" in report and ">truth</tspan>" in report and ">model</tspan>" in report
    assert "what the reward model gets wrong" not in report


def test_a_bad_reward_model_is_seen_to_be_hacked(folder: Path) -> None:
    learned = against(folder, learn(folder, preferences(folder, badness), "bad"), "hacked")
    truth, model = ends(learned, "part/truth"), ends(learned, "part/model")
    assert model[1] > model[0] and truth[1] < truth[0] - 1.0, "the curves part"
    words = r"GRPO: the reward model.s score rose from \S+ to \S+ while truth fell from \S+ to \S+: the policy learns"
    assert re.search(words, (folder / "hacked" / "report.html").read_text().replace("&#x27;", "'"))


def test_labels_are_learned_as_well(folder: Path) -> None:
    made = learn(
        folder,
        labelled(folder),
        "pointwise",
        "reward_model.kind=pointwise",
        "data.eval_size=100",
        "reward_model.steps=80",
    )
    [_, after] = read_judgements(made)
    assert after.accuracy >= 0.9 and len(after.labels) == 100 and not after.by_length()


def test_a_run_that_goes_on_ends_with_the_same_bits(folder: Path) -> None:
    rows, short = preferences(folder), ["reward_model.steps=4", "checkpoint.every=2"]
    whole = learn(folder, rows, "whole", *short)
    shutil.copytree(whole, folder / "half")
    shutil.rmtree(folder / "half" / "checkpoints" / "reward_model-000004")
    shutil.rmtree(folder / "half" / "model")
    half = learn(folder, rows, "half", *short)
    expected, found = final_weights(whole), final_weights(half)
    assert expected.keys() == found.keys() and "score.weight" in found
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())
    timed = ("_s", "tok_s")
    records = [
        [{key: value for key, value in line.items() if not key.endswith(timed)} for line in steps(run, "reward_model")]
        for run in (whole, half)
    ]
    assert records[0] == records[1] and len(records[0]) == 4


def test_on_ray_with_experts_on_two_ranks_and_judges_by_task(folder: Path, ray: None) -> None:
    """The reward model of two ranks is that of one; two actors say of rollouts what it says in one process."""
    rows, short = preferences(folder), ["reward_model.steps=3", "checkpoint.every=0"]
    alone = learn(folder, rows, "alone", *short)
    words = [*SHARED, *LEARN, f"model.path={folder}/sft/model", f"data={rows}", *short]
    ranks = ["trainer.num_ranks=2", "trainer.expert_parallel=2"]
    finish_here("reward_model", *words, *ranks, f"output_dir={folder}/experts")
    expected, found = final_weights(alone), final_weights(folder / "experts")
    for name, tensor in expected.items():
        assert float((found[name] - tensor).norm() / tensor.norm().clamp(min=1e-6)) <= 1e-4, name

    judge = f"{{fn: 'model:{alone}/model', kwargs: {{actors: 2}}}}"
    routes = f"{{rule: '{folder}/plugin.py:truth', taste: [{judge}, ['{folder}/plugin.py:truth', 0]]}}"
    words = [*SHARED, *SAMPLED, f"data={folder}/questions.jsonl", f"model.path={folder}/sft/model"]
    words += ["reward=composite", f"reward.kwargs={{by: task, rewards: {routes}}}", "algo.steps=1", "data.eval_size=8"]
    words += ["algo.prompts_per_step=8", "algo.group_size=4", "algo.sampling.max_new_tokens=24", "engine=torch"]
    printed = finish_here("grpo", *words, f"output_dir={folder}/ray")
    assert "starting 1 engine(s), 2 reward model(s) and 1 trainer rank(s) on Ray" in printed
    grpo.main([*words, *LOCAL, f"output_dir={folder}/here"])
    [there], [here] = steps(folder / "ray", "grpo"), steps(folder / "here", "grpo")
    assert there["part/model"] == pytest.approx(here["part/model"], abs=1e-5)
    assert there["part/truth"] == here["part/truth"] and there["reward"] == pytest.approx(here["reward"], abs=1e-5)
