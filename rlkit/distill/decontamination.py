"""Texts that hold a question of a test set, found by n-grams whose n fits the question.

A fixed n misses what is shorter: with 13-grams no question of 12 words can be found. Here a question of L words is cut
into runs of n = L / 4, at least 3 and at most 8; an unchanged copy anywhere in a text has all of them, and one changed
word in a question of 40 leaves 76 %. A text is contaminated when it has a share of them and all of the question's
numbers: problems of one template differ in these. A test question with fewer than 4 words of letters, such as
"3 + 4 - 5", stands inside many others; a text must have the same numbers as it, and no more.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from rlkit.distill.words import Hashes, all_ngrams, hashes_of, ngrams, num_letters_words, numbers_of, words_of

LEAST_N, MOST_N = 3, 8
PARTS = 4
"""A question has about this many runs that do not overlap."""
FEW_LETTERS = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class _Item:
    id: str
    num_grams: int
    numbers: Counter[str]
    bare: bool
    """Whether it is little more than numbers and signs."""


def n_for(num_words: int) -> int:
    """Returns the n of the n-grams of a question of so many words, n = L / 4 between 3 and 8, and never above L."""
    return min(num_words, max(LEAST_N, min(MOST_N, num_words // PARTS)))


class ExamQuestions:
    """The questions of all test sets, and what of them stands in a text."""

    def __init__(self, questions: Iterable[tuple[str, str]], overlap: float) -> None:
        """Takes (id, question); `overlap` is the share of a question's n-grams that makes a text contaminated."""
        self._overlap = overlap
        self._items: list[_Item] = []
        grams: dict[int, list[Hashes]] = {}
        owners: dict[int, list[NDArray[np.int64]]] = {}
        for id, question in questions:
            words = words_of(question)
            if not words:
                continue
            n = n_for(len(words))
            found = np.unique(ngrams(hashes_of(words), n))
            grams.setdefault(n, []).append(found)
            owners.setdefault(n, []).append(np.full(len(found), len(self._items)))
            numbers = Counter(numbers_of(words))
            bare = num_letters_words(words) < FEW_LETTERS
            self._items.append(_Item(id=id, num_grams=len(found), numbers=numbers, bare=bare))
        self._index: dict[int, tuple[Hashes, NDArray[np.int64]]] = {}
        """For each n: all n-grams, sorted, and the question that each belongs to."""
        for n, parts in grams.items():
            joined = np.concatenate(parts)
            order = np.argsort(joined, kind="stable")
            self._index[n] = joined[order], np.concatenate(owners[n])[order]

    def __len__(self) -> int:
        """Counts the questions."""
        return len(self._items)

    def found_in(self, words: Sequence[str]) -> str | None:
        """Returns the id of the test question of which most stands in a text; None if it is clean."""
        runs = all_ngrams(hashes_of(words), MOST_N)
        hits: Counter[int] = Counter()
        for n, (grams, owners) in self._index.items():
            place = np.minimum(np.searchsorted(grams, runs[n]), len(grams) - 1)
            # Most texts end here: none of their runs is in the index, which is sorted.
            for start in np.unique(place[grams[place] == runs[n]]):
                end = np.searchsorted(grams, grams[start], "right")
                hits.update(owners[start:end].tolist())
        numbers = Counter(numbers_of(words))
        shares = {item: count / self._items[item].num_grams for item, count in hits.items()}
        contaminated = [
            (-share, self._items[item].id)
            for item, share in shares.items()
            if share >= self._overlap and _has_numbers(self._items[item], numbers)
        ]
        return min(contaminated)[1] if contaminated else None


def _has_numbers(item: _Item, numbers: Counter[str]) -> bool:
    return item.numbers == numbers if item.bare else item.numbers <= numbers
