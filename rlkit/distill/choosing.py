"""Reads all answers once, in order, and says which of them the dataset has."""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from rlkit.config import CleaningConfig, SelectionConfig
from rlkit.distill.decontamination import ExamQuestions
from rlkit.distill.journal import Journal
from rlkit.distill.selection import (
    BINS,
    Answer,
    Read,
    bin_cap,
    choose,
    difficulty_bin,
    fault,
    language_share,
    pass_rate,
    readability,
)
from rlkit.distill.words import words_of
from rlkit.engine.base import rollout_seed


@dataclass(slots=True)
class Chosen:
    """The answers of the dataset, in 25 bytes each."""

    rows: array[int] = field(default_factory=lambda: array("q"))
    samples: array[int] = field(default_factory=lambda: array("i"))
    rates: array[float] = field(default_factory=lambda: array("d"))
    """Pass rates of their questions."""
    left_out: Counter[str] = field(default_factory=Counter)
    """Why how many answers are not in it."""
    problems_by_bin: list[int] = field(default_factory=lambda: [0] * BINS)
    """Questions with an answer in it, by their quarter of pass rate."""

    def __iter__(self) -> Iterator[tuple[int, int, float]]:
        """Yields row, number of the answer and pass rate."""
        return zip(self.rows, self.samples, self.rates, strict=True)

    def __len__(self) -> int:
        """Counts the answers."""
        return len(self.rows)


def choose_answers(
    journal: Journal, tests: ExamQuestions, cleaning: CleaningConfig, cfg: SelectionConfig, seed: int
) -> Chosen:
    """Filters the answers to each question, takes the best of them, then balances the questions by pass rate.

    The order of the filters is that of `selection.fault`, then language, test questions, near answers, the number a
    question may have, and the balance; an answer is counted at the first that it does not pass.
    """
    chosen = Chosen()
    for row, answers in journal.answers():
        found = [
            Read(answer=answer, text=text, readability=readability(text) if cfg.order == "readable" else 0.0)
            for answer, text in _clean(journal, row, answers, tests, cfg, chosen.left_out)
        ]
        kept, others = choose(found, cfg.max_per_problem, cleaning.near, cfg.order)
        chosen.left_out.update(others)
        for read in kept:
            chosen.rows.append(row)
            chosen.samples.append(read.answer.sample)
            chosen.rates.append(pass_rate(answers))
    return balanced(chosen, cfg.max_bin_share, seed)


def balanced(chosen: Chosen, max_share: float, seed: int) -> Chosen:
    """Returns what is left when no quarter of pass rate has more than a share of the questions (`bin_cap`).

    Which questions of a full quarter stay is drawn by hash(seed, row), so that it depends on nothing else.
    """
    bins = {row: difficulty_bin(rate) for row, _, rate in chosen} if max_share < 1 else {}
    dropped: set[int] = set()
    cap = bin_cap([list(bins.values()).count(b) for b in range(BINS)], max_share)
    for b in range(BINS):
        inside = [row for row, own in bins.items() if own == b]
        if len(inside) > cap:
            dropped.update(sorted(inside, key=lambda row: rollout_seed(seed, f"balance/{row}", 0))[cap:])
    result = Chosen(left_out=Counter(chosen.left_out))
    for row, sample, rate in chosen:
        if row in dropped:
            result.left_out["too many of its difficulty"] += 1
            continue
        if not result.rows or result.rows[-1] != row:
            result.problems_by_bin[difficulty_bin(rate)] += 1
        result.rows.append(row)
        result.samples.append(sample)
        result.rates.append(rate)
    return result


def _clean(
    journal: Journal,
    row: int,
    answers: Sequence[Answer],
    tests: ExamQuestions,
    cfg: SelectionConfig,
    left_out: Counter[str],
) -> Iterator[tuple[Answer, str]]:
    for answer in answers:
        if why := fault(answer, cfg):
            left_out[why] += 1
            continue
        text = journal.text(row, answer.sample)
        if cfg.language and language_share(text, cfg.language) < cfg.min_language_share:
            left_out["other language"] += 1
        elif tests.found_in(words_of(text)) is not None:
            left_out["holds a test question"] += 1
        else:
            yield answer, text
