"""From a journal that is complete to the folder of the dataset, which appears whole or not at all."""

from __future__ import annotations

import os
import shutil
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from rewards.base import thought_is_open
from rlkit.config import DistillRun
from rlkit.distill.card import NONE, card
from rlkit.distill.choosing import Chosen, choose_answers
from rlkit.distill.decontamination import ExamQuestions
from rlkit.distill.journal import Journal
from rlkit.distill.pairs import PAIRS, SCHEMA, pairs
from rlkit.distill.questions import AskedAs
from rlkit.distill.shards import row_of, write_shards

CARD = "README.md"


def write_dataset(
    journal: Journal,
    tests: ExamQuestions,
    asked_as: AskedAs,
    cfg: DistillRun,
    folder: Path,
    *,
    settings: Mapping[str, Any],
    inputs: Mapping[str, str],
    preferences: Mapping[str, int] = NONE,
) -> Chosen:
    """Chooses among all answers and writes shards and card; returns what it chose.

    `preferences` are the counts of `write_preferences`, for the card.
    The files depend on the journal and the arguments alone. A folder that is there is replaced when the new one is
    complete.
    """
    chosen = choose_answers(journal, tests, cfg.cleaning, cfg.selection, cfg.seed)
    unfinished = folder.with_name(f"{folder.name}.tmp")
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir(parents=True)
    rows = _rows(journal, chosen, asked_as, cfg)
    write_shards(unfinished, rows, len(chosen), cfg.selection.shard_rows)
    (unfinished / CARD).write_text(card(journal, chosen, cfg, settings, inputs, preferences), encoding="utf-8")
    _replace(folder, unfinished)
    return chosen


def write_preferences(journal: Journal, margin: float, folder: Path) -> dict[str, int]:
    """Writes what `pairs` finds as one parquet file; returns how many pairs it has and what was left out, by label.

    A folder is replaced as above.
    """
    unfinished = folder.with_name(f"{folder.name}.tmp")
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir(parents=True)
    left_out = Counter[str]()
    found = list(pairs(journal, margin, left_out))
    pq.write_table(pa.Table.from_pylist(found, SCHEMA), unfinished / "train-00000-of-00001.parquet", compression="zstd")
    _replace(folder, unfinished)
    return {**{label: count for label, count in sorted(left_out.items()) if count}, PAIRS: len(found)}


def _rows(journal: Journal, chosen: Chosen, asked_as: AskedAs, cfg: DistillRun) -> Iterator[dict[str, Any]]:
    opened = None
    for row, sample, rate in chosen:
        question = journal.question(row)
        if opened is None:  # a template opens the thought of every prompt, or of none
            opened = thought_is_open(asked_as([question])[0].text)
        told = journal.told(row, sample)
        yield row_of(question, told, rate, teacher=cfg.teacher_name, prefix=cfg.content_prefix, opened=opened)


def _replace(folder: Path, complete: Path) -> None:
    """Puts a folder in the place of another; a kill in between leaves none there, and the next start writes it."""
    for file in [*complete.iterdir(), complete]:
        descriptor = os.open(file, os.O_RDONLY)
        os.fsync(descriptor)
        os.close(descriptor)
    old = folder.with_name(f"{folder.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    if folder.exists():
        folder.rename(old)
    complete.rename(folder)
    shutil.rmtree(old, ignore_errors=True)
