from __future__ import annotations

import gzip
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest

from rewards.extract import last_boxed
from rlkit.config import DataConfig
from rlkit.data.rows import Row, Split, read_rows
from rlkit.data.sources import GSM8K_FOLDER
from rlkit.errors import UserError

Config = Callable[..., DataConfig]
SEVEN = [{"question": f"{i} + {i}", "answer": 2 * i, "note": f"n{i}"} for i in range(7)]


def write(path: Path, rows: list, encoding: str = "utf-8") -> str:
    path.write_text("\n".join(json.dumps(row) for row in rows), encoding=encoding)
    return str(path)


def disjoint(split: Split) -> bool:
    questions = [" ".join(row.question.split()) for row in split.train + split.held_out]
    return len(set(questions)) == len(questions)


def test_reasoning_gym_is_cut_and_the_held_out_rows_do_not_depend_on_train_size(config: Config) -> None:
    small, large = read_rows(config()), read_rows(config(train_size=400))
    assert (len(small.train), len(small.held_out), len(large.train)) == (40, 8, 400)
    assert disjoint(small) and disjoint(large)
    assert small.held_out == large.held_out and small.train == large.train[:40]
    assert read_rows(config(seed=1)).held_out != small.held_out
    row = small.train[0]
    assert (row.meta["question"], row.meta["answer"], row.meta["task"]) == (row.question, row.answer, "chain_sum")


def test_sizes_are_split_evenly_over_tasks(config: Config) -> None:
    split = read_rows(config(tasks={"chain_sum": {}, "gcd": {}}, train_size=20, eval_size=6))
    for rows in (split.train, split.held_out):
        assert sum(row.meta["task"] == "gcd" for row in rows) == len(rows) / 2


def test_gsm8k_ships_whole_with_its_own_test_split(config: Config) -> None:
    split = read_rows(config(source="gsm8k", train_size=-1, eval_size=1319))
    assert (len(split.train), len(split.held_out)) == (7473, 1319) and disjoint(split)
    assert {row.id.split("/")[1] for row in split.train} == {"train"}
    assert {row.id.split("/")[1] for row in split.held_out} == {"test"}
    for row in split.train + split.held_out:
        assert re.fullmatch(r"-?[0-9]+(\.[0-9]+)?", row.answer) and row.meta["answer"] == row.answer
        assert row.solution and "<<" not in row.solution and "####" not in row.solution
    natalia = next(row for row in split.train if row.question.startswith("Natalia sold clips"))
    assert natalia.id == "gsm8k/train/0" and natalia.answer == "72"
    assert natalia.solution == (
        "Natalia sold 48/2 = 24 clips in May.\nNatalia sold 48+24 = 72 clips altogether in April and May."
    )
    assert "MIT License" in (GSM8K_FOLDER / "LICENSE").read_text()


def test_gsm8k_answers_agree_with_the_calculator_marks() -> None:
    """The last `<<expression=result>>` of a solution is nearly always its answer: a second reading of the gold."""
    agree = total = 0
    with gzip.open(GSM8K_FOLDER / "test.jsonl.gz", "rt") as lines:
        for line in lines:
            text = json.loads(line)["answer"]
            if marks := re.findall(r"=([0-9.]+)>>", text):
                total += 1
                agree += float(marks[-1]) == float(text.rpartition("####")[2].replace(",", ""))
    assert agree / total > 0.9


@pytest.mark.parametrize("ending", ["jsonl", "json", "parquet", "jsonl.gz", "json.gz", "parquet.gz"])
def test_a_local_file_in_every_format_gives_the_same_rows(tmp_path: Path, config: Config, ending: str) -> None:
    path = tmp_path / f"mine.{ending}"
    if ending.startswith("parquet"):
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(SEVEN), path)
    else:
        text = json.dumps(SEVEN, indent=1) if ending.startswith("json.") or ending == "json" else ""
        path.write_text(text or "\n".join(map(json.dumps, SEVEN)) + "\n\n")
    if ending.endswith(".gz"):
        path.write_bytes(gzip.compress(path.read_bytes(), mtime=0))
    split = read_rows(config(source=str(path), train_size=-1, eval_size=2))
    assert (len(split.train), len(split.held_out)) == (5, 2)
    rows = sorted(split.train + split.held_out, key=lambda row: row.id)
    assert rows[3] == Row(
        id="mine/train/3",
        question="3 + 3",
        answer="6",
        solution="",
        meta={"question": "3 + 3", "answer": "6", "note": "n3"},
    )


