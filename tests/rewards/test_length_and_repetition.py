"""Numbers are those of TRL's own tests (tests/test_rewards.py) unless a comment says otherwise."""

from __future__ import annotations

from typing import Any

import pytest

import rewards
from rewards import Reward, RewardError, Sample


def judge(name: str, samples: list[Sample], **settings: Any) -> list[Reward]:
    return rewards.load(name, **settings)(samples)


def of_tokens(*lengths: int, answer: str = "") -> list[Sample]:
    text = f"<answer>{answer}</answer>"
    return [Sample("", text if n else "", completion_ids=[1] * n, meta={"answer": "7"}) for n in lengths]


@pytest.mark.parametrize(
    ("length", "value", "reason"),
    [
        (0, 0.0, "short"),
        (50, 0.0, "short"),
        (80, 0.0, "short"),
        (81, -0.05, "long"),
        (90, -0.5, "long"),
        (100, -1.0, "long"),
        (101, -1.0, "overlong"),
        (110, -1.0, "overlong"),
    ],
)
def test_soft_overlong_punishment(length: int, value: float, reason: str) -> None:
    [reward] = judge("length", of_tokens(length), max_completion_len=100, soft_punish_cache=20)
    assert (reward.value, reward.reason) == (pytest.approx(value), reason)


def test_a_hard_limit_has_no_cache() -> None:
    found = judge("length", of_tokens(100, 101), max_completion_len=100, soft_punish_cache=0)
    assert [reward.value for reward in found] == [0.0, -1.0]


def test_a_truncated_completion_is_too_long_whatever_its_length() -> None:
    cut = Sample("", "so", completion_ids=[1, 2], finish_reason="length")
    assert judge("length", [cut], max_completion_len=100, soft_punish_cache=20) == [Reward(-1.0, "truncated")]


def test_text_without_token_ids_has_no_length() -> None:
    assert judge("length", [Sample("", "so")], max_completion_len=9, soft_punish_cache=1) == [
        Reward(None, "no_token_ids")
    ]
    assert judge("cosine", [Sample("", "7", meta={"answer": "7"})], fn="number", max_len=9)[0].reason == "no_token_ids"


@pytest.mark.parametrize(
    ("answer", "length", "value"),
    [
        ("7", 25, 0.92678),
        ("7", 75, 0.57322),
        ("7", 50, 0.75),
        ("7", 100, 0.5),
        ("7", 200, 0.5),
        ("8", 25, -0.92678),
        ("8", 75, -0.57322),
        ("8", 50, -0.75),
        ("8", 0, -1.0),
        ("8", 100, -0.5),
        ("8", 200, -0.5),
    ],
)
def test_cosine(answer: str, length: int, value: float) -> None:
    [reward] = judge("cosine", of_tokens(length, answer=answer), fn="number", max_len=100)
    assert reward.value == pytest.approx(value, abs=1e-5)
    assert reward.reason == {"7": "correct", "8": "wrong" if length else "no_answer"}[answer]
    assert reward.parts == {"unscaled": float(answer == "7")}


def test_cosine_bounds_verdicts_and_settings_of_the_inner_reward() -> None:
    custom = {"min_value_correct": 0.0, "max_value_correct": 2.0}
    assert judge("cosine", of_tokens(50, answer="7"), fn="number", max_len=100, **custom)[0].value == pytest.approx(1.0)
    no_gold = Sample("", "<answer>7</answer>", completion_ids=[1], meta={"answer": "seven"})
    assert judge("cosine", [no_gold], fn="number", max_len=100)[0] == Reward(
        None, "gold_unparsable", logs={"gold": "seven"}
    )
    cut = Sample("", "<answer>7</answer>", completion_ids=[1], finish_reason="length", meta={"answer": "7"})
    assert judge("cosine", [cut], fn="number", max_len=100)[0].value == pytest.approx(0.5)
    inner = {"fn": "format", "kwargs": {"answer_tags": False}}
    found = judge("cosine", [Sample("", "<think></think>7", completion_ids=[1] * 50)], max_len=100, **inner)
    assert found[0].value == pytest.approx(0.75)


@pytest.mark.parametrize(
    ("ids", "size", "penalty", "value"),
    [
        ([1, 2, 3, 4], 2, -1.0, 0.0),
        ([5, 5, 5, 5, 5], 2, -1.0, -0.75),
        ([1, 2, 1, 2, 1, 2], 2, -1.0, -0.6),
        ([1, 2], 3, -1.0, 0.0),
        ([1, 2, 3], 3, -1.0, 0.0),
        ([], 3, -1.0, 0.0),
        ([5, 5, 5, 5, 5], 2, -0.5, -0.375),
        ([1, 2, 3, 1, 2, 3], 2, -1.0, -0.4),
        ([1, 2, 3, 1, 2, 3], 3, -1.0, -0.25),
        ([9], 2, -1.0, 0.0),
        ([5, 5, 5, 5], 1, -1.0, -0.75),  # by hand: 4 unigrams, 1 distinct
    ],
)
def test_repetition(ids: list[int], size: int, penalty: float, value: float) -> None:
    [reward] = judge("repetition", [Sample("", "x", completion_ids=ids)], ngram_size=size, max_penalty=penalty)
    assert reward.value == pytest.approx(value)


def test_repetition_of_words_where_there_are_no_ids() -> None:
    # by hand: (go on) (on go) (go on) (on go) (go on): 5 bigrams, 2 distinct
    assert judge("repetition", [Sample("", "Go on go on GO on")], ngram_size=2)[0] == Reward(
        pytest.approx(-0.6), "repeated"
    )
    assert judge("repetition", [Sample("", "one two three")]) == [Reward(0.0, "distinct")]
    assert judge("repetition", [Sample("", "")]) == [Reward(0.0, "too_short")]


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("length", {}, "'length' needs max_completion_len, soft_punish_cache; set it in reward.kwargs"),
        ("length", {"max_completion_len": 9, "soft_punish_cache": 10}, "soft_punish_cache=10 between 0 and it"),
        ("length", {"max_completion_len": 0, "soft_punish_cache": 0}, "max_completion_len=0 must be at least 1"),
        ("length", {"max_len": 9}, "'length' takes no setting 'max_len'; it takes max_completion_len, soft_punish"),
        ("repetition", {"max_penalty": 0.5}, "max_penalty=0.5 would reward repetition"),
        ("repetition", {"max_penalty": "-1e-3"}, "'repetition': max_penalty='-1e-3' must be a number"),
        ("repetition", {"max_penalty": float("nan")}, "max_penalty=nan must be a finite number"),
        ("repetition", {"ngram_size": 2.5}, "ngram_size=2.5 must be a whole number"),
        (
            "length",
            {"max_completion_len": "9", "soft_punish_cache": 1},
            "max_completion_len='9' must be a whole number",
        ),
        ("format", {"answer_tags": "false"}, "answer_tags='false' must be true or false"),
        ("language", {"language": False}, "language=False must be text"),
        (
            "cosine",
            {"fn": "number", "max_len": 9, "min_value_wrong": float("nan")},
            "min_value_wrong=nan must be",
        ),
        ("repetition", {"ngram_size": 0}, "ngram_size=0 must be at least 1"),
        ("cosine", {"fn": "number", "max_len": 0}, "max_len=0 must be at least 1"),
        ("cosine", {"fn": "nmber", "max_len": 9}, "no reward is called 'nmber'"),
    ],
)
def test_wrong_settings_are_refused_when_loaded(name: str, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(RewardError, match=message):
        rewards.load(name, **settings)
