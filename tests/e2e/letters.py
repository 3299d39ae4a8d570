"""A task whose truth is known and cheap: lines of letters, of which "a" is good and "b" is bad."""

from __future__ import annotations

import json
import random
from pathlib import Path

TRUTH = """
import re

def truth(completion: str) -> float:
    letters = re.sub("<[^>]*>", "", completion)  # wherever they stand: a policy finds other places for them
    return float(letters.count("a") - letters.count("b"))
"""
SMALL = [
    "model.architecture.vocab_size=265",  # a token for each letter
    "model.architecture.hidden_size=64",
    "model.architecture.num_hidden_layers=2",
    "model.architecture.intermediate_size=64",
    "model.architecture.moe_intermediate_size=32",
    "data.eval_size=60",
    "logging.tensorboard=false",
    "trainer.threads=1",
]
SAMPLED = [
    *("data.solution_column=", "engine.max_model_len=64", "engine.threads=1", "engine.memory=0.1"),
    "evaluation.sampling.max_new_tokens=24",
]


def said(letters: str) -> str:
    return f"<think></think><answer>{letters}</answer>"


def goodness(letters: str) -> int:
    """The truth."""
    return letters.count("a") - letters.count("b")


def badness(letters: str) -> int:
    """What a bad reward model learns: that "b" is good."""
    return letters.count("b")


def write_rows(file: Path, rows: list[dict]) -> Path:
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


def lines(number: int, seed: int) -> list[str]:
    draw = random.Random(seed)
    return ["".join(draw.choice("abcdef") for _ in range(draw.randint(5, 9))) for _ in range(number)]


def questions(folder: Path, number: int = 400) -> Path:
    """Questions with random lines as their answers; every second row is a task of its own."""
    rows = [
        {"question": f"line {i}", "answer": answer, "task": ("rule", "taste")[i % 2]}
        for i, answer in enumerate(lines(number, 0))
    ]
    return write_rows(folder / "questions.jsonl", rows)


def preferences(folder: Path, truth=goodness, number: int = 1200) -> Path:
    """Pairs in the order of a truth, some as chat messages, and the same as completions with labels."""
    draw, rows = random.Random(1), []
    ones = lines(10 * number, 2)
    for one, other in zip(ones[::2], ones[1::2], strict=True):
        if len(rows) < number and truth(one) != truth(other):
            chosen, rejected = sorted((one, other), key=truth, reverse=True)
            row: dict = {"question": f"line {draw.randrange(400)}", "chosen": said(chosen), "rejected": said(rejected)}
            if len(rows) % 3 == 0:
                asked = [{"role": "user", "content": row["question"]}]
                row["chosen"] = [*asked, {"role": "assistant", "content": said(chosen)}]
                row["rejected"] = [{"role": "assistant", "content": said(rejected)}]
            rows.append(row)
    return write_rows(folder / f"{truth.__name__}.jsonl", rows)


def labelled(folder: Path, number: int = 1500) -> Path:
    """Completions that are good where their truth is above 0; half of them are."""
    rows = [
        {"question": f"line {i % 400}", "completion": said(one), "label": goodness(one) > 0}
        for i, one in enumerate(lines(number, 3))
        if goodness(one)
    ]
    return write_rows(folder / "labelled.jsonl", rows)
