from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import pytest

import rewards
from rewards import Reward, RewardError, Sample

GOOD = "<think>so</think><answer>7</answer>"
SEVEN = {"answer": "7", "task": "sum", "level": 2}


def judge(samples: list[Sample], *entries: Any, **settings: Any) -> list[Reward]:
    return rewards.load("composite", rewards=list(entries), **settings)(samples)


def none(completion: str) -> None:
    return None


def two(completion: str) -> float:
    return 2.0


def test_the_weighted_sum_with_its_breakdown() -> None:
    samples = [Sample("", GOOD, meta=SEVEN), Sample("", "<answer>7</answer>", meta=SEVEN), Sample("", "", meta=SEVEN)]
    entries = [{"fn": "number", "weight": 1.0}, {"fn": "format", "weight": 0.25}]
    found = judge(samples, *entries)
    assert [reward.value for reward in found] == [1.25, 1.0, 0.0]
    assert [reward.reason for reward in found] == ["correct", "correct", "no_answer"]
    assert [reward.parts for reward in found] == [
        {"number": 1.0, "format": 1.0},
        {"number": 1.0, "format": 0.0},
        {"number": 0.0, "format": 0.0},
    ]
    assert found[1].logs == {"number.reason": "correct", "format.reason": "missing_tag"}


def test_rows_are_refused_before_anything_is_judged() -> None:
    routes = rewards.load("composite", by="task", rewards={"sum": ["number", "math"]})
    routes.check_samples([Sample("", "", meta=SEVEN)])
    with pytest.raises(RewardError, match="task='product' of sample 1 has no reward"):
        routes.check_samples([Sample("", "", meta=SEVEN), Sample("", "", meta=SEVEN | {"task": "product"})])
    with pytest.raises(RewardError, match="needs answer"):
        routes.check_samples([Sample("", "", meta={"task": "sum"})])


def test_what_its_rewards_need_of_a_run_it_needs_too() -> None:
    def batch(completions: list[str], **columns: Any) -> list[float]:
        return [0.0] * len(completions)

    alone = rewards.load("composite", rewards=[{"fn": "math", "kwargs": {"timeout": 3}}, {"fn": "code"}])
    assert alone.independent and alone.longest_s == 3 + 10
    scaled = rewards.load("cosine", fn="math", max_len=10, kwargs={"timeout": 4})
    assert scaled.independent and scaled.longest_s == 4
    together = rewards.load("composite", rewards=["number", batch])
    assert not together.independent and together.longest_s == 0


def test_entries_may_be_names_pairs_functions_and_settings() -> None:
    strict = {"fn": "format", "name": "strict", "weight": -0.5}
    loose = {"fn": "format", "name": "loose", "kwargs": {"answer_tags": False}}
    [reward] = judge([Sample("", GOOD, meta=SEVEN)], "number", ["format", 0.1], (two, 3), strict, loose)
    assert reward.value == pytest.approx(1 + 0.1 + 6 - 0.5 + 1)
    assert reward.parts.keys() == {"number", "format", str(two), "strict", "loose"}


def test_a_missing_verdict_of_a_needed_part_leaves_none_with_its_reason() -> None:
    no_gold = Sample("", GOOD, meta={"answer": "seven"})
    [reward] = judge([no_gold], "format", "number")
    assert (reward.value, reward.reason, reward.parts) == (None, "gold_unparsable", {"format": 1.0})
    for spare in ({"fn": "number", "optional": True}, {"fn": "number", "weight": 0}):
        [reward] = judge([no_gold], "format", spare)
        assert (reward.value, reward.reason) == (1.0, "correct")
    with pytest.raises(RewardError, match="'number' comes first and cannot be optional"):  # it says what is right
        judge([no_gold], {"fn": "number", "optional": True}, "format")
    assert judge([no_gold], {"fn": none, "weight": 0}, "format")[0].value is None
    [reward] = judge([Sample("", GOOD, meta=SEVEN)], {"fn": two, "weight": 0, "name": "seen"}, "number")
    assert (reward.value, reward.parts) == (1.0, {"seen": 2.0, "number": 1.0})


def test_parts_of_parts_keep_their_names() -> None:
    inner = {"fn": "composite", "name": "both", "kwargs": {"rewards": ["number", ["format", 0.5]]}}
    [reward] = judge([Sample("", GOOD, meta=SEVEN)], inner)
    assert reward.value == 1.5 and reward.parts == {"both": 1.5, "both.number": 1.0, "both.format": 1.0}


