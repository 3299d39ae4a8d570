"""Which answers to a question are kept: rejection sampling, as pure functions.

DeepSeek-R1 keeps correct answers and filters out thoughts with mixed languages, long paragraphs and code blocks
(arXiv:2501.12948, section 2.3.3).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from rewards import Sample
from rewards.language import LanguageShare, thought_of
from rlkit.config import SelectionConfig
from rlkit.distill.duplicates import jaccard, shingles
from rlkit.distill.words import Hashes, hashes_of, ngrams, words_of

BINS = 4
"""Quarters of pass rate: up to 25 %, 50 %, 75 %, 100 %."""
LONG_PARAGRAPH = 1000
"""Characters of a paragraph above which it is long."""
REFUSED = "refused"
"""How an answer "finished" that the teacher would not give."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What a selection must know of an answer before it reads it."""

    sample: int
    num_tokens: int
    finish: str
    """"stop", "length" or `REFUSED`."""
    correct: bool | None
    """None where the reward gave no verdict."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Read:
    """An answer that may be kept, with its text."""

    answer: Answer
    text: str
    readability: float


def fault(answer: Answer, cfg: SelectionConfig) -> str:
    """Says why an answer is left out before it is read; "" if it is not."""
    if answer.finish == REFUSED:
        return "refused by the teacher"
    if answer.correct is None:
        return "no verdict"
    if answer.finish == "length":
        return "cut off"
    if not answer.correct:
        return "wrong"
    if answer.num_tokens < cfg.min_tokens:
        return "too short"
    return "too long" if cfg.max_tokens and answer.num_tokens > cfg.max_tokens else ""


def pass_rate(answers: Sequence[Answer]) -> float:
    """Returns the share of correct answers among those with a verdict, the difficulty of a question; 0 for none."""
    judged = [answer.correct for answer in answers if answer.correct is not None]
    return sum(judged) / len(judged) if judged else 0.0


def difficulty_bin(rate: float) -> int:
    """Returns the quarter of a pass rate, 0 for up to 25 % and 3 for above 75 %."""
    return min(BINS - 1, max(0, int(np.ceil(rate * BINS)) - 1))


def language_share(text: str, language: str) -> float:
    """Returns the share of letters of the thought in the script of `language`; 1 without letters (rewards.language)."""
    judge = LanguageShare(language, min_characters=0)
    value = judge([Sample("", text)])[0].value
    assert value is not None
    return value


def readability(text: str) -> float:
    """Returns how well a thought reads, from 0 to 1: the product of three shares.

    (1 - repeated) * (1 - in code blocks) * (1 - in long paragraphs): the share of distinct runs of three words, and of
    characters outside of ``` blocks and of paragraphs with more than 1,000 characters.
    """
    thought = thought_of(text)
    grams = ngrams(hashes_of(words_of(thought)), 3)
    distinct = len(np.unique(grams)) / len(grams) if len(grams) else 1.0
    pieces = thought.split("```")
    code = sum(len(piece) for piece in pieces[1::2])
    long = sum(len(part) for piece in pieces[::2] for part in piece.split("\n\n") if len(part) > LONG_PARAGRAPH)
    length = max(1, len(thought))
    return distinct * (1 - code / length) * (1 - long / length)


def ranked(found: Sequence[Read], order: str) -> list[Read]:
    """Sorts answers, the best first: by length, or by readability to two digits and then by length; then by number."""
    return sorted(
        found,
        key=lambda read: (
            -round(read.readability, 2) if order == "readable" else 0,
            read.answer.num_tokens,
            read.answer.sample,
        ),
    )


def choose(found: Sequence[Read], most: int, near: float, order: str) -> tuple[list[Read], dict[str, int]]:
    """Returns the best answers to one question, no two of them near, and how many others were left out for what."""
    kept: list[Read] = []
    sets: list[Hashes] = []
    left_out = {"near another answer": 0, "more than enough": 0}
    for read in ranked(found, order):
        if len(kept) == most:
            left_out["more than enough"] += 1
            continue
        own = shingles(words_of(read.text))
        if any(jaccard(own, other) >= near for other in sets):
            left_out["near another answer"] += 1
            continue
        kept.append(read)
        sets.append(own)
    return kept, left_out


def bin_cap(sizes: Sequence[int], max_share: float) -> int:
    """Returns the largest c for which no bin has more than a share of the problems when each is cut to c.

    max_b min(n_b, c) <= max_share * sum_b min(n_b, c), over the bins that hold any. Where fewer bins than
    1 / max_share hold any, no c will do: then c is the size of the smallest, so that all are equal.
    """
    filled = [size for size in sizes if size]
    if not filled:
        return 0
    if max_share * len(filled) < 1:
        return min(filled)

    def fits(cap: int) -> bool:
        cut = [min(size, cap) for size in filled]
        return max(cut) <= max_share * sum(cut) + 1e-9

    # More than the smallest bin adds to the others alone, so once a cap fails all larger ones do.
    low, high = min(filled), max(filled)
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if fits(middle) else (low, middle - 1)
    return low
