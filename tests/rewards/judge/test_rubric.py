"""Rubrics: what must stand in them, and what the judge then reads."""

from __future__ import annotations

from pathlib import Path

import pytest

from rewards import RewardError, Sample
from rewards.judge.rubric import ONE, TWO, ask, check_columns, check_places, question_of, read_rubric, texts_of


@pytest.mark.parametrize(
    ("rubric", "sides", "words"),
    [
        ("Grade it: {question}", ONE, "no {reply} (the text behind the thought)"),
        ("{reply_a} or what?", TWO, "no {reply_b}"),
        ("{reply}", TWO, "no {reply_a}"),
        ("{reply_a} {reply_b} {reply}", TWO, "{reply}, which belongs to the other form"),
        ("{reply} {completion_b}", ONE, "{completion_b}, which belongs to the other form"),
        ("{{reply_a}", ONE, "no {reply}"),
    ],
)
def test_a_rubric_without_its_places_is_refused(rubric: str, sides: tuple[str, ...], words: str) -> None:
    with pytest.raises(RewardError) as raised:
        check_places(rubric, sides)
    assert words in str(raised.value)


def test_rubrics_with_their_places() -> None:
    check_places("{reply}", ONE)
    check_places("{completion} {question} {anything}", ONE)
    check_places("{reply_a} {completion_b}", TWO)


def test_a_column_that_rows_lack_is_refused() -> None:
    sample = Sample("p", "c", meta={"answer": "7"})
    check_columns("{question} {answer} {reply}", sample, 0)
    with pytest.raises(RewardError, match=r"\{gold\}, which is no column of sample 3 \(its columns: answer\)"):
        check_columns("{question} {gold} {reply}", sample, 3)


def test_a_rubric_is_a_text_or_a_file_of_text(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("Is {reply} good?\n")
    assert read_rubric(str(tmp_path / "mine.txt")) == "Is {reply} good?\n"
    assert read_rubric("Read\nmine.txt") == "Read\nmine.txt"
    for text, words in ((str(tmp_path / "none.md"), "correct the path"), ("  ", "rubric is empty")):
        with pytest.raises(RewardError, match=words):
            read_rubric(text)


def test_places_are_filled_once_and_from_the_row() -> None:
    """A completion that holds a place of its own does not get the gold answer written into it."""
    row = {"answer": "7", "reply": "not this column"}
    text = ask("Q: {question} gold {answer}: {reply} {unknown}", row, "3 + 4", [("it is {answer}", "")], "END")
    assert text == "Q: 3 + 4 gold 7: it is {answer} {unknown}\n\nEND"
    both = ask("{reply_a}|{completion_b}", {}, "", [("a", "A"), ("b", "B")], "END")
    assert both == "a|B\n\nEND"


def test_half_a_character_can_be_sent() -> None:
    assert ask("{reply}", {}, "", [("a\ud800b", "")], "END").encode() == b"a?b\n\nEND"


@pytest.mark.parametrize(
    ("prompt", "completion", "reply"),
    [
        ("p", "<think>hm</think> 7 ", "7"),
        ("p", "no thought", "no thought"),
        ("p", "<think>hm", ""),
        ("p<think>", "hm</think>7", "7"),
        ("p<think>", "still thinking", ""),
    ],
)
def test_the_reply_follows_the_thought(prompt: str, completion: str, reply: str) -> None:
    assert texts_of(Sample(prompt, completion)) == (reply, completion)


def test_the_question_is_that_of_the_row() -> None:
    assert question_of(Sample("<|user|>3 + 4<|assistant|>", "", meta={"question": "3 + 4"})) == "3 + 4"
    assert question_of(Sample([{"role": "user", "content": "3 + 4"}], "")) == "3 + 4"
