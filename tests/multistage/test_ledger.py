"""What a finished stage came to, read from a folder whose numbers are added up by hand; and the row that says so."""

from __future__ import annotations

import json
import os
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from rlkit.distill.writing import write_preferences
from rlkit.errors import UserError
from rlkit.multistage.ledger import ROW_FILE, measure, read_row, start_clock, write_row
from rlkit.multistage.origin import Origin
from rlkit.multistage.stage import Made
from rlkit.watch.preferences import Judgements, write_judgements
from tests.distill.test_pairs import filled
from tests.multistage.written import evaluated, finished, lines, row, shards

WORDS = ["seed=1", "algo.steps=3"]
ORIGIN = Origin(settings={"seed": 1, "algo.steps": 3}, files={"model.path config.json": "sha256:a"})


def test_a_stage_that_trains(tmp_path: Path) -> None:
    """100 + 200 + 300 tokens; the last line, an evaluation, was written after 9.25 seconds."""
    found = measure("rl", "grpo", WORDS, finished(tmp_path / "2-rl"), seconds=1000.0)
    assert found == row(words=tuple(WORDS), before=0.25, after=0.5, tokens=600, seconds=9.25)


def test_a_stage_that_makes_data(tmp_path: Path) -> None:
    """3 + 4 + 1 rows; without any metrics the clock of the pipeline counts."""
    folder = tmp_path / "1-data"
    shards(folder, [3, 4, 1])
    (folder / "dataset" / "README.md").write_text("of 8 rows")
    found = measure("data", "distill_generate", WORDS, Made(folder=folder), seconds=12.5)
    assert (found.rows, found.tokens, found.seconds, found.before, found.after) == (8, 0, 12.5, None, None)


def test_a_data_job_that_kept_nothing_has_zero_rows_and_no_job_has_none(tmp_path: Path) -> None:
    shards(tmp_path / "empty", [0])
    assert measure("data", "distill_generate", [], Made(folder=tmp_path / "empty"), 1.0).rows == 0
    shards(tmp_path / "nothing", [])
    assert measure("data", "distill_generate", [], Made(folder=tmp_path / "nothing"), 1.0).rows is None
    assert measure("rl", "grpo", [], Made(folder=tmp_path / "absent"), 1.0).rows is None


def test_shards_are_counted_where_the_stage_wrote_them(tmp_path: Path) -> None:
    """A model that stands elsewhere does not move the rows."""
    shards(tmp_path / "2-data", [5])
    made = Made(folder=tmp_path / "2-data", origin=tmp_path / "elsewhere")
    assert measure("data", "distill_generate", [], made, 1.0).rows == 5


def test_a_data_job_says_how_much_is_right_and_counts_its_pairs(tmp_path: Path) -> None:
    """Of the 14 answers of `tests.distill.test_pairs` 13 are judged, 4 have the whole reward; each has one token."""
    with closing(filled(tmp_path)) as journal:
        write_preferences(journal, 0.4, tmp_path / "preferences")
    shards(tmp_path, [5])
    found = measure("data", "distill_generate", [], Made(folder=tmp_path), 3.0)
    assert (found.before, found.after, found.rows) == (None, pytest.approx(4 / 13), 3)
    assert (found.tokens, found.seconds) == (14, 3.0)


def test_the_lives_of_a_data_job_are_added_up(tmp_path: Path) -> None:
    """The first works from 100 to 130, the second writes nothing, the third works from 300 to 305, in the log alone."""
    made = Made(folder=tmp_path / "1-data")
    journal = made.folder / "journal.sqlite"
    assert start_clock(made, 100.0) == 0.0
    journal.write_text("")
    os.utime(journal, (130.0, 130.0))
    assert start_clock(made, 200.0) == 30.0
    assert start_clock(made, 300.0) == 30.0
    log = made.folder / "journal.sqlite-wal"
    log.write_text("")
    os.utime(log, (305.0, 305.0))
    assert start_clock(made, 400.0) == 35.0


def test_a_reward_model_is_measured_on_pairs(tmp_path: Path) -> None:
    for name, scores in (("before training", (0.5, 0.0, 0.0, 1.0)), ("after training", (0.5, 0.0, 1.0, 0.0))):
        judged = Judgements(name=name, step=0, scores=scores, lengths=(1, 2, 3, 4), labels=())
        write_judgements(tmp_path, judged)
    found = measure("reward_model", "reward_model", [], Made(folder=tmp_path), 1.0)
    assert (found.before, found.after, found.rows) == (0.5, 1.0, None)


@pytest.mark.parametrize(
    ("accuracies", "before", "after"),
    [([], None, None), ([0.5], None, 0.5), ([0.25, 0.5], 0.25, 0.5), ([0.25, 0.75, 0.5], 0.25, 0.5)],
)
def test_before_and_after_are_the_first_and_the_last(
    tmp_path: Path, accuracies: list[float], before: float | None, after: float | None
) -> None:
    for number, accuracy in enumerate(accuracies):
        evaluated(tmp_path, f"step {number}", accuracy)
    found = measure("rl", "grpo", [], Made(folder=tmp_path), 1.0)
    assert (found.before, found.after) == (before, after)


