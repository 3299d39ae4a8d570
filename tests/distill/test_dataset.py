"""The dataset: what its rows hold, who can read them, what its card says; the same job gives the same bytes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import Counter
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import yaml

from rlkit.config import DistillRun
from rlkit.config.compose import to_yaml
from rlkit.data.prompts import to_demonstrations
from rlkit.data.rows import read_rows
from rlkit.data.tokenizer import train_tokenizer
from rlkit.distill.card import filters
from rlkit.distill.choosing import Chosen, balanced, choose_answers
from rlkit.distill.decontamination import ExamQuestions
from rlkit.distill.journal import Answered, Journal, Told
from rlkit.distill.questions import AskedAs
from rlkit.distill.shards import COLUMNS, row_of, thought_in, write_shards
from rlkit.distill.writing import write_dataset
from rlkit.types import Prompt, Score
from tests.distill.parts import FakeReward, FakeTeacher, config, journal_of, prompts_of, rows
from tests.distill.test_generate import run

NO_EXAM = ExamQuestions([], 0.7)


def made(folder: Path, *words: str, asked_as: AskedAs | None = None) -> tuple[Path, Journal, Chosen, DistillRun]:
    """A dataset of the fake teacher's answers."""
    cfg = config(folder, *words)
    journal = journal_of(cfg)
    run(journal, FakeTeacher(True), FakeReward(), cfg)
    place, settings = folder / "dataset", yaml.safe_load(to_yaml(cfg))
    inputs = {"data.source q.jsonl": "sha256:12"}
    asked_as = asked_as or prompts_of(cfg)
    return place, journal, write_dataset(journal, NO_EXAM, asked_as, cfg, place, settings=settings, inputs=inputs), cfg


def table(folder: Path) -> list[dict[str, Any]]:
    """All rows of a dataset."""
    return [row for file in sorted(folder.glob("*.parquet")) for row in pq.read_table(file).to_pylist()]


def test_rows_hold_question_answer_and_where_they_come_from(tmp_path: Path) -> None:
    folder, journal, chosen, _ = made(tmp_path, "data.instruction=Think.")
    with closing(journal):
        found = table(folder)
        assert [row["id"] for row in found] == [f"q/train/{i}" for i in range(10)]
        first, source = found[1], rows()[1]
        assert list(first) == list(COLUMNS)
        assert (first["question"], first["answer"]) == (source.question, "2")
        assert json.loads(first["source_row"]) == source.meta
        assert first["response"] == f"<think>{first['solution']}</think><answer>2</answer>"
        user, assistant = first["messages"]
        assert user == {"role": "user", "content": f"Think.\n{source.question}"}
        assert assistant == {"role": "assistant", "content": first["response"]}
        assert first["response_ids"] == [1, first["sample"]] and first["seed"] == first["sample"]
        assert first["pass_rate"] == pytest.approx(2 / 3)
        assert (first["reward"], first["reward_reason"]) == (1.0, "correct")
        assert first["reward_parts"] == [{"name": "mine", "value": 1.0}]
        assert first["teacher"] == "tiny" and first["num_tokens"] == len(first["response"])
        assert len(chosen) == 10
        # of two right answers the one with fewer tokens, which has the lower number
        right = {row: [s for s in range(3) if (row + s) % 3] for row in range(10)}
        assert [row["sample"] for row in found] == [right[row][0] for row in range(10)]


def test_shards_have_a_fixed_number_of_rows(tmp_path: Path) -> None:
    folder, journal, _, _ = made(tmp_path, "selection.shard_rows=4")
    journal.close()
    names = [f"train-{i:05}-of-00003.parquet" for i in range(3)]
    assert sorted(file.name for file in folder.iterdir()) == ["README.md", *names]
    assert [pq.read_metadata(folder / name).num_rows for name in names] == [4, 4, 2]


def test_the_same_answers_give_the_same_bytes(tmp_path: Path) -> None:
    first, *_ = made(tmp_path / "a")
    second, journal, _, cfg = made(tmp_path / "b")
    for file in first.iterdir():
        assert file.read_bytes() == (second / file.name).read_bytes(), file.name
    with closing(journal):  # written again it takes the place of the old one, and nothing of that stays
        (second / "left.parquet").write_text("old")
        settings = yaml.safe_load(to_yaml(cfg))
        write_dataset(journal, NO_EXAM, prompts_of(cfg), cfg, second, settings=settings, inputs={})
    assert sorted(file.name for file in second.iterdir()) == sorted(file.name for file in first.iterdir())
    assert sorted(path.name for path in second.parent.iterdir() if path.is_dir()) == ["dataset"]


def test_the_card_counts_every_filter_and_names_settings_and_versions(tmp_path: Path) -> None:
    folder, journal, chosen, _ = made(tmp_path, "selection.max_tokens=45", "selection.language=en")
    with closing(journal):
        counted = dict(filters(journal, chosen))
    text = (folder / "README.md").read_text()
    assert (
        counted["answers"]
        == 30
        == sum(n for label, n in counted.items() if label.startswith("answers left")) + len(table(folder))
    )
    assert counted["answers left out: wrong"] == 10 and counted["answers left out: too long"] > 0
    for label, count in counted.items():
        assert f"| {label} | {count:,} |" in text
    front = yaml.safe_load(text.split("---")[1])
    assert front["size_categories"] == ["n<1K"] and front["language"] == ["en"]
    shown = yaml.safe_load(text.split("```yaml")[1].split("```")[0])
    assert shown["sampling"]["temperature"] == 0.6 and shown["selection"]["max_tokens"] == 45
    assert "model" not in shown and "engine" not in shown, "a server has neither"
    assert "concurrency" not in shown["teacher"] and str(tmp_path) not in text
    assert "- `data.source q.jsonl`: sha256:12" in text and "rlkit-posttrain 0" in text
    assert all(f"| `{name}` |" in text for name in COLUMNS)


