"""`rlkit reward` as a user types it."""

from __future__ import annotations

import gzip
import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from rlkit.cli import main as cli
from rlkit.cli.reward import honest_completion
from rlkit.errors import UserError

ROOT = Path(__file__).resolve().parents[2]
DATA = ROOT.parent / "shared" / "data"


def write(path: Path, rows: Sequence[Mapping[str, Any]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def reward(*words: str) -> int:
    """The exit code."""
    try:
        cli.main(["reward", *words])
    except SystemExit as leaving:
        assert isinstance(leaving.code, int)
        return leaving.code
    return 0


RECORDED = [
    {"prompt": "3 + 4", "completion": "<think></think><answer>7</answer>", "answer": "7"},
    {"prompt": "3 + 4", "completion": "<answer>7</answer>", "answer": "7"},
    {"prompt": "3 + 4<think>", "completion": "<answer>7</answer>", "answer": "7"},
    {"prompt": "3 + 4", "completion": "<answer>8</answer>", "answer": "7"},
    {"prompt": "3 + 4", "completion": "<answer>7</answer>", "answer": "seven"},
]


def test_functions_that_ask_for_the_step_of_training_can_be_tried(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """TRL's `trainer_state` was missing outside a run, so `test` said that such a function is broken."""
    plugin = tmp_path / "curriculum.py"
    plugin.write_text(
        "def curriculum(completions, answer, trainer_state, **columns):\n"
        "    ends = [f'</think><answer>{gold}</answer>' for gold in answer]\n"
        "    pairs = zip(completions, ends)\n"
        "    right = [text.rstrip().endswith(end) and text.count('<answer>') == 1 for text, end in pairs]\n"
        "    return [float(r) * (1 + trainer_state.global_step) for r in right]\n"
    )
    code = reward("test", f"{plugin}:curriculum")
    assert code == 0, capsys.readouterr().out


def test_a_setting_written_as_in_a_run_is_told_how_it_is_written_here(capsys: pytest.CaptureFixture[str]) -> None:
    assert reward("test", "number", "reward.kwargs.limit=80") == 2
    assert "'reward.kwargs.limit=80' is not a setting; write limit=80" in capsys.readouterr().err
    assert reward("score") == 2
    assert capsys.readouterr().err.rstrip().endswith("the following arguments are required: DATA, NAME")


def test_score_counts_by_reason(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out.jsonl"
    assert reward("score", write(tmp_path / "rows.jsonl", RECORDED), "number", "--output", str(out)) == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert lines[:6] == [
        ["reason", "rows", "share", "mean", "none"],
        ["correct", "2", "40.0%", "1.000", "0"],
        ["no_answer", "1", "20.0%", "0.000", "0"],
        ["wrong", "1", "20.0%", "0.000", "0"],
        ["gold_unparsable", "1", "20.0%", "-", "1"],
        ["all", "5", "100.0%", "0.500", "1"],
    ]
    scored = [json.loads(line) for line in out.read_text().splitlines()]
    assert [row["reward"]["value"] for row in scored] == [1.0, 1.0, 0.0, 0.0, None]
    assert [{key: row[key] for key in RECORDED[0]} for row in scored] == RECORDED


def test_score_shows_the_parts_and_takes_settings(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = write(tmp_path / "rows.jsonl", RECORDED[:4])
    assert reward("score", rows, "composite", "rewards=[number, {fn: format, weight: 0.5}]") == 0
    printed = capsys.readouterr().out
    assert "parts: number 0.500, format 0.250" in printed  # by hand: 2 of 4 right, 1 of 4 in form
    assert ["all", "4", "100.0%", "0.625", "0"] in [line.split() for line in printed.splitlines()]


def test_score_passes_ids_and_finish_reasons_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [
        {"completion": "so", "completion_ids": [1] * 9},
        {"completion": "so", "completion_ids": [1] * 9, "finish_reason": "length"},
        {"completion": "so", "finish_reason": None},
    ]
    settings = ("max_completion_len=10", "soft_punish_cache=2")
    assert reward("score", write(tmp_path / "rows.jsonl", rows), "length", *settings) == 0
    printed = [line.split()[:4] for line in capsys.readouterr().out.splitlines()]
    assert ["long", "1", "33.3%", "-0.500"] in printed and ["truncated", "1", "33.3%", "-1.000"] in printed
    assert ["no_token_ids", "1", "33.3%", "-"] in printed


def test_verify_dataset_lists_golds_that_fail(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [
        {"question": "3 + 4", "answer": "7"},
        {"question": "?", "answer": "seven"},
        {"question": "?", "answer": "8"},
    ]
    kept = tmp_path / "kept.jsonl"
    assert reward("verify-dataset", write(tmp_path / "rows.jsonl", rows), "number", "--keep", str(kept)) == 1
    printed = capsys.readouterr().out
    assert "row 2: none (gold_unparsable) for its own gold ...'" in printed and "row 1:" not in printed
    assert "2 of 3 golds earn 1 or more" in printed
    assert [json.loads(line) for line in kept.read_text().splitlines()] == [rows[0], rows[2]]
    assert reward("verify-dataset", str(kept), "number") == 0
    template = "<answer>{answer}</answer> {question}"
    assert reward("verify-dataset", str(kept), "number", "--completion", template) == 0
    assert reward("verify-dataset", str(kept), "number", "--completion", "{answer}") == 1


def test_verify_dataset_of_shipped_gsm8k(capsys: pytest.CaptureFixture[str]) -> None:
    assert reward("verify-dataset", "gsm8k", "number") == 0
    assert "8792 of 8792 golds earn 1 or more" in capsys.readouterr().out


@pytest.mark.slow
def test_verify_dataset_of_mbpp_runs_its_programs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = DATA / "mbpp" / "sanitized-mbpp.json.gz"
    if not path.exists():
        pytest.skip(f"{path} is not there")
    rows = json.loads(gzip.decompress(path.read_bytes()))[:20]
    space: list[dict[str, Any]] = [{} for _ in rows]
    for row, names in zip(rows, space, strict=True):  # Python itself says that they are right
        exec("\n".join([*row["test_imports"], row["code"], *row["test_list"]]), names)
    wrong = {**rows[0], "code": rows[1]["code"]}
    assert reward("verify-dataset", write(tmp_path / "rows.jsonl", [*rows, wrong]), "code") == 1
    printed = capsys.readouterr().out
    assert "20 of 21 golds earn 1 or more" in printed and "row 21: 0 (" in printed


def test_rows_of_math_have_their_box_for_an_answer(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    rows = [{"problem": "3 + 4", "solution": rf"It is $\boxed{{{gold}}}$."} for gold in ("7", "42", "1,000")]
    assert reward("verify-dataset", write(tmp_path / "rows.jsonl", rows), "number") == 0
    assert "3 of 3 golds earn 1 or more" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("row", "completion"),
    [
        ({"answer": "7"}, "<answer>7</answer>"),
        ({"answer": "3 + 4 = 7\n#### 7"}, "3 + 4 = 7\n#### 7"),
        ({"answer": r"so \boxed{7}"}, r"so \boxed{7}"),
        ({"prompt": "def f():\n", "canonical_solution": "    return 7\n"}, "```python\ndef f():\n    return 7\n\n```"),
        ({"text": "write f", "code": "f = 7"}, "```python\nf = 7\n```"),
        ({"solution": "7"}, r"\boxed{7}"),
        ({"solution": r"\boxed{7} it is"}, r"\boxed{7} it is"),
    ],
)
def test_the_completion_that_a_gold_stands_for(row: dict[str, str], completion: str) -> None:
    assert completion in honest_completion(row, "")


def test_test_prints_a_table_and_fails_on_a_fault(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert reward("test", "format") == 0
    printed = capsys.readouterr().out
    checks = ("load", "contract", "determinism", "pickling", "time per sample", "hostile texts", "known tricks")
    assert all(f"\n{check}" in f"\n{printed}" for check in checks) and printed.endswith("format: no fault found\n")
    (tmp_path / "mine.py").write_text("def contains(completion, gold):\n    return gold in completion\n")
    rows = write(tmp_path / "rows.jsonl", [{"question": "?", "answer": str(n), "gold": str(n)} for n in (7, 42)])
    assert reward("test", f"{tmp_path}/mine.py:contains", "--data", rows) == 1
    printed = capsys.readouterr().out
    assert "known tricks     FAIL  " in printed and "1 of 7 checks found a fault" in printed
    assert "every number: earns 1" in printed


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["frobnicate"], "'rlkit reward frobnicate' is not a command; there are test, score, verify-dataset"),
        (["test", "number", "limit"], "'limit' is not a setting; write key=value"),
        (["test", "number", "a={"], "cannot be read"),
        (["test", "number", "a=[1, 2"], "begins like a list, but cannot be read as one"),
        (["test", "number", "--data", "gone.jsonl"], "DATA='gone.jsonl': no such file"),
        (["score", "gone.txt", "number"], "not a data source"),
        (["score", "{empty}", "number"], "has no rows"),
        (["score", "{golds}", "number"], "row 1 has no text in a column `completion` (its columns: gold)"),
        (["verify-dataset", "{golds}", "number"], "a row has none of answer, canonical_solution, code, solution"),
        (["verify-dataset", "gsm8k", "nmber"], "no reward is called 'nmber'; did you mean 'number'"),
        (["verify-dataset", "reasoning_gym", "number"], "has no end"),
    ],
)
def test_mistakes_end_in_words(
    words: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = {"empty": write(tmp_path / "empty.jsonl", []), "golds": write(tmp_path / "golds.jsonl", [{"gold": "7"}])}
    assert reward(*(files.get(word.strip("{}"), word) for word in words)) == 2
    printed = capsys.readouterr().err
    assert printed.startswith("error: ") and message in printed and "Traceback" not in printed


def test_test_fails_a_constant_and_says_what_it_skipped(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "mine.py").write_text("def zero(completion, answer):\n    return 0.0\n")
    assert reward("test", f"{tmp_path}/mine.py:zero") == 1
    assert "contract         FAIL  earns 0 whatever the completion is" in capsys.readouterr().out
    assert reward("test", "length", "max_completion_len=100", "soft_punish_cache=20") == 0
    *_, tricks, last = capsys.readouterr().out.splitlines()
    assert tricks.endswith("earn the same: nothing to trick")
    assert last == "length: nothing wrong in what was checked; not checked: known tricks"


FRONT_PAGE = """
def mine(completion, answer, question, **columns):
    assert isinstance(answer, str) and isinstance(question, str)
    return 1.0 if completion.endswith(f"</think><answer>{answer}</answer>") else 0.0
"""


def test_offline_rows_are_those_of_a_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "mine.py").write_text(FRONT_PAGE)
    name = f"{tmp_path}/mine.py:mine"
    rows = [{"question": "3 + 4", "answer": 7}, {"question": "3 < 4", "answer": True}]
    kept = tmp_path / "kept.jsonl"
    assert reward("verify-dataset", write(tmp_path / "rows.jsonl", rows), name, "--keep", str(kept)) == 0
    assert [json.loads(line) for line in kept.read_text().splitlines()] == rows, "written as they were read"
    other = write(
        tmp_path / "other.jsonl", [{"q": "3 + 4", "unit": "m", "target": 7}, {"q": "?", "unit": "", "target": 8}]
    )
    columns = ("--prompt-column", "{q} in {unit}", "--answer-column", "target")
    assert reward("verify-dataset", other, name, *columns) == 0
    assert reward("test", name, "--data", other, *columns) == 0
    lists = write(tmp_path / "lists.jsonl", [{"question": "3 + 4", "final_answer": ["7"]}])
    assert reward("verify-dataset", lists, "math", "--answer-column", "{final_answer[0]}") == 0
    recorded = [{"q": "3 + 4", "target": 7, "completion": "<think></think><answer>7</answer>"}]
    source = write(tmp_path / "recorded.jsonl", recorded)
    capsys.readouterr()
    assert reward("score", source, name, "--prompt-column", "q", "--answer-column", "target") == 0
    assert ["all", "1", "100.0%", "1.000", "0"] in [line.split() for line in capsys.readouterr().out.splitlines()]
    assert reward("score", source, name, "--prompt-column", "q", "--answer-column", "gold") == 2
    assert "data.answer_column='gold': row 'recorded/train/0' has no such column" in capsys.readouterr().err


@pytest.mark.parametrize("value", ["nan", "inf", "-inf", "0", "-1"])
def test_numbers_on_the_command_line_are_checked(
    value: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """With --least nan every row passed; a deadline of nan or -1 was a traceback."""
    rows = write(tmp_path / "rows.jsonl", [{"question": "?", "answer": "x"}])
    assert reward("test", "number", f"--deadline={value}") == 2
    assert f"--deadline={float(value)} must be " in capsys.readouterr().err
    if value not in ("0", "-1"):
        assert reward("verify-dataset", rows, "number", f"--least={value}") == 2
        assert f"--least={value} must be a finite number" in capsys.readouterr().err


def test_verify_dataset_says_when_no_gold_can_pass(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = write(tmp_path / "rows.jsonl", [{"question": "?", "answer": str(n)} for n in range(5)])
    words = ("composite", "rewards=[{fn: number, weight: 0.9}]")
    assert reward("verify-dataset", rows, *words) == 1
    printed = capsys.readouterr().out
    assert "no gold earns 1, the best earns 0.9" in printed and "--least VALUE" in printed and "row 2" not in printed
    assert reward("verify-dataset", rows, *words, "--least", "0.9") == 0
    assert "5 of 5 golds earn 0.9 or more" in capsys.readouterr().out


def test_columns_are_filled_in_one_pass() -> None:
    row = {"answer": r"\frac{1}{b}", "b": "2", "note": "{answer}"}
    assert honest_completion(row, r"\boxed{{answer}} {b} {note} {x}") == r"\boxed{\frac{1}{b}} 2 {answer} {x}"


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("no", "no"), ("-1e-3", -1e-3), ("null", None), ("{x: 1e-6, y: [1, 2.5]}", {"x": 1e-6, "y": [1, 2.5]}),
        ("~/words.txt", "~/words.txt"), ("a=b(c)", "a=b(c)"), ("Gr\u00f6\u00dfe", "Gr\u00f6\u00dfe"), ("'1'", "1"),
        ("1,2", "1,2"),
    ],
)  # fmt: skip
def test_settings_are_read_as_in_a_run(
    text: str, value: object, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Hydra's own grammar refused a home folder, brackets and umlauts."""
    code = f"def f(completion, a):\n    return (a, type(a)) == ({value!r}, type({value!r}))\n"
    (tmp_path / "mine.py").write_text(code, encoding="utf-8")
    rows = write(tmp_path / "rows.jsonl", [{"completion": "x"}])
    assert reward("score", rows, f"{tmp_path}/mine.py:f", f"a={text}") == 0
    assert ["all", "1", "100.0%", "1.000", "0"] in [line.split() for line in capsys.readouterr().out.splitlines()]


@pytest.mark.slow
def test_a_module_of_the_current_folder_is_found_by_the_installed_command(tmp_path: Path) -> None:
    (tmp_path / "zero_or_one.py").write_text("def f(completion):\n    return float(bool(completion))\n")
    write(tmp_path / "rows.jsonl", [{"completion": "x"}])
    words = ["reward", "score", "rows.jsonl", "zero_or_one:f"]
    done = subprocess.run(  # with -P there is no current folder on the path, as in an installed script
        [sys.executable, "-P", "-c", f"from rlkit.cli.main import main; main({words})"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0 and "1.000" in done.stdout, done.stderr


def test_a_reward_that_raises_names_the_rows(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "mine.py").write_text("def f(completion):\n    return 1 / len(completion)\n")
    rows = write(tmp_path / "rows.jsonl", [{"prompt": str(n), "completion": "x" * (n != 70)} for n in range(99)])
    assert reward("score", rows, f"{tmp_path}/mine.py:f") == 2
    printed = capsys.readouterr().err
    assert "sample 6 (prompt '70')" in printed and "within rows 65 to 99" in printed


@pytest.mark.parametrize("bug", [ValueError("a bug"), KeyError("a bug")])
def test_a_bug_keeps_its_traceback_and_a_mistake_is_one_line(
    bug: Exception, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = write(tmp_path / "rows.jsonl", RECORDED)

    def planted(*_: object) -> str:
        raise bug

    monkeypatch.setattr("rlkit.cli.reward.summary", planted)
    with pytest.raises(type(bug), match="a bug") as raised:
        cli.main(["reward", "score", rows, "number"])
    assert raised.value is bug and raised.traceback[-1].name == "planted"
    bug = UserError("key=value: mend it")
    assert reward("score", rows, "number") == 2
    assert capsys.readouterr().err.endswith("error: key=value: mend it\n")


def test_half_a_character_is_written_as_it_was_read(tmp_path: Path) -> None:
    rows = write(tmp_path / "rows.jsonl", [RECORDED[0] | {"note": "half \ud800"}])
    assert reward("score", rows, "number", "--output", str(tmp_path / "out.jsonl")) == 0
    assert json.loads((tmp_path / "out.jsonl").read_text())["note"] == "half \ud800"


def test_help_needs_no_torch() -> None:
    script = (
        "import sys; from rlkit.cli import main as cli; cli.main(['reward', 'test', 'number']);"
        "sys.exit(str({'torch', 'ray', 'hydra', 'pydantic'} & sys.modules.keys() or 0))"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True)
    assert done.stderr == "0\n" and "no fault found" in done.stdout