def test_each_task_has_its_reward() -> None:
    table = {"sum": "number", "talk": [["format", 0.5], {"fn": two, "name": "two"}]}
    samples = [
        Sample("", GOOD, meta={"task": "talk"}),
        Sample("", GOOD, meta=SEVEN),
        Sample("", "", meta={"task": "talk"}),
        Sample("", "", meta=SEVEN),
    ]
    found = rewards.load("composite", rewards=table, by="task")(samples)
    assert [reward.value for reward in found] == [2.5, 1.0, 2.0, 0.0]
    assert [sorted(reward.parts) for reward in found] == [["format", "two"], ["number"]] * 2
    assert rewards.load("composite", rewards={2: "number"}, by="level")([samples[1]])[0].value == 1.0


@pytest.mark.parametrize(
    ("meta", "message"),
    [
        ({"task": "chess"}, "task='chess' of sample 1 has no reward; there are rewards for sum"),
        ({"kind": "sum"}, "by='task': sample 1 has no such column; its columns: kind"),
    ],
)
def test_a_task_without_a_reward_is_an_error(meta: dict[str, Any], message: str) -> None:
    with pytest.raises(RewardError, match=message):
        rewards.load("composite", rewards={"sum": "number"}, by="task")(
            [Sample("", "", meta=SEVEN), Sample("", "", meta=meta)]
        )


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, "needs rewards; set it in reward.kwargs"),
        ({"rewards": []}, r"rewards=\[\] must be a list of"),
        ({"rewards": "number"}, "rewards='number' must be a list"),
        ({"rewards": {"sum": "number"}}, "for a table set `by`"),
        ({"rewards": ["number"], "by": "task"}, "by='task' needs rewards={value of task: reward"),
        ({"rewards": ["nmber"]}, "^no reward is called 'nmber'; did you mean 'number'"),
        ({"rewards": [3]}, "3 is not a reward; write {fn: math"),
        ({"rewards": [{"weight": 1}]}, "is not a reward"),
        ({"rewards": [{"fn": "number", "wieght": 1}]}, "is not a reward"),
        ({"rewards": [{"fn": "number", "weight": "a"}]}, "weight='a' of 'number' is not a number"),
        ({"rewards": [{"fn": "number", "weight": True}]}, "weight=True"),
        ({"rewards": [{"fn": "number", "weight": float("nan")}]}, "weight=nan of 'number' is not finite"),
        ({"rewards": [{"fn": "number", "optional": "false"}]}, "optional='false' of 'number' must be true or false"),
        ({"rewards": [{"fn": "number", "kwargs": [1]}]}, r"kwargs=\[1\] of 'number'"),
        ({"rewards": ["number", ["number", 2]]}, "number is there twice; give each a `name`"),
        ({"rewards": [{"fn": "format", "kwargs": {"tags": 1}}]}, "'format' takes no setting 'tags'"),
    ],
)
def test_entries_that_cannot_be_read_are_refused_when_loaded(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(RewardError, match=message):
        rewards.load("composite", **settings)


def test_an_error_names_the_part_that_failed() -> None:
    def broken(completion: str) -> float:
        raise KeyError("x")

    with pytest.raises(RewardError, match=r"^reward '<function .*broken.*raised KeyError"):
        judge([Sample("", GOOD, meta=SEVEN)], "number", broken)


def test_it_closes_its_parts_and_pickles_with_files_found_from_anywhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "mine.py").write_text(
        "class Counted:\n"
        "    open = 0\n"
        "    def __init__(self):\n        Counted.open += 1\n"
        "    def __call__(self, completion):\n        return float(Counted.open)\n"
        "    def close(self):\n        Counted.open -= 1\n"
    )
    monkeypatch.chdir(tmp_path)
    judge = rewards.load("composite", rewards=["number", {"fn": "mine.py:Counted", "weight": 2}])
    copy = pickle.dumps(judge)
    monkeypatch.chdir("/")
    sample = Sample("", GOOD, meta=SEVEN)
    assert judge([sample])[0].value == 3.0
    judge.close()
    assert judge([sample])[0].value == 1.0, "nothing is open"
    assert pickle.loads(copy)([sample])[0].parts == {"number": 1.0, "Counted": 1.0}
