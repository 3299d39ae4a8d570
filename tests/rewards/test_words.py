"""The balance of wanted and unwanted words, counted by hand."""

from __future__ import annotations

from typing import Any

import pytest

import rewards
from rewards import RewardError, Sample


@pytest.mark.parametrize(
    ("text", "value", "reason"),
    [
        ("<think></think><answer>what a lovely word</answer>", 1.0, "wanted"),
        ("Lovely, LOVELY: good", 1.0, "wanted"),
        ("a dull word", -1.0, "unwanted"),
        ("lovely good dull", 1 / 3, "both"),
        ("lovely dull silly", -1 / 3, "both"),
        ("lovelyword goods", 0.0, "neither"),
        ("", 0.0, "neither"),
    ],
)
def test_the_balance(text: str, value: float, reason: str) -> None:
    judge = rewards.load("words", wanted=["lovely", "Good"], unwanted=["dull", "silly"])
    [verdict] = judge([Sample("", text)])
    assert verdict.value == pytest.approx(value) and verdict.reason == reason


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"wanted": "lovely"}, "wanted='lovely' is no list of single words"),
        ({"wanted": ["a b"]}, r"wanted=\['a b'\] is no list of single words"),
        ({"wanted": ["a"], "unwanted": [3]}, r"unwanted=\[3\] is no list of single words"),
        ({"wanted": []}, "leave nothing to look for"),
        ({"wanted": ["a", "b"], "unwanted": ["B"]}, "'b' is wanted and unwanted"),
    ],
)
def test_refusals_name_the_value(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(RewardError, match=message):
        rewards.load("words", **settings)
