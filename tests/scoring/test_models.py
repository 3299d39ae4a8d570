"""Reward models before the pool: what a model says of a group, composites by task, failures, no hang at the end."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from rewards import RewardError
from rewards.model_score import Asked, asked_for
from rlkit.config import RewardConfig
from rlkit.data.tokenizer import load_tokenizer, save_tokenizer, train_tokenizer
from rlkit.model.load import load_model
from rlkit.model.scorer import write_scorer
from rlkit.scoring import models as module
from rlkit.scoring.models import Copies, ModelScorer, RewardModel
from rlkit.scoring.pool import build_reward
from rlkit.types import Group, Prompt, Rollout, Score
from tests.model.tiny import BASE, seeded

RIGHT, WRONG = "<think>3+4=7</think><answer>7</answer>", "<think></think><answer>8</answer>"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A reward model with a tokenizer, whose head nobody has trained."""
    folder = tmp_path_factory.mktemp("models")
    tokenizer = train_tokenizer(["3 + 4 = 7"], 300)
    seeded(replace(BASE, vocab_size=len(tokenizer))).save_checkpoint(folder / "language", dtype="fp32")
    write_scorer(folder / "language", folder / "scorer", seed=0)
    save_tokenizer(tokenizer, folder / "scorer")
    return folder / "scorer"


def group(folder: Path, *texts: str, task: str = "math", id: str = "p") -> Group:
    tokenizer = load_tokenizer(folder)

    def ids(text: str) -> tuple[int, ...]:
        return tuple(tokenizer(text, add_special_tokens=False)["input_ids"])

    end = (int(tokenizer.eos_token_id),)
    rollouts = tuple(
        Rollout(tokens=ids(text) + end, logprobs=(0.0,), text=text, finish_reason="stop", weight_version=1, seed=i)
        for i, text in enumerate(texts)
    )
    prompt = Prompt(id=id, tokens=ids("3 + 4"), text="3 + 4", meta={"answer": "7", "task": task})
    return Group(prompt=prompt, rollouts=rollouts)


def by_itself(folder: Path, *samples: tuple[int, ...]) -> list[float]:
    model = load_model(folder, torch.float32, "deepseek")
    with torch.no_grad():
        return [float(model(torch.tensor(sample))) for sample in samples]


@contextmanager
def judged(cfg: RewardConfig, copies: int = 1) -> Iterator[ModelScorer]:
    models = {one.key: Copies([RewardModel(one).score] * copies) for one in cfg.models}
    with build_reward(cfg) as pool, closing(ModelScorer(models, pool)) as scorer:
        yield scorer
        for one in models.values():
            one.close()


def config(fn: str, **kwargs: object) -> RewardConfig:
    return RewardConfig(fn=fn, kwargs=kwargs, workers=1, timeout=20)