def test_a_prompt_that_opens_the_thought_is_part_of_the_message(tmp_path: Path) -> None:
    def opening(questions: Any) -> list[Prompt]:
        return [Prompt(id=q.id, tokens=(1,), text=f"{q.question}<think>\n", meta=q.meta) for q in questions]

    folder, journal, _, _ = made(tmp_path, asked_as=opening)
    journal.close()
    row = table(folder)[0]
    assert row["messages"][1]["content"] == "<think>" + row["response"]


def test_an_empty_dataset_has_its_columns(tmp_path: Path) -> None:
    write_shards(tmp_path, [], 0, 10)
    read = pq.read_table(tmp_path / "train-00000-of-00001.parquet")
    assert read.num_rows == 0 and read.column_names == list(COLUMNS)


def test_sft_reads_it_and_shows_the_very_text_of_the_teacher(tmp_path: Path) -> None:
    folder, journal, _, cfg = made(tmp_path)
    journal.close()
    data = replace(cfg.data, source=str(folder), solution_column="solution", eval_size=2, train_size=-1)
    split = read_rows(data)
    assert (len(split.train), len(split.held_out)) == (8, 2)
    texts = [f"{row.question} {row.solution} {row.answer}" for row in split.train]
    tokenizer = train_tokenizer(texts, 400)
    shown = to_demonstrations(split.train, tokenizer, "", 1.0, 0)
    responses = {row["question"]: row["response"] for row in table(folder)}
    for row, demonstration in zip(split.train, shown, strict=True):
        ((first, end),) = demonstration.trained
        text = tokenizer.decode(demonstration.tokens[first:end], skip_special_tokens=True)
        assert demonstration.id == row.id and text == responses[row.question]


LOADED = """
import sys, datasets
folder = sys.argv[1]
for found in (datasets.load_dataset(folder), datasets.load_dataset("parquet", data_dir=folder)):
    row = found["train"][3]
    print(len(found["train"]), row["id"], row["messages"][1]["role"], row["reward_parts"], row["response_ids"])
"""


@pytest.mark.slow
def test_load_dataset_reads_the_folder_and_its_files(tmp_path: Path) -> None:
    folder, journal, _, _ = made(tmp_path, "selection.shard_rows=4")
    journal.close()
    env = os.environ | {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "home")}
    command = [sys.executable, "-c", LOADED, str(folder)]
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    expected = "10 q/train/3 assistant [{'name': 'mine', 'value': 1.0}] [3, 1]"
    assert done.stdout.splitlines() == [expected] * 2, done.stderr


def test_contaminated_answers_and_other_languages_are_left_out(tmp_path: Path) -> None:
    cfg = config(tmp_path, "selection.language=en", "samples=1")
    exam = ExamQuestions([("exam/1", "how many legs have all of the cats in the old house")], 0.7)
    texts = {
        0: "<think>I know: how many legs have all of the cats in the old house</think>",
        1: "<think>\u5341\u4e8c\u52a0\u4e09\u7b49\u4e8e\u5341\u4e94</think>",
        2: "<think>add both numbers</think>",
    }
    with closing(journal_of(cfg, rows(3))) as journal:
        for row, text in texts.items():
            journal.record(Answered(row=row, sample=0, seed=0, text=text, tokens=(), num_tokens=5, finish="stop"))
            journal.judge(row, [Score(value=1.0, reason="")])
        chosen = choose_answers(journal, exam, cfg.cleaning, cfg.selection, 0)
    assert list(chosen.rows) == [2]
    assert +chosen.left_out == Counter({"holds a test question": 1, "other language": 1})


def test_balance_cuts_the_quarter_that_has_most() -> None:
    chosen = Chosen()
    for row in range(120):
        for sample in range(2):  # two answers to each question: a question goes whole
            chosen.rows.append(row)
            chosen.samples.append(sample)
            chosen.rates.append(1.0 if row < 100 else 0.5)
    cut = balanced(chosen, 0.5, seed=0)
    assert cut.problems_by_bin == [0, 20, 0, 20]
    assert len(cut) == 80 and cut.left_out == Counter({"too many of its difficulty": 160})
    assert Counter(cut.rows) == dict.fromkeys(cut.rows, 2)
    assert list(cut.rows) == sorted(cut.rows)
    assert balanced(chosen, 0.5, seed=0).rows == cut.rows != balanced(chosen, 0.5, seed=1).rows
    assert balanced(chosen, 1.0, seed=0).problems_by_bin == [0, 20, 0, 100]


@pytest.mark.parametrize(
    ("response", "thought"),
    [
        ("<think>\n3+4 \n</think>\n7", "\n3+4 \n"),
        ("3+4</think>7", "3+4"),  # the prompt has opened it
        ("<think>a</think>b</think>c", "a</think>b"),
        ("<think>never closed", "<think>never closed"),
        ("", ""),
    ],
)
def test_the_thought_in_a_response(response: str, thought: str) -> None:
    assert thought_in(response) == thought


def test_a_thought_without_marks_is_the_whole_response(tmp_path: Path) -> None:
    with closing(journal_of(config(tmp_path))) as journal:
        question = journal.question(0)
    answered = Answered(row=0, sample=0, seed=1, text="It is 0.", tokens=(), num_tokens=3, finish="stop")
    told = Told(answered=answered, value=1.0, reason="", parts={})
    row = row_of(question, told, 1.0, teacher="t", prefix="", opened=False)
    assert row["solution"] == row["response"] == row["messages"][1]["content"] == "It is 0."
    assert row["response_ids"] == () and row["reward_parts"] == []
