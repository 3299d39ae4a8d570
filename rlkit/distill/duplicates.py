"""Questions that stand in the data twice: equal ones by their words, near ones by MinHash and a check of each find.

Two texts are near when the Jaccard similarity of their pairs of words, J(A, B) = |A and B| / |A or B|, reaches a
threshold and they have the same numbers and operators: a problem with other numbers is another problem. Texts that are
signs and numbers for more than half are only compared as equal.

The minima of two sets under a random hash are the same with probability J (Broder, "On the resemblance and containment
of documents", 1997). 128 of them are cut into bands of r; texts with one band in common are looked at closely, which
near ones have with probability 1 - (1 - J^r)^(128 / r).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cache

import numpy as np
from numpy.typing import NDArray
from xxhash import xxh3_64_intdigest

from rlkit.distill.words import Hashes, figures, hashes_of, ngrams, num_letters_words, words_of

SHINGLE = 2
"""Words of a shingle: in a question of 20 words one other word leaves J = 0.81, with three words 0.71."""
NUM_HASHES = 128
RECALL = 0.99
"""The least probability with which two texts at the threshold share a band."""
ALONE = np.uint32(0)
"""Stands in every band of a text that is not compared."""

_GENERATOR = np.random.default_rng(20250122)
_FACTORS = _GENERATOR.integers(0, 2**63, NUM_HASHES, np.uint64) * np.uint64(2) + np.uint64(1)
_SHIFTS = _GENERATOR.integers(0, 2**64 - 1, NUM_HASHES, np.uint64)
_CHUNK = 4096
"""Shingles that are hashed at a time: 4 MiB of 128 hashes each."""


def same_words(words: Sequence[str]) -> int:
    """Returns 64 bits that are the same for texts that differ in case, white space and sentence marks only."""
    return xxh3_64_intdigest(" ".join(words).encode())


def shingles(words: Sequence[str]) -> Hashes:
    """Returns the distinct pairs of words, sorted; a text of one word is its own."""
    hashes = hashes_of(words)
    return np.unique(ngrams(hashes, SHINGLE) if len(hashes) >= SHINGLE else hashes)


def jaccard(first: Hashes, second: Hashes) -> float:
    """Returns |A and B| / |A or B| of two sorted sets; 1 for two empty ones."""
    shared = len(np.intersect1d(first, second, assume_unique=True))
    union = len(first) + len(second) - shared
    return shared / union if union else 1.0


@cache
def rows_of_a_band(threshold: float) -> int:
    """Returns the most hashes r of a band with which near texts are found with probability `RECALL`."""
    fitting = [r for r in range(1, 17) if 1 - (1 - threshold**r) ** (NUM_HASHES // r) >= RECALL]
    return max(fitting, default=1)


def signature(shingle: Hashes) -> NDArray[np.uint32]:
    """Returns the minimum of each hash, (a x + b) mod 2^64 without its lower half, over the shingles: [128]."""
    least = np.full(NUM_HASHES, np.iinfo(np.uint32).max, np.uint32)
    for start in range(0, len(shingle), _CHUNK):
        hashed = shingle[start : start + _CHUNK, None] * _FACTORS + _SHIFTS
        np.minimum(least, (hashed >> np.uint64(32)).min(axis=0).astype(np.uint32), out=least)
    return least


def band_keys(words: Sequence[str], threshold: float) -> NDArray[np.uint32]:
    """Returns a key for each band: two texts that share one, at the same place, may be near."""
    r = rows_of_a_band(threshold)
    num_bands = NUM_HASHES // r
    if 2 * num_letters_words(words) < len(words) or len(words) <= SHINGLE:
        return np.full(num_bands, ALONE, np.uint32)
    least = signature(shingles(words))[: num_bands * r].reshape(num_bands, r)
    # The numbers are part of the key: templates with other numbers, of which data may be full, never meet.
    start = np.uint64(xxh3_64_intdigest(" ".join(figures(words)).encode()))
    keys = np.full(num_bands, start, np.uint64)
    for place in range(r):
        keys = (keys ^ least[:, place]) * _FACTORS[0]
    return np.maximum((keys >> np.uint64(32)).astype(np.uint32), np.uint32(1))


@dataclass(slots=True)
class NearQuestions:
    """Finds near questions among many, in 4 bytes a band and question: 128 at a threshold of 0.7."""

    threshold: float
    _rows: list[int] = field(default_factory=list)
    _keys: list[NDArray[np.uint32]] = field(default_factory=list)

    def add(self, row: int, words: Sequence[str]) -> None:
        """Takes a question under its number; numbers rise."""
        if self.threshold < 1:
            self._rows.append(row)
            self._keys.append(band_keys(words, self.threshold))

    def found(self, text_of: Callable[[int], str]) -> dict[int, int]:
        """Returns each question that is near an earlier one, which stays, with that one; `text_of` reads a question."""
        if not self._rows:
            return {}
        buckets_NB = _shared_buckets(np.stack(self._keys))
        near: dict[int, int] = {}
        kept = defaultdict[tuple[int, int], list[int]](list)
        for place in np.flatnonzero((buckets_NB >= 0).any(axis=1)):
            row = self._rows[place]
            buckets = [(band, int(b)) for band, b in enumerate(buckets_NB[place]) if b >= 0]
            candidates = sorted({other for bucket in buckets for other in kept[bucket]})
            same = next((other for other in candidates if are_near(text_of(other), text_of(row), self.threshold)), None)
            if same is not None:
                near[row] = same
                continue
            for bucket in buckets:
                kept[bucket].append(row)
        return near


def are_near(first: str, second: str, threshold: float) -> bool:
    """Says whether two texts have the same figures and so many pairs of words in common."""
    ours, theirs = words_of(first), words_of(second)
    return figures(ours) == figures(theirs) and jaccard(shingles(ours), shingles(theirs)) >= threshold


def _shared_buckets(keys_NB: NDArray[np.uint32]) -> NDArray[np.int32]:
    """Numbers the keys of each band; -1 stands for a key that no other text has, and for texts that are alone."""
    buckets_NB = np.full(keys_NB.shape, -1, np.int32)
    for band, keys_N in enumerate(keys_NB.T):
        _, place_N, count = np.unique(keys_N, return_inverse=True, return_counts=True)
        shared_N = (count[place_N] > 1) & (keys_N != ALONE)
        buckets_NB[shared_N, band] = place_N[shared_N]
    return buckets_NB
