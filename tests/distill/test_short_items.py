"""Short test questions, pairs of words, and cells of the card."""

from __future__ import annotations

import pytest

from rlkit.distill.card import _cell
from rlkit.distill.decontamination import ExamQuestions, n_for
from rlkit.distill.duplicates import are_near, shingles
from rlkit.distill.words import num_letters_words, numbers_of, words_of

EXAMS = ["hello", "true love", "what is love", "name all prime numbers", "name all prime numbers now", "7", "7 apples",
         "x ^ 2", "compute 3 + 4", "find 12 of the 30"]  # fmt: skip
TEXTS = ["Hello!", "hello 7", "say hello to all", "love true", "true love", "What is love?", "what is not love",
         "please name all prime numbers now", "name all prime numbers below 9", "7", "7 7", "apples 7", "7 apples 8",
         "x^2", "x^2 + x^2", "Compute 3 + 4, please", "compute 3 + 5", "find 12 of the 30 and 5", ""]  # fmt: skip


@pytest.mark.parametrize("exam", EXAMS)
def test_short_items_are_found_as_sets_of_runs_say(exam: str) -> None:
    """Items of one to five words against the definition, written with tuples and sets."""
    tests, item = ExamQuestions([("t", exam)], 0.7), words_of(exam)
    n = n_for(len(item))

    def runs(words: list[str]) -> set[tuple[str, ...]]:
        return {tuple(words[i : i + n]) for i in range(len(words) - n + 1)}

    hits = []
    for text in TEXTS:
        words = words_of(text)
        share = len(runs(item) & runs(words)) / len(runs(item))
        ours, theirs = sorted(numbers_of(item)), sorted(numbers_of(words))
        enough = all(theirs.count(number) >= ours.count(number) for number in ours)
        expected = share >= 0.7 and (ours == theirs if num_letters_words(item) < 4 else enough)
        assert (tests.found_in(words) is not None) == expected, text
        hits.append(expected)
    assert not all(hits)


def test_two_words_are_a_pair_and_their_order_counts() -> None:
    assert not are_near("no yes", "yes no", 1.0) and are_near("no yes", "No, yes.", 1.0)
    assert [len(shingles(words)) for words in ([], ["a"], ["a", "b"], ["a", "b", "a", "b"])] == [0, 1, 1, 2]


def test_a_cell_holds_no_end_of_itself() -> None:
    assert _cell("a|b\n c\t\x0b d") == "a\\|b c d"
