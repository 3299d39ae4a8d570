"""Test questions are found at every length, wherever they stand, and their neighbours are left alone."""

from __future__ import annotations

import random

import pytest

from rlkit.distill.decontamination import ExamQuestions, n_for
from rlkit.distill.words import words_of
from tests.distill.test_duplicates import sentence


def exam_of(*questions: str, overlap: float = 0.7) -> ExamQuestions:
    return ExamQuestions([(f"t{i}", question) for i, question in enumerate(questions)], overlap)


@pytest.mark.parametrize(("length", "n"), [(1, 1), (2, 2), (3, 3), (8, 3), (16, 4), (20, 5), (32, 8), (200, 8)])
def test_n_by_hand(length: int, n: int) -> None:
    assert n_for(length) == n


@pytest.mark.parametrize("length", [4, 6, 8, 10, 12, 16, 20, 30, 50, 100])
def test_an_unchanged_question_is_found_inside_any_text(length: int) -> None:
    draw = random.Random(length)
    questions = [" ".join(sentence(draw, length)) for _ in range(20)]
    tests = exam_of(*questions)
    for i, question in enumerate(questions):
        around = sentence(draw, 30)
        text = " ".join([*around[:15], question.upper(), *around[15:]]) + "!"
        assert tests.found_in(words_of(text)) == f"t{i}"
        assert tests.found_in(around) is None


@pytest.mark.parametrize("length", [20, 40, 80])
def test_one_changed_word_does_not_hide_it(length: int) -> None:
    draw = random.Random(length)
    words = sentence(draw, length)
    tests = exam_of(" ".join(words), overlap=0.6)
    for place in range(length):
        assert tests.found_in([*words[:place], "zebra", *words[place + 1 :]]) == "t0"


def test_the_same_story_with_other_numbers_is_clean() -> None:
    story = "Ann buys {} pens for {} dollars each and pays with a note of {} dollars so how much does she get back"
    tests = exam_of(story.format(3, 2, 20))
    assert tests.found_in(words_of(story.format(3, 2, 20))) == "t0"
    assert tests.found_in(words_of(story.format(4, 2, 20))) is None


def test_a_bare_expression_must_be_all_the_numbers_there_are() -> None:
    tests = exam_of("3 + 4 - 5")
    assert tests.found_in(words_of("3 + 4 - 5 =")) == "t0"
    assert tests.found_in(words_of("What is 3 + 4 - 5?")) == "t0"
    assert tests.found_in(words_of("3 + 4 - 5 + 1")) is None
    assert tests.found_in(words_of("3 + 4")) is None


def test_the_question_of_which_most_is_there_is_named() -> None:
    draw = random.Random(9)
    words = sentence(draw, 40)
    other = [*words[:32], *sentence(draw, 8)]
    tests = exam_of(" ".join(other), " ".join(words), overlap=0.5)
    assert tests.found_in(words) == "t1"
    assert len(tests) == 2


def test_without_exam_questions_everything_is_clean() -> None:
    assert exam_of().found_in(["a", "b"]) is None
    assert exam_of("?!").found_in([]) is None