def test_columns_can_have_any_name_and_answers_any_type(tmp_path: Path, config: Config) -> None:
    rows = [{"q": "one", "gold": {"b": [1, None]}, "why": "since"}, {"q": "two", "gold": True, "why": "so"}]
    source = write(tmp_path / "a.jsonl", rows)
    columns = {"prompt_column": "q", "answer_column": "gold", "solution_column": "why"}
    split = read_rows(config(source=source, train_size=1, eval_size=1, **columns))
    by_question = {row.question: row for row in split.train + split.held_out}
    assert (by_question["one"].answer, by_question["one"].solution) == ('{"b": [1, null]}', "since")
    assert by_question["one"].meta["gold"] == {"b": [1, None]} and by_question["two"].answer == "true"
    split = read_rows(config(source=source, train_size=1, eval_size=1, **(columns | {"answer_column": ""})))
    assert split.train[0].answer == "" and "answer" not in split.train[0].meta


def test_a_prompt_may_be_a_template_of_columns(tmp_path: Path, config: Config) -> None:
    rows = [{"text": "Add.", "test_list": ["f(1) == 2", "f(2) == 3"], "answer": ""}] + [
        {"text": f"{i}", "test_list": [], "answer": ""} for i in range(2)
    ]
    columns = {"prompt_column": "{text} Tests:\n{test_list} {{end}}", "train_size": -1, "eval_size": 1}
    split = read_rows(config(source=write(tmp_path / "a.jsonl", rows), **columns))
    questions = {row.question: row for row in split.train + split.held_out}
    assert questions.keys() == {"Add. Tests:\nf(1) == 2\nf(2) == 3 {end}", "0 Tests:\n {end}", "1 Tests:\n {end}"}
    assert questions["Add. Tests:\nf(1) == 2\nf(2) == 3 {end}"].meta["test_list"] == ["f(1) == 2", "f(2) == 3"]


def test_an_answer_and_a_solution_may_be_templates(tmp_path: Path, config: Config) -> None:
    """OlympiadBench has golds in lists of one, which as JSON are no number that a reward could read."""
    rows = [
        {"question": "a", "final_answer": ["5"], "unit": None, "solution": ["First.", "Then \\boxed{6}."]},
        {"question": "b", "final_answer": ["$\\frac12$", "x"], "unit": None, "solution": ["Done."]},
    ]
    source = write(tmp_path / "a.jsonl", rows)
    columns = {"answer_column": "{final_answer[0]}", "solution_column": "So: {solution}", "train_size": 1}
    split = read_rows(config(source=source, eval_size=1, **columns))
    by_question = {row.question: row for row in split.train + split.held_out}
    assert (by_question["a"].answer, by_question["b"].answer) == ("5", "$\\frac12$")
    assert by_question["a"].meta["answer"] == "5" and by_question["a"].meta["final_answer"] == ["5"]
    assert by_question["a"].solution == "So: First.\nThen \\boxed{6}."
    by_name = read_rows(config(source=source, eval_size=1, **(columns | {"answer_column": "final_answer"})))
    assert {row.answer for row in by_name.train + by_name.held_out} == {'["5"]', '["$\\\\frac12$", "x"]'}


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        (
            {"answer_column": "{gold[0]}"},
            r"data\.answer_column='\{gold\[0\]\}': row .* no value in a column 'gold', only in",
        ),
        ({"answer_column": "{unit}"}, r"data\.answer_column='\{unit\}': row .* no value in a column 'unit'"),
        ({"answer_column": "{answer[1]}"}, r"data\.answer_column=.* cannot be filled with row .*out of range"),
        ({"answer_column": "{"}, r"data\.answer_column='\{' cannot be filled"),
        ({"solution_column": "{why}"}, r"data\.solution_column='\{why\}': row .* no value in a column 'why'"),
    ],
)
def test_templates_that_cannot_be_filled_name_their_key(
    columns: dict[str, str], message: str, tmp_path: Path, config: Config
) -> None:
    source = write(tmp_path / "a.jsonl", [{"question": f"{i}", "answer": ["5"], "unit": None} for i in range(2)])
    with pytest.raises(ValueError, match=message):
        read_rows(config(source=source, train_size=1, eval_size=1, **columns))