def test_a_model_reads_the_sampled_tokens_behind_the_prompt(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    both = group(folder, RIGHT, WRONG)
    expected = by_itself(folder, *((*both.prompt.tokens, *rollout.tokens) for rollout in both.rollouts))
    model = RewardModel(Asked(folder=str(folder)))
    assert model.score(both) == pytest.approx(expected, abs=1e-5) and abs(expected[0] - expected[1]) > 1e-3
    monkeypatch.setattr(module, "MAX_TOKENS", 5)
    assert model.score(both) == pytest.approx(expected, abs=1e-5), "in parts"


def test_a_model_may_read_the_answer_alone(folder: Path) -> None:
    model = RewardModel(Asked(folder=str(folder), reads="answer"))
    both = group(folder, RIGHT, "<think>a long thought</think><answer>7</answer>")
    bare = group(folder, "<answer>7</answer>")
    expected = by_itself(folder, (*bare.prompt.tokens, *bare.rollouts[0].tokens)) * 2
    assert model.score(both) == pytest.approx(expected, abs=1e-5)
    assert model.score(bare) == pytest.approx(expected[:1], abs=1e-5), "without a thought all of it is the answer"


def test_a_thought_that_is_left_open_is_scored_as_an_empty_answer(folder: Path) -> None:
    """Whether the completion or the prompt has opened it; an open one behind a closed one counts as well."""
    model = RewardModel(Asked(folder=str(folder), reads="answer"))
    open_ones = group(folder, "<think>this is great", "<think>a</think><answer>7</answer><think>praise", "<think>")
    empty = by_itself(folder, (*open_ones.prompt.tokens, open_ones.rollouts[0].tokens[-1]))
    assert model.score(open_ones) == pytest.approx(empty * 3, abs=1e-5)
    both = group(folder, "praise", "3+4=7</think><answer>7</answer>")
    opened = replace(both, prompt=replace(both.prompt, text="3 + 4<think>\n"))
    bare = group(folder, "<answer>7</answer>")
    expected = [*empty, *by_itself(folder, (*bare.prompt.tokens, *bare.rollouts[0].tokens))]
    assert model.score(opened) == pytest.approx(expected, abs=1e-5)
    cut = replace(open_ones, rollouts=(replace(open_ones.rollouts[0], finish_reason="length"),))
    assert model.score(cut) == pytest.approx(by_itself(folder, cut.prompt.tokens), abs=1e-5), "and no end behind it"


@pytest.mark.slow
def test_every_score_is_recorded_beside_the_rule(folder: Path) -> None:
    """By task: where the rule counts, where the model counts, and where both are recorded."""
    model, both = f"model:{folder}", group(folder, RIGHT, WRONG)
    expected = RewardModel(Asked(folder=str(folder))).score(both)
    general = [["number", 0], [model, 2.0]]
    with judged(config("composite", by="task", rewards={"math": "number", "general": general}), copies=2) as reward:
        groups = [both, group(folder, RIGHT, WRONG, task="general", id="q")]
        rule, taste = [verdicts.result(60) for verdicts in [reward(one) for one in groups]]
    assert [(score.value, score.parts) for score in rule] == [(1.0, {"number": 1.0}), (0.0, {"number": 0.0})]
    assert [score.value for score in taste] == pytest.approx([2 * score for score in expected], abs=1e-5)
    assert [score.parts["number"] for score in taste] == [1.0, 0.0]
    assert [score.parts["model"] for score in taste] == pytest.approx(expected, abs=1e-5)
    assert [score.correct for score in taste] == [True, False], "what is right is the first reward's to say"
    with judged(config(model)) as reward:
        assert [score.value for score in reward(both).result(60)] == pytest.approx(expected, abs=1e-5)


@pytest.mark.slow
def test_what_fails_is_told_and_a_run_that_ends_waits_for_nobody(folder: Path) -> None:
    cfg, both, gate = config(f"model:{folder}"), group(folder, RIGHT), threading.Event()

    def failing(_group: Group) -> list[float]:
        raise RuntimeError("the model has died")

    def waiting(_group: Group) -> list[float]:
        gate.wait(60)
        return [0.5]

    for score, copies in ((failing, 1), (waiting, 2)):
        models = {cfg.models[0].key: Copies([score] * copies)}
        with build_reward(cfg) as pool, closing(ModelScorer(models, pool)) as reward:
            first, later = reward(both), [reward(both) for _ in range(5)]
            if score is failing:
                with pytest.raises(RuntimeError, match="the model has died"):
                    first.result(60)
            else:
                assert not first.done()
                gate.set()
                assert [score.value for score in first.result(60)] == [0.5]
            models[cfg.models[0].key].close()
        assert all(isinstance(verdicts.done(), bool) for verdicts in later)


@pytest.mark.slow
def test_a_reward_model_judges_inside_a_run_only(folder: Path) -> None:
    with build_reward(config(f"model:{folder}")) as pool, pytest.raises(RewardError, match="inside a run only"):
        pool(group(folder, RIGHT)).result(60)


def test_models_are_found_in_every_form_of_a_composite(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    entries = ["model:a", ["model:b", 0.5], {"fn": "model:c", "kwargs": {"reads": "answer", "actors": 3}}, "model:a"]
    found = asked_for("composite", {"by": "task", "rewards": {"x": entries, "y": "model:/d", "z": ["number", 1.0]}})
    assert [asked.folder for asked in found] == [*(str(tmp_path / name) for name in "abc"), "/d"]
    assert [(asked.reads, asked.actors) for asked in found] == [("whole", 1), ("whole", 1), ("answer", 3), ("whole", 1)]
    assert asked_for("number", {}) == [] and asked_for("model:a", {"reads": "answer"})[0].reads == "answer"


@pytest.mark.parametrize(
    ("kwargs", "words"),
    [
        ({"reads": "all"}, "reads='all' is unknown; use whole or answer"),
        ({"actors": 0}, "actors=0 must be a whole number of at least 1"),
        ({"copies": 2}, "takes no setting 'copies'; it takes actors, reads"),
    ],
)
def test_settings_of_a_model_are_checked(kwargs: dict, words: str) -> None:
    with pytest.raises(RewardError, match=words):
        asked_for("model:a", kwargs)


def test_scores_are_those_of_the_group_whatever_waits_beside_it(folder: Path) -> None:
    """A run that goes on must find the same bits, however many copies there are and whatever they are busy with."""
    model, one = RewardModel(Asked(folder=str(folder))), group(folder, RIGHT, WRONG)
    with closing(Copies([model.score, model.score])) as copies:
        scores = [asked.result(60) for asked in [copies(one) for _ in range(6)]]
    assert all(found == scores[0] for found in scores)
    assert isinstance(Score(value=scores[0][0], reason="").value, float)
