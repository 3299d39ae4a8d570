"""Preferences as tokens: every form of a cell, what is refused, and the pairs that are made from worked solutions."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

import pytest

from rlkit.algo.schedule import Schedule
from rlkit.config import RewardModelConfig
from rlkit.data.preferences import Labelled, Pair, to_preferences
from rlkit.data.rows import Row
from rlkit.data.slips import STEP, right_and_wrong
from rlkit.data.tokenizer import train_tokenizer
from rlkit.errors import UserError

TOKENIZER = train_tokenizer(["3 + 4 = 7"], 300)
CFG = RewardModelConfig(
    kind="pairwise",
    steps=1,
    batch_size=1,
    chosen_column="chosen",
    rejected_column="rejected",
    completion_column="completion",
    label_column="label",
    max_length=64,
    schedule=Schedule(lr=1e-3, warmup_steps=0, kind="constant", final_ratio=1.0),
)
POINTWISE = replace(CFG, kind="pointwise")


def row(**columns: Any) -> Row:
    return Row(id="r", question="3 + 4", answer="", solution="", meta={"question": "3 + 4", **columns})


def text_of(tokens: tuple[int, ...]) -> str:
    return str(TOKENIZER.decode(list(tokens)))


CHAT = [{"role": "user", "content": "3 + 4"}, {"role": "assistant", "content": "7"}]


@pytest.mark.parametrize(
    "chosen",
    [
        "7",
        "7<eos>",
        CHAT,
        CHAT[1:],
        [{"role": "system", "content": "Be brief."}, *CHAT],
        [{"type": "text", "text": "7"}],
    ],
)
def test_a_pair_is_two_whole_samples(chosen: Any) -> None:
    [pair] = to_preferences([row(chosen=chosen, rejected="8")], TOKENIZER, "", CFG, made=False)
    assert isinstance(pair, Pair) and pair.id == "r"
    assert text_of(pair.chosen) == "<bos><|user|>3 + 4<|assistant|>7<eos>"
    assert text_of(pair.rejected) == "<bos><|user|>3 + 4<|assistant|>8<eos>"


@pytest.mark.parametrize(("label", "value"), [(True, 1.0), (0, 0.0), (0.25, 0.25), ("1", 1.0)])
def test_a_label_is_a_truth_value_or_a_share(label: Any, value: float) -> None:
    [found] = to_preferences([row(completion="7", label=label)], TOKENIZER, "add", POINTWISE, made=False)
    assert isinstance(found, Labelled) and found.label == value
    assert text_of(found.tokens) == "<bos><|user|>add\n3 + 4<|assistant|>7<eos>"


@pytest.mark.parametrize(
    ("columns", "cfg", "words"),
    [
        (
            {"chosen": "7"},
            CFG,
            "reward_model.rejected_column='rejected': row 'r' has no such column, only question, chosen",
        ),
        ({"chosen": "7", "rejected": None}, CFG, "no value in column 'rejected' (reward_model.rejected_column)"),
        ({"chosen": "7", "rejected": " "}, CFG, "an empty completion in 'rejected'; remove the row"),
        ({"chosen": "7", "rejected": "7"}, CFG, "'chosen' and 'rejected' are the same text"),
        ({"chosen": "7", "rejected": object()}, CFG, "holds a object, which has no one text in 'rejected'"),
        ({"chosen": CHAT[:1], "rejected": "8"}, CFG, "conversations of several turns are not covered"),
        ({"chosen": [*CHAT, *CHAT], "rejected": "8"}, CFG, "conversations of several turns are not covered"),
        ({"chosen": [{"role": "user", "content": "1 + 1"}, CHAT[1]], "rejected": "8"}, CFG, "not the row's question"),
        (
            {"chosen": "7" * 80, "rejected": "8"},
            CFG,
            "more than reward_model.max_length=64; raise it, or remove the row",
        ),
        ({"completion": "7"}, POINTWISE, "reward_model.label_column='label': row 'r' has no such column"),
        ({"completion": "7", "label": 2}, POINTWISE, "'label' is 2; a label is true, false, or a number from 0 to 1"),
        ({"completion": "7", "label": "good"}, POINTWISE, "'label' is 'good'"),
    ],
)
def test_what_is_no_preference_is_refused(columns: dict[str, Any], cfg: RewardModelConfig, words: str) -> None:
    with pytest.raises(UserError, match=re.escape(words)):
        to_preferences([row(**columns)], TOKENIZER, "", cfg, made=False)


SUM = {"solution": "3+4=7 7-2=5", "answer": "5"}


def test_made_pairs_are_right_and_wrong() -> None:
    kinds = set()
    for seed in range(60):
        found = right_and_wrong(SUM, f"row {seed}")
        assert found is not None
        right, wrong = found
        assert right == "<think>3+4=7 7-2=5</think><answer>5</answer>" != wrong
        thought, answer = re.fullmatch(r"<think>(.*)</think><answer>(-?\d+)</answer>", wrong).groups()  # type: ignore[union-attr]
        assert answer != "5"
        steps = [tuple(found) for found in STEP.findall(thought)]
        slips = sum(int(a) + int(f"{sign}{b}") != int(c) for a, sign, b, c in steps)
        kinds.add("guess" if not thought else "slip" if slips else "answer")
        assert slips <= 1, "what follows a slip is worked out from there"
        if slips:
            assert steps[-1][3] == answer and steps[1][0] == steps[0][3]
        assert right_and_wrong(SUM, f"row {seed}") == found, "the same in every run"
    assert kinds == {"slip", "answer", "guess"}


def test_made_preferences_come_in_both_kinds() -> None:
    rows = [replace(row(**SUM), id=f"{i}") for i in range(3)]
    pairs = to_preferences(rows, TOKENIZER, "", CFG, made=True)
    labelled = to_preferences(rows, TOKENIZER, "", POINTWISE, made=True)
    assert len(pairs) == 3 and [each.label for each in labelled if isinstance(each, Labelled)] == [1.0, 0.0] * 3
    with pytest.raises(UserError, match="no worked solution with a whole number as its answer"):
        to_preferences([row(solution="", answer="yes")], TOKENIZER, "", CFG, made=True)