def test_a_column_called_question_stays_as_it_is(tmp_path: Path, config: Config) -> None:
    rows = [{"question": f"{i} + 1", "hint": "add", "answer": i + 1} for i in range(2)]
    columns = {"prompt_column": "{question} ({hint})", "train_size": 1, "eval_size": 1}
    split = read_rows(config(source=write(tmp_path / "a.jsonl", rows), **columns))
    assert {(row.question, row.meta["question"]) for row in split.train + split.held_out} == {
        ("0 + 1 (add)", "0 + 1"),
        ("1 + 1 (add)", "1 + 1"),
    }


def test_a_question_is_held_out_or_trained_on_never_both_and_never_twice(tmp_path: Path, config: Config) -> None:
    train = write(tmp_path / "train.jsonl", [*SEVEN, *SEVEN, {"question": "1 + 1 \r\n", "answer": 2}])
    held_out = write(tmp_path / "test.jsonl", [SEVEN[1], SEVEN[1], SEVEN[4], {"question": "new", "answer": 0}])
    split = read_rows(config(source=train, eval_source=held_out, train_size=-1, eval_size=3))
    assert sorted(row.question for row in split.held_out) == ["1 + 1", "4 + 4", "new"]
    assert sorted(row.question for row in split.train) == ["0 + 0", "2 + 2", "3 + 3", "5 + 5", "6 + 6"]
    assert split.repeated == 1 + 2 * 2 + 5 + 1, "one of the held-out rows, two twice held out, five twice, one blank"
    again = read_rows(config(source=train, eval_source=train, train_size=3, eval_size=4))
    assert disjoint(again) and len(again.train) == 3


@pytest.mark.parametrize(
    "questions",
    [
        ["if x:\n    a()\n    b()", "if x:\n    a()\nb()"],
        ["a b", "a\nb"],
        ["one\n\ntwo", "one\ntwo"],
        ["  f(x)", "f(x)"],
        ["\tx", "    x"],
        ["| a |\n| b |", "| a | | b |"],
        ["3 + 4", "3  + 4"],
    ],
)
def test_rows_that_differ_in_line_breaks_or_indentation_are_kept(
    questions: list[str], tmp_path: Path, config: Config
) -> None:
    source = write(tmp_path / "a.jsonl", [{"question": question, "answer": 1} for question in questions])
    split = read_rows(config(source=source, train_size=-1, eval_size=1))
    assert {row.question for row in split.train + split.held_out} == set(questions)
    assert split.repeated == 0


@pytest.mark.parametrize("again", ["x\ny", "x\r\ny", "x  \ny", "x\ny\n", "x\ny\n\n  "])
def test_repeated_questions_are_counted(again: str, tmp_path: Path, config: Config) -> None:
    source = write(tmp_path / "a.jsonl", [{"question": q, "answer": 1} for q in ("x\ny", again, "z", again)])
    split = read_rows(config(source=source, train_size=-1, eval_size=1))
    assert (len(split.train), split.repeated) == (1, 2)


def test_held_out_rows_may_come_from_another_kind_of_source(config: Config) -> None:
    split = read_rows(config(eval_source="gsm8k", eval_size=5))
    assert {row.id.split("/")[0] for row in split.train} == {"chain_sum"}
    assert all(row.id.startswith("gsm8k/test/") for row in split.held_out)


def test_json_text_may_hold_odd_line_ends(tmp_path: Path, config: Config) -> None:
    (tmp_path / "a.jsonl").write_text(
        '{"question": "a\u2028b\x85c", "answer": 1}\r\n{"question": "d", "answer": 2}\r\n'
    )
    split = read_rows(config(source=str(tmp_path / "a.jsonl"), train_size=1, eval_size=1))
    assert {row.question for row in split.train + split.held_out} == {"a\u2028b\x85c", "d"}


@pytest.mark.parametrize("ending", ["jsonl", "json", "jsonl.gz", "json.gz"])
@pytest.mark.parametrize("mark", ["\ufeff", "\ufeff\n", "\ufeff  "])
def test_a_byte_order_mark_is_no_part_of_a_file(ending: str, mark: str, tmp_path: Path, config: Config) -> None:
    text = json.dumps(SEVEN) if ending.startswith("json.") or ending == "json" else "\r\n".join(map(json.dumps, SEVEN))
    content = (mark + text).encode()
    (tmp_path / f"a.{ending}").write_bytes(gzip.compress(content) if ending.endswith("gz") else content)
    split = read_rows(config(source=str(tmp_path / f"a.{ending}"), train_size=-1, eval_size=2))
    assert len(split.train) == 5