@pytest.mark.parametrize(
    ("step", "tokens"),
    [
        ({"tokens": 7}, 7),
        ({"tokens": 7, "tok_s": 100.0, "train_tok_s": 50.0, "train_s": 2.0}, 7),
        ({"sample_s": 2.0, "sample_tok_s": 50.0, "train_s": 4.0, "train_tok_s": 25.0}, 200),
        ({"sample_s": 2.0, "sample_tok_s": 50.0, "score_s": 9.0, "sync_s": 1.0, "tok_s": 1e9}, 100),
        ({"sample_s": 3.0, "sample_tok_s": 100 / 3}, 100),
        ({"loss": 0.5}, 0),
    ],
)
def test_tokens_of_a_step(tmp_path: Path, step: dict[str, Any], tokens: int) -> None:
    """As it says itself, or its speeds times their seconds: 50 x 2 + 25 x 4 = 200. A phase without tokens has none."""
    lines(tmp_path, {"stage": "grpo", "step": 1, "elapsed_s": 1.0} | step)
    assert measure("rl", "grpo", [], Made(folder=tmp_path), 1.0).tokens == tokens


def test_an_evaluation_is_no_step(tmp_path: Path) -> None:
    lines(
        tmp_path,
        {"stage": "sft", "step": 1, "elapsed_s": 1.0, "tokens": 10},
        {"stage": "eval", "step": 1, "elapsed_s": 2.0, "tokens": 1000},
    )
    found = measure("base", "sft", [], Made(folder=tmp_path), 99.0)
    assert (found.tokens, found.seconds) == (10, 2.0)


def test_a_torn_last_line_is_not_counted(tmp_path: Path) -> None:
    lines(tmp_path, {"stage": "sft", "step": 1, "elapsed_s": 1.0, "tokens": 10})
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"stage": "sft", "step": 2, "tok')
    assert measure("base", "sft", [], Made(folder=tmp_path), 99.0).tokens == 10


def test_a_row_comes_back_as_it_was(tmp_path: Path) -> None:
    made = Made(folder=tmp_path / "2-rl")
    assert read_row(made, ORIGIN) is None, "nothing is done"
    written = row(words=tuple(WORDS), before=0.0, after=1 / 3, rows=0, tokens=10**12, seconds=0.1)
    write_row(made, written, ORIGIN)
    assert read_row(made, ORIGIN) == written
    assert set(json.loads((made.folder / ROW_FILE).read_text())) == {
        *("stage", "recipe", "words", "before", "after", "rows", "tokens", "seconds", "settings", "files"),
    }
    assert [file.name for file in made.folder.iterdir()] == [ROW_FILE], "nothing half-written is left"


@pytest.mark.parametrize(
    ("settings", "other"),
    [
        ({"seed": 1}, "algo.steps was 3, now None"),
        ({"seed": 2, "algo.steps": 3}, "seed was 1, now 2"),
        ({"seed": 1, "algo.steps": 3, "data.source": "math"}, "data.source was None, now 'math'"),
        ({}, "algo.steps was 3, now None, seed was 1, now None"),
    ],
)
def test_a_stage_that_was_done_with_other_settings(tmp_path: Path, settings: dict[str, Any], other: str) -> None:
    made = Made(folder=tmp_path / "2-rl")
    write_row(made, row(words=tuple(WORDS)), ORIGIN)
    with pytest.raises(UserError) as refused:
        read_row(made, Origin(settings=settings, files=ORIGIN.files))
    assert str(refused.value) == (
        f"{made.folder} is done, but with other settings ({other}); use another output_dir, or remove that folder and "
        "those behind it"
    )


@pytest.mark.parametrize(
    ("files", "other"),
    [
        ({"model.path config.json": "sha256:b"}, "model.path config.json is changed"),
        ({}, "model.path config.json is gone"),
        (dict(ORIGIN.files) | {"data.source a": "x"}, "data.source a is new"),
        (
            {f"data.source {name}": "x" for name in "abcd"},
            "model.path config.json is gone, data.source a is new, data.source b is new, data.source c is new, "
            "and 1 more",
        ),
    ],
)
def test_a_stage_that_was_made_from_other_files(tmp_path: Path, files: dict[str, str], other: str) -> None:
    made = Made(folder=tmp_path / "2-rl")
    write_row(made, row(words=tuple(WORDS)), ORIGIN)
    with pytest.raises(UserError) as refused:
        read_row(made, Origin(settings=ORIGIN.settings, files=files))
    assert str(refused.value) == (
        f"{made.folder} is done, but was made from other files ({other}); put them back, or remove that folder and "
        "those behind it, or use another output_dir"
    )


def test_a_row_that_does_not_say_what_it_was_made_from(tmp_path: Path) -> None:
    made = Made(folder=tmp_path)
    write_row(made, row(), ORIGIN)
    saved = json.loads((tmp_path / ROW_FILE).read_text())
    (tmp_path / ROW_FILE).write_text(json.dumps({key: saved[key] for key in saved if key != "files"}))
    with pytest.raises(UserError, match="does not say what the stage was made from; use another output_dir"):
        read_row(made, ORIGIN)
