from __future__ import annotations

import re
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

import rewards
from rewards import Sample
from rewards.base import thought_is_open
from rewards.format import think_answer

OPEN = "3 + 4<|assistant|><think>\n"


@pytest.mark.parametrize(
    ("completion", "reason"),
    [
        ("<think>3+4=7</think><answer>7</answer>", "correct"),
        ("<think></think><answer>7</answer>", "correct"),
        ("\n<think>\na\nb\n</think>\n\n<answer>\n7\n</answer>\n", "correct"),
        ("<think>is 3 < 4 or </ 5> or <b>?</think><answer>7</answer>", "correct"),
        ("", "missing_tag"),
        ("7", "missing_tag"),
        ("<answer>7</answer>", "missing_tag"),
        ("<think>a</think>7", "missing_tag"),
        ("<think>a<answer>7</answer>", "missing_tag"),
        ("a</think><answer>7</answer>", "missing_tag"),
        ("<think>a</think><answer>7", "missing_tag"),
        ("<Think>a</Think><answer>7</answer>", "missing_tag"),
        ("<think>a</think><think>b</think><answer>7</answer>", "repeated_tag"),
        ("<think>a<think>b</think></think><answer>7</answer>", "repeated_tag"),
        ("<think>a</think><answer>7</answer><answer>8</answer>", "repeated_tag"),
        ("<think>a</think><answer>7</answer></answer>", "repeated_tag"),
        ("<answer>7</answer><think>a</think>", "wrong_order"),
        ("<think>a<answer>7</answer></think>", "wrong_order"),
        ("</think>a<think><answer>7</answer>", "wrong_order"),
        ("<think>a<answer></think>7</answer>", "wrong_order"),
        ("Sure: <think>a</think><answer>7</answer>", "text_outside"),
        ("<think>a</think> so <answer>7</answer>", "text_outside"),
        ("<think>a</think><answer>7</answer> I hope this helps", "text_outside"),
        ("<think>a</think><answer>7</answer>\n.", "text_outside"),
        ("<think>a</think><answer></answer>", "empty_answer"),
        ("<think>a</think><answer> \n\t</answer>", "empty_answer"),
    ],
)
def test_each_tag_once_in_order_and_nothing_outside(completion: str, reason: str) -> None:
    reward = think_answer(completion)
    assert (reward.value, reward.reason) == (float(reason == "correct"), reason)


@pytest.mark.parametrize(
    ("completion", "reason"),
    [
        ("so</think><answer>7</answer>", "correct"),
        ("</think><answer>7</answer>", "correct"),
        ("<think>so</think><answer>7</answer>", "repeated_tag"),
        ("so<answer>7</answer>", "missing_tag"),
        ("so</think>or<answer>7</answer>", "text_outside"),
        ("<answer>7</answer></think>", "wrong_order"),
    ],
)
def test_a_thought_that_the_template_opened(completion: str, reason: str) -> None:
    assert think_answer(completion, prompt=OPEN).reason == reason
    chat = [{"role": "user", "content": "3 + 4"}, {"role": "assistant", "content": "<think>"}]
    assert think_answer(completion, prompt=chat).reason == reason


def test_a_user_who_writes_the_tag_opens_no_thought() -> None:
    assert not thought_is_open([{"role": "user", "content": "what is <think>"}])
    assert not thought_is_open([]) and not thought_is_open("") and not thought_is_open("<think> a")


# TRL's tests of think_format_reward (tests/test_rewards.py), which asks for no answer tags
TRL_VALID = [
    "<think>This is my reasoning.</think>This is my answer.",
    "<think>\nThis is my reasoning.\n</think>\nThis is my answer.",
    "<think>\nThis is\nmy reasoning.\n</think>\nThis is my answer.",
    "<think>\nThis is <some tag> my reasoning.</think>\nThis is my answer.",
    "<think></think>\nThis is my answer.",
]
TRL_INVALID = [
    "<think>\nThis is my reasoning.\nThis is my answer.",
    "This is my reasoning. This is my answer.",
    "This is my reasoning.</think>\nThis is my answer.",
    "This<think>is my reasoning.</think>\nThis is my answer.",
    "<think>This is<think>my reasoning.</think></think>This is my answer.",
    "<think>This is</think>\nmy\n<think>reasoning.</think>\nThis is my answer.",
]


def test_trl_cases_without_answer_tags() -> None:
    judge = rewards.load("format", answer_tags=False)
    assert [r.value for r in judge([Sample("", text) for text in TRL_VALID])] == [1.0] * len(TRL_VALID)
    assert [r.value for r in judge([Sample("", text) for text in TRL_INVALID])] == [0.0] * len(TRL_INVALID)
    assert judge([Sample("", "<think>a</think> \n")])[0].reason == "empty_answer"
    assert judge([Sample(OPEN, "a</think>7")])[0].value == 1.0


@pytest.mark.parametrize("text", ["<think>", "</think>", "<answer></answer>", "<", "<think></think>", " ", "a"])
def test_200_kB_take_under_50_ms(text: str) -> None:
    completion = "<think>" + text * (200_000 // len(text)) + "</think><answer>7</answer>"
    start = time.process_time()
    think_answer(completion)
    assert time.process_time() - start < 0.05


@given(st.lists(st.sampled_from(["<think>", "</think>", "<answer>", "</answer>", " ", "x"]), max_size=9))
def test_agrees_with_a_regular_expression(pieces: list[str]) -> None:
    text = "".join(pieces)
    form = re.compile(r"\s*<think>(?:(?!</?think>|</?answer>).)*</think>\s*<answer>([x ]*)</answer>\s*", re.DOTALL)
    match = form.fullmatch(text)
    assert think_answer(text).value == float(match is not None and bool(match[1].strip()))
