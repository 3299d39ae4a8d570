"""Near questions: MinHash against sets, plants that must be found, and neighbours that must not."""

from __future__ import annotations

import itertools
import random

import numpy as np
import pytest

from rlkit.distill.duplicates import (
    NUM_HASHES,
    NearQuestions,
    are_near,
    band_keys,
    jaccard,
    rows_of_a_band,
    same_words,
    shingles,
    signature,
)
from rlkit.distill.words import words_of

WORDS = [f"{a}{b}" for a in "bdfgklmnprst" for b in ("a", "ela", "ino", "oru", "ush")]


def sentence(draw: random.Random, length: int) -> list[str]:
    return [draw.choice(WORDS) for _ in range(length)]


def near(texts: list[str], threshold: float = 0.8) -> dict[int, int]:
    found = NearQuestions(threshold)
    for row, text in enumerate(texts):
        found.add(row, words_of(text))
    return found.found(texts.__getitem__)


def test_jaccard_equals_that_of_python_sets() -> None:
    draw = random.Random(0)
    for _ in range(20):
        first, second = sentence(draw, 30), sentence(draw, 25)
        second[:15] = first[:15]
        pairs = [set(itertools.pairwise(words)) for words in (first, second)]
        expected = len(pairs[0] & pairs[1]) / len(pairs[0] | pairs[1])
        assert jaccard(shingles(first), shingles(second)) == pytest.approx(expected)


def test_the_share_of_equal_minima_estimates_jaccard() -> None:
    """Its standard deviation is sqrt(J (1 - J) / 128), 0.044 at most; the mean of 40 pairs has 0.007."""
    draw, errors = random.Random(1), []
    for _ in range(40):
        first = sentence(draw, 60)
        second = list(first)
        for place in draw.sample(range(60), 6):
            second[place] = draw.choice(WORDS)
        sets = shingles(first), shingles(second)
        share = np.mean(signature(sets[0]) == signature(sets[1]))
        errors.append(float(share) - jaccard(*sets))
    assert abs(float(np.mean(errors))) < 4 * 0.007
    assert float(np.std(errors)) < 2 * 0.044


@pytest.mark.parametrize("threshold", [0.3, 0.5, 0.7, 0.8, 0.9, 1.0])
def test_bands_find_what_is_at_the_threshold(threshold: float) -> None:
    r = rows_of_a_band(threshold)
    assert 1 - (1 - threshold**r) ** (NUM_HASHES // r) >= 0.99
    assert r == 16 or 1 - (1 - threshold ** (r + 1)) ** (NUM_HASHES // (r + 1)) < 0.99, "no r is larger"


def test_planted_near_questions_are_found_and_the_first_one_stays() -> None:
    draw = random.Random(2)
    clean = [" ".join(sentence(draw, 40)) for _ in range(200)]
    planted = []
    for row in range(0, 200, 2):
        words = clean[row].split()
        words[20] = "zebra"
        planted.append(" ".join(words))
    assert near(clean) == {}
    assert near(clean + planted) == {200 + i: 2 * i for i in range(100)}


def test_a_chain_of_near_ones_keeps_what_is_far_from_all_that_stay() -> None:
    """b is near a, c is near b but not near a: b goes, c stays, since what it was near is no more."""
    draw = random.Random(3)
    a = sentence(draw, 30)
    b, c = list(a), list(a)
    b[5] = c[5] = "zebra"
    c[20] = "yak"
    texts = [" ".join(words) for words in (a, b, c)]
    assert are_near(texts[0], texts[1], 0.85) and are_near(texts[1], texts[2], 0.85)
    assert not are_near(texts[0], texts[2], 0.85)
    assert near(texts, 0.85) == {1: 0}


def test_another_number_is_another_problem() -> None:
    text = "Ann has {} apples and gives half of them to her old friend Tom who eats three on the way home to his farm"
    assert near([text.format(12), text.format(14)]) == {}
    assert near([text.format(12), text.format(12).replace("old", "good")]) == {1: 0}
    ops = "take the number x and compute x {} 4 before you write the answer down on the sheet of paper at the door"
    assert near([ops.format("+"), ops.format("-")]) == {}


def test_bare_expressions_are_never_near() -> None:
    draw = random.Random(4)
    terms = [str(draw.randint(0, 9)) for _ in range(30)]
    first = " + ".join(terms)
    terms[3], terms[4] = terms[4], terms[3]
    assert near([first, " + ".join(terms)]) == {}
    assert (band_keys(words_of(first), 0.8) == 0).all()


def test_equal_words_are_one_question_in_any_dress() -> None:
    assert same_words(words_of("What is 3 + 4?")) == same_words(words_of("what is 3+4"))
    assert same_words(words_of("What is 3 - 4?")) != same_words(words_of("What is 3 + 4?"))


def test_a_threshold_of_one_compares_nothing() -> None:
    assert near(["a b c d e f"] * 2, 1.0) == {}