def test_a_byte_order_mark_inside_a_file_that_was_joined_from_others(tmp_path: Path, config: Config) -> None:
    part = "\ufeff" + json.dumps(SEVEN[0]) + "\n"
    (tmp_path / "a.jsonl").write_text(part + "\ufeff" + json.dumps(SEVEN[1]) + "\n\ufeff\n")
    split = read_rows(config(source=str(tmp_path / "a.jsonl"), train_size=1, eval_size=1))
    assert {row.question for row in split.train + split.held_out} == {"0 + 0", "1 + 1"}


@pytest.mark.parametrize(
    ("row", "words"),
    [
        (
            {"question": "half \ud83d", "answer": 1},
            r"row 'a/train/0' holds half .* \('\\ud83d' at place 5\) in 'question'",
        ),
        ({"question": "\udc00", "answer": 1}, r"in 'question' \(data\.prompt_column\); repair the text or remove"),
        ({"question": "x", "answer": "\ud83d"}, r"in 'answer' \(data\.answer_column\)"),
        ({"question": "x", "answer": 1, "why": "a\udfffb"}, r"in 'why' \(data\.solution_column\)"),
        ({"question": "x", "answer": {"a": ["\ud800"]}}, r"in 'answer'"),
    ],
)
def test_half_a_character_is_named(row: dict, words: str, tmp_path: Path, config: Config) -> None:
    """JSON escapes can hold it, and tokenizers fail on it without a word about the row."""
    source = write(tmp_path / "a.jsonl", [{"why": "so"} | row])
    with pytest.raises(ValueError, match=words):
        read_rows(config(source=source, train_size=1, eval_size=1, solution_column="why"))
    with pytest.raises(ValueError, match=words.replace("'question'", "'{question}'")):
        read_rows(config(source=source, train_size=1, eval_size=1, solution_column="why", prompt_column="{question}"))


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("gone.jsonl", None, r"no such file \(looked at .*gone\.jsonl\)"),
        ("a.jsonl", b'{"question": "x"}\n{"quest', r"line 2 is not JSON"),
        ("a.jsonl", b'{"question": "x"}\n17', r"line 2 is not an object"),
        ("a.json", b'[{"question": "x"}, "y"]', r"entry 2 is not an object"),
        ("a.json", b"[1, 2", r"cannot be read"),
        ("a.json", b'{\n  "samples": []\n}', r"it is one JSON object; give a list of rows, or one row a line"),
        ("a.jsonl", b"\xff\xfe", r"cannot be read: 'utf-8'"),
        ("a.jsonl", b"", r"has no rows"),
        ("a.jsonl.gz", b"plain", r"cannot be read: Not a gzipped file"),
        (
            "a.jsonl.gz",
            gzip.compress(b'{"question": "x"}' * 99, mtime=0)[:40],
            r"cannot be read: Compressed file ended",
        ),
        ("a.parquet", b"PAR1 no", r"cannot be read"),
    ],
)
def test_bad_files_are_named(tmp_path: Path, config: Config, name: str, content: bytes | None, message: str) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=rf"(?s)data\.source.*{message}"):
        read_rows(config(source=str(tmp_path / name)))
    good = write(tmp_path / "good.jsonl", SEVEN)
    with pytest.raises(ValueError, match=rf"(?s)data\.eval_source.*{message}"):
        read_rows(config(source=good, eval_source=str(tmp_path / name), train_size=1))


