"""Rejection sampling by hand: what is left out, what comes first, how difficulty is balanced."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlkit.config import SelectionConfig
from rlkit.distill.selection import (
    Answer,
    Read,
    bin_cap,
    choose,
    difficulty_bin,
    fault,
    language_share,
    pass_rate,
    ranked,
    readability,
)

CFG = SelectionConfig(
    max_per_problem=1,
    order="shortest",
    min_tokens=3,
    max_tokens=9,
    language="",
    min_language_share=0.9,
    max_bin_share=1.0,
    shard_rows=10,
    pair_margin=0,
)
GOOD = Answer(sample=0, num_tokens=5, finish="stop", correct=True)


def read(sample: int, text: str, num_tokens: int, score: float = 0.0) -> Read:
    return Read(answer=replace(GOOD, sample=sample, num_tokens=num_tokens), text=text, readability=score)


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({}, ""),
        ({"correct": None}, "no verdict"),
        ({"correct": False}, "wrong"),
        ({"finish": "length"}, "cut off"),
        ({"finish": "refused", "correct": False}, "refused by the teacher"),
        ({"num_tokens": 2}, "too short"),
        ({"num_tokens": 3}, ""),
        ({"num_tokens": 9}, ""),
        ({"num_tokens": 10}, "too long"),
    ],
)
def test_why_an_answer_is_left_out(changes: dict, why: str) -> None:
    assert fault(replace(GOOD, **changes), CFG) == why
    assert fault(replace(GOOD, num_tokens=10**6), replace(CFG, max_tokens=0)) == "", "0 sets no limit"


def test_pass_rate_counts_verdicts_alone() -> None:
    answers = [replace(GOOD, correct=correct) for correct in (True, False, None, True, None)]
    assert pass_rate(answers) == pytest.approx(2 / 3)
    assert pass_rate([replace(GOOD, correct=None)]) == 0


@pytest.mark.parametrize(("rate", "expected"), [(0, 0), (0.25, 0), (0.26, 1), (0.5, 1), (0.75, 2), (0.76, 3), (1, 3)])
def test_quarters(rate: float, expected: int) -> None:
    assert difficulty_bin(rate) == expected


def test_the_shortest_comes_first_and_the_number_breaks_ties() -> None:
    found = [read(0, "a", 7, 0.9), read(1, "b", 5, 0.1), read(2, "c", 5, 0.9)]
    assert [one.answer.sample for one in ranked(found, "shortest")] == [1, 2, 0]
    assert [one.answer.sample for one in ranked(found, "readable")] == [2, 0, 1]


def test_at_most_k_and_no_two_near() -> None:
    text = "first we add the numbers then we take away the rest and write the result down with care and love"
    found = [read(0, text, 20), read(1, text.replace("care", "joy"), 21), read(2, "another way to the same end", 22)]
    kept, left_out = choose(found, 2, 0.8, "shortest")
    assert [one.answer.sample for one in kept] == [0, 2]
    assert left_out == {"near another answer": 1, "more than enough": 0}
    kept, left_out = choose(found, 1, 0.8, "shortest")
    assert [one.answer.sample for one in kept] == [0]
    assert left_out == {"near another answer": 0, "more than enough": 2}
    kept, _ = choose([read(0, text, 20), read(1, text, 20)], 2, 1.0, "shortest")
    assert len(kept) == 1, "equal ones go at any threshold"


def test_readability_by_hand() -> None:
    assert readability("<think>one two three four</think> 5") == 1
    # of "a b c a b c" four runs of three words, three of them distinct
    assert readability("<think>a b c a b c</think>") == pytest.approx(3 / 4)
    thought = "some words here " + "```" + "x" * 34 + "```"
    assert readability(f"<think>{thought}</think>") == pytest.approx(1 - 34 / len(thought))
    long = " ".join(f"word{i}" for i in range(200))
    assert len(long) > 1000 and readability(long) == 0
    assert readability(long[:600] + "\n\n" + long[600:]) == 1


def test_the_language_of_a_thought() -> None:
    assert language_share("<think>twelve plus three</think>", "en") == 1
    assert language_share("<think>\u5341\u4e8c\u52a0\u4e09</think>", "en") == 0
    assert language_share("<think>12+3=15</think>", "en") == 1, "no letters, nothing of another language"


@pytest.mark.parametrize(
    ("sizes", "share", "cap"),
    [
        ([10, 10, 10, 10], 0.25, 10),
        ([100, 10, 10, 10], 0.25, 10),
        ([100, 10, 10, 10], 0.5, 30),  # 30 of 60
        ([100, 10, 0, 0], 0.5, 10),
        ([100, 10, 0, 0], 0.3, 10),  # two bins cannot have 30 % each
        ([100, 0, 0, 0], 0.5, 100),  # one bin has all there is
        ([0, 0, 0, 0], 0.5, 0),
        ([7, 3, 2, 1], 1.0, 7),
    ],
)
def test_bin_cap_by_hand(sizes: list[int], share: float, cap: int) -> None:
    assert bin_cap(sizes, share) == cap


@given(st.lists(st.integers(0, 60), min_size=4, max_size=4), st.floats(0.25, 1))
def test_bin_cap_is_the_largest_that_fits(sizes: list[int], share: float) -> None:
    cap = bin_cap(sizes, share)
    filled = [size for size in sizes if size]

    def fits(c: int) -> bool:
        cut = [min(size, c) for size in filled]
        return max(cut) <= share * sum(cut) + 1e-9

    if filled and share * len(filled) >= 1:
        assert cap == max(c for c in range(1, max(filled) + 1) if fits(c))
