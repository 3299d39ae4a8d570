"""Words, numbers and n-grams: what counts as the same text."""

from __future__ import annotations

import numpy as np
import pytest

from rlkit.distill.words import all_ngrams, figures, hashes_of, ngrams, num_letters_words, numbers_of, words_of


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("What is 3 + 4?", "what is  3+4"),
        ("It costs $1,200.50, he said.", "it costs $1200.50 he said"),
        ("\uff11\uff12 \uff0b 3", "12 + 3"),  # full-width forms
        ("\u201cSo\u201d", '"so"'),
        ("Tom's hat", "Tom\u2019s hat"),
    ],
)
def test_texts_that_are_the_same(first: str, second: str) -> None:
    assert words_of(first) == words_of(second)


@pytest.mark.parametrize(
    ("first", "second"),
    [("3 - 4", "3 + 4"), ("(3 + 4) * 2", "3 + 4 * 2"), ("1,2", "12"), ("x^2", "x2"), ("5!", "5"), ("3.5", "35")],
)
def test_texts_that_are_not_the_same(first: str, second: str) -> None:
    assert words_of(first) != words_of(second)


def test_words_by_hand() -> None:
    assert words_of("Find 1,200 + 3.5 (\u4f60\u597dabc)") == [
        "find",
        "1200",
        "+",
        "3.5",
        "(",
        "\u4f60",
        "\u597d",
        "abc",
        ")",
    ]
    words = words_of("Ann has 12 pens and 3 + 4 hats")
    assert figures(words) == ("+", "12", "3", "4")
    assert numbers_of(words) == ["12", "3", "4"]
    assert num_letters_words(words) == 5


def test_ngrams_are_equal_where_the_words_are_and_nowhere_else() -> None:
    words = ["a", "b", "c", "a", "b", "d", "a", "b", "c"]
    found = ngrams(hashes_of(words), 3)
    runs = [" ".join(words[i : i + 3]) for i in range(7)]
    assert len(found) == 7
    for i in range(7):
        for j in range(7):
            assert (found[i] == found[j]) == (runs[i] == runs[j])
    assert len(ngrams(hashes_of(words), 10)) == 0


def test_all_ngrams_are_those_of_each_n() -> None:
    hashes = hashes_of(["one", "two", "three", "four", "five"])
    for n, found in enumerate(all_ngrams(hashes, 8)):
        expected = ngrams(hashes, n) if n else hashes[:0]
        assert np.array_equal(found, expected), n


def test_hashes_are_the_same_on_every_machine() -> None:
    """The first of XXH3's published test vectors of 64 bits without a seed is that of the empty text."""
    from xxhash import xxh3_64_intdigest

    assert xxh3_64_intdigest(b"") == 0x2D06800538D394C2
    assert hashes_of(["a"])[0] == xxh3_64_intdigest(b"a")