@pytest.mark.parametrize(
    ("rows", "fields", "message"),
    [
        (SEVEN, {"prompt_column": "prompt"}, r"data\.prompt_column='prompt': .*only question, answer, note; set"),
        (
            SEVEN,
            {"prompt_column": "{q}"},
            r"data\.prompt_column='{q}': .*no value in a column 'q', only in question, ans",
        ),
        (SEVEN, {"prompt_column": "{question"}, r"data\.prompt_column='{question' cannot be filled .*: expected '}'"),
        (
            SEVEN,
            {"prompt_column": "{note[x]}"},
            r"data\.prompt_column='{note\[x\]}' cannot be filled .*the cell is text",
        ),
        (SEVEN, {"prompt_column": "{}"}, r"data\.prompt_column='{}' cannot be filled .*between single braces"),
        (SEVEN, {"answer_column": "gold"}, r"data\.answer_column='gold': .*only question, answer, note; set"),
        (SEVEN, {"solution_column": "why"}, r"data\.solution_column='why'"),
        ([{"question": "x", "answer": None}] * 9, {}, r"no value in column 'answer' \(data\.answer_column\)"),
        ([{"question": " ", "answer": 1}] * 9, {}, r"empty 'question' \(data\.prompt_column\)"),
        ([{"question": ["x"], "answer": 1}] * 9, {}, r"data\.prompt_column='question': .*a list, not text"),
        (SEVEN, {"train_size": 6}, r"data\.train_size=6: only 5 distinct rows"),
        (SEVEN, {"eval_size": 8}, r"data\.eval_size=8: only 7 distinct rows"),
        (SEVEN, {"eval_size": 7, "train_size": -1}, r"data\.train_size=-1: only 0 distinct rows"),
        ([SEVEN[0]] * 50, {"train_size": 1, "eval_size": 1}, r"data\.train_size=1: only 0 distinct rows"),
    ],
)
def test_bad_rows_are_named(tmp_path: Path, config: Config, rows: list, fields: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read_rows(config(**({"source": write(tmp_path / "a.jsonl", rows), "train_size": 5, "eval_size": 2} | fields)))


def test_unknown_sources_and_endless_sizes_are_refused(config: Config) -> None:
    with pytest.raises(ValueError, match=r"data\.source='gsm9k': not a data source; use one of reasoning_gym, gsm8k"):
        read_rows(config(source="gsm9k"))
    with pytest.raises(ValueError, match=r"data\.train_size=-1: reasoning_gym has no end"):
        read_rows(config(train_size=-1))
    with pytest.raises(ValueError, match=r"data\.eval_size=2000: only 1319 distinct rows"):
        read_rows(config(source="gsm8k", eval_size=2000))


def test_last_boxed_equals_the_published_answers_of_math500(shared: Path) -> None:
    with gzip.open(shared / "math500" / "test.jsonl.gz", "rt") as lines:
        rows = [json.loads(line) for line in lines]
    assert len(rows) == 500
    assert [last_boxed(row["solution"]) for row in rows] == [row["answer"] for row in rows]


def test_math_files_without_an_answer_column(shared: Path, config: Config) -> None:
    split = read_rows(
        config(
            source=str(shared / "math_train4500" / "train.jsonl.gz"),
            eval_source=str(shared / "math500" / "test.jsonl.gz"),
            prompt_column="problem",
            solution_column="solution",
            train_size=-1,
            eval_size=500,
        )
    )
    assert (len(split.train), len(split.held_out)) == (4500, 500) and disjoint(split)
    assert all(row.answer and row.meta["answer"] == row.answer for row in split.train)


@pytest.mark.slow
def test_hub_ids_go_through_datasets(tmp_path: Path) -> None:
    """`datasets` prefers a folder of that name to the hub, so its real loader runs offline."""
    for name, rows in (("train", SEVEN), ("test", [SEVEN[0], {"question": "new", "answer": 1, "note": ""}])):
        (tmp_path / "owner" / "both").mkdir(parents=True, exist_ok=True)
        write(tmp_path / "owner" / "both" / f"{name}.jsonl", rows)
    (tmp_path / "owner" / "one").mkdir()
    write(tmp_path / "owner" / "one" / "train.jsonl", SEVEN)
    script = """
from rewards.extract import last_boxed
from rlkit.config import DataConfig
from rlkit.data.rows import read_rows
columns = dict(tasks={}, prompt_column="question", answer_column="answer", solution_column="", instruction="", seed=0)
for source, eval_source in (("owner/both", ""), ("owner/one", ""), ("gsm8k", "owner/one"), ("owner/none", "")):
    try:
        split = read_rows(DataConfig(source=source, eval_source=eval_source, train_size=-1, eval_size=2, **columns))
        print(len(split.train), len(split.held_out), split.held_out[0].id.rpartition("/")[0])
    except ValueError as error:
        print(error)
"""
    done = subprocess.run(
        [sys.executable, "-c", script],
        cwd=tmp_path,
        env=os.environ
        | {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path), "PYTHONPATH": str(Path(__file__).parents[2])},
        capture_output=True,
        text=True,
    )
    lines = done.stdout.splitlines()
    assert lines[:3] == ["6 2 owner/both/test", "5 2 owner/one/train", "7473 2 owner/one/train"], done.stderr
    assert lines[3].startswith("data.source='owner/none' cannot be loaded from the Hugging Face hub")


@pytest.mark.parametrize("source", ["outputs/made/dataset", "./made", "/nowhere/made"])
def test_a_folder_that_is_not_there_is_not_looked_for_on_the_hub(config: Config, source: str) -> None:
    with pytest.raises(UserError, match=rf"^data\.source='{source}' is no file and no folder; correct the path"):
        read_rows(config(source=source))
