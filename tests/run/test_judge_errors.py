"""Judges that cannot work are refused before anything starts, and a cache that grows does not hold a run up."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path

import pytest

import rewards
from rewards import RewardError
from rlkit.config import DistillRun, GrpoRun
from rlkit.config.compose import load_config
from rlkit.distill.decontamination import ExamQuestions
from rlkit.distill.journal import Journal
from rlkit.distill.questions import asked_of_a_server
from rlkit.errors import UserError
from rlkit.multistage.settings import read_settings
from rlkit.run.inputs import check_same, fingerprints, write_inputs
from rlkit.run.job import Prepared
from rlkit.run.prepare import check_reward
from rlkit.types import Prompt
from tests.e2e.runs import GRPO_ONLY
from tests.rewards.judge.scripted import says, serving
from tests.run.test_errors import refusal

SMALL = [word for word in GRPO_ONLY if not word.startswith("data.tasks")]
SCORE = ["reward=judge_score", "reward.kwargs.model=tiny"]


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["reward=judge"], ["endpoint is missing", "or policy for the model that is trained"]),
        (["reward=judge", "reward.kwargs.endpoint=http://127.0.0.1:9/v1"], ["model is missing"]),
        ([*SCORE, "reward.kwargs.endpoint=http://127.0.0.1:9/v1"], ["endpoint=http://127.0.0.1:9/v1: nobody answers"]),
        ([*SCORE, "reward.kwargs.endpoint=URL", "reward.kwargs.model=big"], ["model='big' is not served", "has tiny"]),
        ([*SCORE, "reward.kwargs.endpoint=URL", "reward.kwargs.rubric=good?"], ["no {reply}", "It begins 'good?'"]),
        ([*SCORE, "reward.kwargs.endpoint=URL", "reward.kwargs.rubric=is {reply} {gold}"], ["{gold}", "no column"]),
        ([*SCORE, "reward.kwargs.endpoint=URL", "reward.kwargs.votes=3"], ["votes=3 with temperature=0"]),
        ([*SCORE, "reward.kwargs.endpoint=URL", "reward.timeout=100"], ["reward.timeout=100", "120 seconds"]),
        (["reward=judge", "reward.kwargs.endpoint=policy"], ["max_tokens=1024 leaves no room", "max_model_len=64"]),
        (
            ["reward=judge", "reward.kwargs.endpoint=URL", "reward.kwargs.model=tiny", "reward.kwargs.reference=best"],
            ["column 'best'", "reward.kwargs.reference"],
        ),
    ],
)
def test_judges_that_cannot_work(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, words: list[str], expected: list[str]
) -> None:
    with serving(lambda *_: says("[[7]]")) as server:
        printed = refusal(capsys, tmp_path, *SMALL, *(word.replace("URL", server.url) for word in words))
    assert all(word in printed for word in expected), printed
    assert server.asked == []


def test_the_groups_have_the_settings_that_they_say() -> None:
    for name, form, sides in (("judge", "pairs", 2), ("judge_score", "score", 1), ("judge_yes_no", "yes_no", 1)):
        cfg = load_config("grpo", GrpoRun, [f"reward={name}", "output_dir=out"]).reward
        assert (cfg.fn, cfg.kwargs["form"], cfg.kwargs["cache"]) == ("judge", form, "out/judge.sqlite")
        assert cfg.kwargs["rubric"].count("{reply") == sides and cfg.timeout == 180


def test_a_cache_may_grow_and_move_and_nothing_else_of_a_judge_may_change(tmp_path: Path) -> None:
    known = tmp_path / "known.sqlite"
    known.write_text("some answers")
    words = [f"output_dir={tmp_path}/run", *SCORE, "reward.kwargs.endpoint=http://h/v1"]
    cfg = load_config("grpo", GrpoRun, [*words, f"reward.kwargs.cache={known}"])
    cfg.output_dir.mkdir()
    write_inputs(cfg)
    assert not any("cache" in name for name in fingerprints(cfg))
    known.write_text("more answers")
    check_same(cfg)
    check_same(load_config("grpo", GrpoRun, words))
    with pytest.raises(UserError, match=r"reward\.kwargs\.seed"):
        check_same(load_config("grpo", GrpoRun, [*words, "reward.kwargs.seed=1"]))


def test_the_cache_of_another_reward_is_a_file_like_any(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text("def f(completion, cache=''): return 0.0\n")
    (tmp_path / "table").write_text("a")
    words = [f"output_dir={tmp_path}/run", f"reward={tmp_path}/mine.py:f", f"reward.kwargs.cache={tmp_path}/table"]
    assert any("cache" in name for name in fingerprints(load_config("grpo", GrpoRun, words)))


@pytest.mark.parametrize("pipeline", ["r1", "v3_post"])
def test_the_preferences_of_a_paper_need_no_gold_answers(pipeline: str, tmp_path: Path) -> None:
    """The comments there say that its file holds questions; the answers of a group are compared with each other."""
    file = tmp_path / "general.jsonl"
    file.write_text('{"question": "Write a poem about rain"}\n')
    with serving(lambda *_: says("[[A]]")) as server:
        words = [f"preferences.data.source={file}", f"preferences.reward.kwargs.endpoint={server.url}"]
        words += [
            "size=paper",
            "preferences.reward.kwargs.model=tiny",
            f"base={tmp_path}",
            f"output_dir={tmp_path}/out",
        ]
        stage = read_settings(pipeline, words).words("preferences", "distill_generate", 6, {"model.path": tmp_path})
        cfg = load_config("distill_generate", DistillRun, stage)
        judge = rewards.load(cfg.reward.fn, **cfg.reward.kwargs)
        prepared = Prepared(asked_as=asked_of_a_server(cfg), tests=ExamQuestions([], 0.5), checkpoint=None, judge=judge)
        with closing(Journal(tmp_path / "journal.sqlite", "")) as journal:
            prepared.read(journal, cfg)
            assert journal.counts().asked == 1
        alone = load_config("distill_generate", DistillRun, [*stage, "samples=1", "selection.pair_margin=0"])
        with closing(Journal(tmp_path / "other.sqlite", "")) as journal, pytest.raises(RewardError, match="is alone"):
            prepared.read(journal, alone)


def test_a_group_of_grpo_meets_itself_and_its_evaluation_a_reference() -> None:
    """Only held-out rows need the column."""
    cfg = load_config("grpo", GrpoRun, [*SCORE, "reward=judge", "output_dir=out"]).reward
    row, gold = ({"question": "Why?"} | more for more in ({}, {"answer": "so"}))
    train, held_out, blank = (Prompt(id=t, tokens=(), text=t, meta=m) for t, m in (("a", row), ("b", gold), ("c", row)))
    with serving(lambda *_: says("[[A]]")) as server:
        judge = rewards.load("judge", **{**cfg.kwargs, "endpoint": server.url, "model": "tiny", "cache": ""})
        check_reward(judge, cfg, [held_out], grouped=[train])
        with pytest.raises(RewardError, match="which sample 1 does not have"):
            check_reward(judge, cfg, [blank], grouped=[train])
