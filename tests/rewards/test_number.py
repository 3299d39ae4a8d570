from __future__ import annotations

import gzip
import json
import random
import time
from fractions import Fraction
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import rewards
from rewards import RewardError
from rewards.number import extract_answer, number, parse_number

GSM8K = Path(__file__).parents[2] / "rlkit" / "data" / "gsm8k"


def golds() -> list[str]:
    texts = [gzip.decompress((GSM8K / f"{split}.jsonl.gz").read_bytes()).decode() for split in ("train", "test")]
    return [json.loads(line)["answer"].rpartition("####")[2].strip() for line in "".join(texts).splitlines()]


def judge(answer: str, gold: str) -> tuple[float | None, str]:
    reward = number(f"<think>so</think><answer>{answer}</answer>", gold)
    return reward.value, reward.reason


def test_every_gsm8k_gold_verifies_against_itself_and_against_no_other() -> None:
    gold = golds()
    assert len(gold) == 8792
    assert {judge(answer, answer) for answer in gold} == {(1.0, "correct")}
    assert {judge(f" ${answer}.00\n", answer.replace(",", "")) for answer in gold} == {(1.0, "correct")}
    other = random.Random(0).sample(gold, len(gold))
    # Different as integers by Python's own reading, which is not the one under test.
    pairs = [(a, b) for a, b in zip(gold, other, strict=True) if int(a.replace(",", "")) != int(b.replace(",", ""))]
    assert len(pairs) > 8000
    assert {judge(a, b) for a, b in pairs} == {(0.0, "wrong")}


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("42", Fraction(42)),
        ("+42", Fraction(42)),
        (" -7 ", Fraction(-7)),
        ("1,234,567", Fraction(1234567)),
        ("-1,234.50", Fraction("-1234.5")),
        ("$3", Fraction(3)),
        ("-$3", Fraction(-3)),
        ("$-3", Fraction(-3)),
        ("5.", Fraction(5)),
        (".5", Fraction(1, 2)),
        ("007", Fraction(7)),
        ("0.1", Fraction(1, 10)),
        ("9" * 400, Fraction(10**400 - 1)),
        ("9" * 401, None),
        ("", None),
        ("-", None),
        (".", None),
        ("--3", None),
        ("-$-3", None),
        ("1,23", None),
        ("12,3456", None),
        ("1,234,56", None),
        ("1 000", None),
        ("1_000", None),
        ("1e5", None),
        ("3/4", None),
        ("5%", None),
        ("x = 5", None),
        ("41, 42", None),
        ("41 42", None),
        ("nan", None),
        ("inf", None),
        ("0x10", None),
        ("\u0664\u0662", None),  # Arabic digits, which Python's int() reads
        ("\u00b2", None),
    ],
)
def test_parse_number(text: str, value: Fraction | None) -> None:
    assert parse_number(text) == value


@given(st.integers(), st.integers(min_value=0, max_value=6))
def test_what_python_prints_is_read_back_exactly(whole: int, places: int) -> None:
    assert parse_number(str(whole)) == parse_number(f"{whole:,}") == parse_number(f"{whole}.000") == whole
    assert parse_number(f"{whole}.{places}") == Fraction(f"{whole}.{places}")


def test_comparison_is_exact_where_floats_are_not() -> None:
    assert judge("9007199254740993", "9007199254740992") == (0.0, "wrong")
    assert judge("0.30000000000000001", "0.3") == (0.0, "wrong")
    assert judge("0.30", "0.3") == (1.0, "correct")
    assert judge("-0", "0") == (1.0, "correct")


@pytest.mark.parametrize(
    ("completion", "answer"),
    [
        ("<answer>7</answer>", "7"),
        ("<think>3+4=7</think><answer>7</answer>", "7"),
        ("3+4=7</think><answer>7</answer>", "7"),
        ("<think>a</think><answer>1</answer> no: <answer>\n 7 </answer> ok", "7"),
        ("<answer>7</answer><answer>8", "7"),
        ("<answer>1<answer>7</answer>", "7"),
        ("<answer>7</answer></answer>", "7"),
        ("<think><answer>1</answer></think><answer>7</answer>", "7"),
        ("<answer></answer>", ""),
        ("", None),
        ("7", None),
        ("<answer>7", None),
        ("7</answer>", None),
        ("</answer>7<answer>", None),
        ("<Answer>7</Answer>", None),
        ("<think><answer>7</answer>", None),
        ("<think><answer>7</answer></think>", None),
        ("<think>a</think><think><answer>7</answer>", None),
        ("<answer>7</answer></think>", None),
        (r"\boxed{7}", None),
    ],
)
def test_extract_answer(completion: str, answer: str | None) -> None:
    assert extract_answer(completion) == answer


def test_a_prompt_that_opened_the_think_makes_everything_a_thought_until_it_is_closed() -> None:
    assert number("it is <answer>7</answer>", "7", prompt="3 + 4<|assistant|><think>\n").reason == "no_answer"
    assert number("so</think><answer>7</answer>", "7", prompt="3 + 4<|assistant|><think>\n").reason == "correct"
    assert number("<answer>7</answer>", "7", prompt=[{"role": "user", "content": "<think>"}]).reason == "correct"


def test_the_four_verdicts_and_the_gold_that_allows_none() -> None:
    assert judge("7", "7") == (1.0, "correct")
    assert judge("8", "7") == (0.0, "wrong")
    assert judge("seven", "7") == judge("", "7") == (0.0, "unparsable")
    assert (number("7", "7").value, number("7", "7").reason) == (0.0, "no_answer")
    reward = number("<answer>7</answer>", "seven")
    assert (reward.value, reward.reason, reward.logs) == (None, "gold_unparsable", {"gold": "seven"})


@pytest.mark.parametrize(
    "completion",
    [
        f"<answer>{'9' * 200_000}</answer>",
        f"<answer>{'1,' * 100_000}</answer>",
        f"<answer>{' ' * 200_000}x</answer>",
        "<answer>" * 25_000,
        "</answer>" * 25_000,
        "<answer></answer>" * 12_000 + "<think>",
        "<think>" * 30_000,
    ],
)
def test_hostile_completions_are_cheap_and_never_right(completion: str) -> None:
    start = time.process_time()
    reward = number(completion, "9")
    assert reward.value == 0.0 and time.process_time() - start < 0.05


@given(st.text(alphabet="<think>/answer7 ,.$-", max_size=80))
def test_any_text_gets_a_verdict(completion: str) -> None:
    reward = number(completion, "7")
    assert reward.reason in ("correct", "wrong", "no_answer", "unparsable")
    assert (reward.value == 1.0) == (reward.reason == "correct")


@pytest.mark.parametrize(
    ("name", "setting"),
    [("number", "tol"), ("number", "completion_ids"), ("format", "tol"), ("language", "tol"), ("repetition", "tol")],
)
def test_settings_that_a_reward_does_not_have_are_refused(name: str, setting: str) -> None:
    """`number` took any, so that a tolerance seemed to be set."""
    with pytest.raises(RewardError, match=rf"takes no setting '{setting}'"):
        rewards.load(name, **{setting: 1})
