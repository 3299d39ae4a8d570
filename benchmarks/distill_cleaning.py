"""Plants duplicates and test questions in GSM8K and counts what is found, and what is taken away that is clean.

    .venv/bin/python -m benchmarks.distill_cleaning

Everything is planted in 1,000 rows of GSM8K's training split that nobody touched. Duplicates: the same row in other
case, white space and sentence marks; the same row with one to three of its words of letters replaced. Test questions:
pieces of 6 to 80 words cut from GSM8K's test split stand for questions of that length, each put unchanged into the
middle of another row, or with one word replaced. Beside it, what a fixed 13-gram finds. Results: benchmarks/RESULTS.md.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Sequence
from time import process_time

from rlkit.config.compose import load_config
from rlkit.config.distill import DistillRun
from rlkit.data.streams import stream_questions, stream_rows
from rlkit.distill.decontamination import ExamQuestions
from rlkit.distill.duplicates import NearQuestions, same_words
from rlkit.distill.words import words_of

ROWS = 1000
LENGTHS = (6, 8, 10, 13, 20, 40, 80)
OTHER_WORDS = ["zebra", "yak", "quartz", "umbrella", "violin", "walrus", "xylophone", "yogurt"]


def questions(split: str) -> list[str]:
    """The questions of a split of GSM8K, in an order of our own."""
    cfg = load_config("distill_generate", DistillRun, ["model.path=unused", "data=gsm8k"])
    if split == "test":
        found = [question for _, question in stream_questions("gsm8k", cfg.data, "question", "cleaning.tests")]
    else:
        found = [row.question for row in stream_rows(cfg.data)]
    random.Random(0).shuffle(found)
    return found


def replaced(text: str, count: int, draw: random.Random) -> str:
    """The text with so many of its words of letters replaced by others."""
    words = text.split()
    places = [place for place, word in enumerate(words) if word.isalpha()]
    for place in draw.sample(places, min(count, len(places))):
        words[place] = draw.choice(OTHER_WORDS)
    return " ".join(words)


def near_found(clean: Sequence[str], planted: Sequence[str], threshold: float) -> tuple[int, int]:
    """How many of the planted and of the clean are left out as near an earlier one."""
    texts = [*clean, *planted]
    finder = NearQuestions(threshold)
    for row, text in enumerate(texts):
        finder.add(row, words_of(text))
    found = finder.found(texts.__getitem__)
    return sum(row >= len(clean) for row in found), sum(row < len(clean) for row in found)


def duplicates(clean: Sequence[str]) -> None:
    """Prints what is found of planted duplicates."""
    draw = random.Random(1)
    dressed = [re.sub(r"[.,](?=\s|$)", " ; ", text.upper()) + " ?" for text in clean]
    known = {same_words(words_of(text)) for text in clean}
    print(f"\nequal in another dress: {sum(same_words(words_of(text)) in known for text in dressed)} of {len(dressed)}")
    print("\n| near, words replaced | found at 0.7 | at 0.8 | at 0.9 |\n|---|---|---|---|")
    for count in (1, 2, 3):
        planted = [replaced(text, count, draw) for text in clean]
        found = [near_found(clean, planted, threshold)[0] for threshold in (0.7, 0.8, 0.9)]
        print(f"| {count} | " + " | ".join(f"{number / len(planted):.1%}" for number in found) + " |")
    lost = [near_found(clean, [], threshold)[1] for threshold in (0.7, 0.8, 0.9)]
    print(f"| clean rows lost of {len(clean)} | " + " | ".join(map(str, lost)) + " |")


def thirteen(exam: Sequence[str]) -> Callable[[str], bool]:
    """The usual way: a text is contaminated when it has one run of 13 words in common."""

    def runs(text: str) -> set[tuple[str, ...]]:
        words = words_of(text)
        return {tuple(words[i : i + 13]) for i in range(len(words) - 12)}

    known = set[tuple[str, ...]]().union(*map(runs, exam))
    return lambda text: not known.isdisjoint(runs(text))


def contamination(clean: Sequence[str], test: Sequence[str]) -> None:
    """Prints what is found of planted test questions."""
    draw = random.Random(2)
    pool = " ".join(test).split()
    print("\n| words of the question | unchanged: found | 13-gram | one word replaced: at 0.5 | at 0.7 | 13-gram |")
    print("|---|---|---|---|---|---|")
    for length in LENGTHS:
        starts = draw.sample(range(len(pool) - length), 300)
        exam = [" ".join(pool[start : start + length]) for start in starts]
        loose, strict = (ExamQuestions([(str(i), q) for i, q in enumerate(exam)], overlap) for overlap in (0.5, 0.7))
        usual = thirteen(exam)
        plain, changed = [], []
        for host, question in zip(clean, exam, strict=False):
            half = len(host) // 2
            plain.append(f"{host[:half]} {question} {host[half:]}")
            changed.append(f"{host[:half]} {replaced(question, 1, draw)} {host[half:]}")
        shares = [
            sum(strict.found_in(words_of(text)) is not None for text in plain),
            sum(map(usual, plain)),
            sum(loose.found_in(words_of(text)) is not None for text in changed),
            sum(strict.found_in(words_of(text)) is not None for text in changed),
            sum(map(usual, changed)),
        ]
        print(f"| {length} | " + " | ".join(f"{share / len(exam):.1%}" for share in shares) + " |")
    whole = [(str(i), question) for i, question in enumerate(test)]
    for overlap in (0.5, 0.7):
        exam = ExamQuestions(whole, overlap)
        begun = process_time()
        lost = sum(exam.found_in(words_of(text)) is not None for text in clean)
        spent = (process_time() - begun) / len(clean)
        print(
            f"\nagainst the {len(whole)} whole questions, overlap {overlap}: {lost} of {len(clean)} clean rows are lost"
        )
    print(f"13-gram: {sum(map(thirteen(test), clean))} of {len(clean)}; {1e3 * spent:.2f} ms of CPU a row")


def main() -> None:
    """Prints the tables."""
    clean, test = questions("train")[:ROWS], questions("test")
    duplicates(clean)
    contamination(clean, test)


if __name__ == "__main__":
    main()
