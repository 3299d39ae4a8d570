"""Texts as words that can be compared: what duplicates and contamination are measured on.

Case, white space and sentence marks do not count. Numbers, operators and every other sign do: "3 - 4" is not "3 + 4".
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from xxhash import xxh3_64_intdigest

Hashes = NDArray[np.uint64]

_IDEOGRAPHS = "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
"""Scripts without spaces: each sign counts as a word."""
_WORD = re.compile(
    rf"\d+(?:,\d\d\d(?!\d))*(?:\.\d+)?|[{_IDEOGRAPHS}]|(?:(?![{_IDEOGRAPHS}])[^\W\d_])+|[^\w\s]|_", re.UNICODE
)
_SILENT = frozenset(".,;:?\"'`\u2018\u2019\u201c\u201d")
_OPERATORS = frozenset("+-*/^=<>\u00d7\u00f7\u00b7")
_PRIME = np.uint64(0x9E3779B97F4A7C15)
"""Odd, so that multiplying by it loses nothing of 64 bits."""


def words_of(text: str) -> list[str]:
    """Splits a text into words, numbers and signs; "1,200" is the number 1200, full-width forms are the usual ones."""
    found = _WORD.findall(unicodedata.normalize("NFKC", text).casefold())
    return [word.replace(",", "") if word[0].isdigit() else word for word in found if word not in _SILENT]


def figures(words: Sequence[str]) -> tuple[str, ...]:
    """Returns the numbers and operators, sorted: a problem with other ones is another problem."""
    return tuple(sorted(word for word in words if word[0].isdigit() or word in _OPERATORS))


def numbers_of(words: Sequence[str]) -> list[str]:
    """Returns the numbers in their order."""
    return [word for word in words if word[0].isdigit()]


def num_letters_words(words: Sequence[str]) -> int:
    """Counts the words that are made of letters."""
    return sum(word[0].isalpha() for word in words)


def hashes_of(words: Sequence[str]) -> Hashes:
    """Returns 64 bits for each word, the same on every machine."""
    return np.fromiter(map(_hash, words), np.uint64, len(words))


def ngrams(hashes: Hashes, n: int) -> Hashes:
    """Returns a hash of every run of `n` words, [max(0, T - n + 1)]: h = sum_j h_j * P^(n - 1 - j) mod 2^64."""
    count = max(0, len(hashes) - n + 1)
    found = np.zeros(count, np.uint64)
    for j in range(n):
        found = found * _PRIME + hashes[j : j + count]
    return found


def all_ngrams(hashes: Hashes, most: int) -> list[Hashes]:
    """Returns the hashes of all runs of 0, 1, ... `most` words, as `ngrams` has them; each takes one step more."""
    found = [hashes[:0]]
    for n in range(1, most + 1):
        count = max(0, len(hashes) - n + 1)
        before = found[-1][:count] if n > 1 else np.zeros(count, np.uint64)
        found.append(before * _PRIME + hashes[n - 1 : n - 1 + count])
    return found


@lru_cache(maxsize=2**16)
def _hash(word: str) -> int:
    return xxh3_64_intdigest(word.encode())
