"""The job as a user starts it: kills, changed settings, a look, bad input; Ray with vLLM; then SFT on what it made."""

from __future__ import annotations

import signal
import sqlite3
from contextlib import closing
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from recipes import distill_generate, sft
from tests.e2e.runs import LOCAL, TINY, finish_here, killed_by

# About two answers of three are right, by their bytes alone: a teacher that learned nothing has a dataset as well.
REWARD = """
import os, signal
calls = 0

def lucky(completion: str, answer: str) -> float:
    global calls
    calls += 1
    if calls == int(os.environ.get("DIE_AT_CALL", "0")):
        os.kill(os.getppid(), signal.SIGKILL)
    return float(sum(completion.encode()) % 3 > 0)
"""
JOB = [
    "data.train_size=40",
    "data.tasks.chain_sum={min_terms: 3, max_terms: 3, min_digits: 1, max_digits: 1, bare: true}",
    *("samples=4", "rows_per_call=8", "sampling.max_new_tokens=16", "sampling.temperature=1.0", "sampling.top_p=1.0"),
    *("engine.max_model_len=64", "engine.memory=0.1", "engine.threads=1", "reward.workers=1", "selection.shard_rows=3"),
]
HERE = ["cluster=local", "engine=torch"]


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint with its tokenizer that has learned to stop, and little else."""
    folder = tmp_path_factory.mktemp("teacher")
    base = [word for word in TINY if not word.startswith("algo.")]
    sft.main([*base, *LOCAL, "sft.steps=30", "data.eval_size=4", f"output_dir={folder}"])
    return folder / "model"


def settings(teacher: Path, folder: Path, *words: str) -> list[str]:
    """The job on sums, with the reward of this file."""
    plugin = folder.parent / "plugin.py"
    plugin.write_text(REWARD)
    return [*JOB, *words, f"model.path={teacher}", f"reward={plugin}:lucky", f"output_dir={folder}"]


def files(folder: Path) -> dict[str, bytes]:
    """The files of a dataset."""
    return {file.name: file.read_bytes() for file in sorted((folder / "dataset").iterdir())}


def count_answers(folder: Path) -> int:
    with closing(sqlite3.connect(folder / "journal.sqlite")) as journal:
        return journal.execute("SELECT count(*) FROM answers").fetchone()[0]


@pytest.mark.slow
def test_killed_jobs_end_with_the_bytes_of_one_that_nobody_killed(teacher: Path, tmp_path: Path) -> None:
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    printed = finish_here("distill_generate", *settings(teacher, whole, *HERE))
    assert "0 of 160 answers are there" in printed and "answers: 160/160 (100%)" in printed
    expected = files(whole)
    assert len(expected) > 3 and sum(pq.read_metadata(whole / "dataset" / n).num_rows for n in expected if n[0] == "t")

    command = settings(teacher, killed, *HERE)
    there = []
    # A call has 32 answers. The first kill comes behind the first call; the next counts anew, what is judged again too.
    for call in (45, 90):
        assert killed_by("distill_generate", *command, env={"DIE_AT_CALL": str(call)}) == -signal.SIGKILL
        there.append(count_answers(killed))
        assert not (killed / "dataset").exists()
    assert 32 <= there[0] <= there[1] < 160
    assert not any(number % 32 for number in there), f"whole calls, or nothing of one: {there}"
    printed = finish_here("distill_generate", *command)
    assert f"{there[1]} of 160 answers are there" in printed
    assert count_answers(killed) == 160
    assert files(killed) == expected

    # Again: nothing is left to do. With another selection the files are written anew, and no teacher starts.
    printed = finish_here("distill_generate", *command)
    assert "this job is complete" in printed and files(killed) == expected
    printed = finish_here("distill_generate", *command, "selection.max_per_problem=3")
    assert "160 of 160 answers are there" in printed and "answers: " not in printed
    assert files(killed) != expected
    finish_here("distill_generate", *command)
    assert files(killed) == expected
    # Another setting of what is sampled is refused, even when the record of the settings is gone.
    for gone in ((), ("config.yaml", "inputs.json")):
        for name in gone:
            (killed / name).unlink()
        assert "other settings" in finish_here("distill_generate", *command, "sampling.temperature=0.5", code=2)
    assert files(killed) == expected


@pytest.mark.slow
def test_the_job_on_ray_with_vllm_and_sft_on_its_dataset(
    teacher: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ray = tmp_path / "ray"
    finish_here("distill_generate", *settings(teacher, ray, "engine.num_engines=2", "selection.max_per_problem=2"))
    rows = [row for file in sorted((ray / "dataset").glob("*.parquet")) for row in pq.read_table(file).to_pylist()]
    assert len(rows) > 8 and all(row["reward"] == 1 and row["response_ids"] for row in rows)
    assert count_answers(ray) == 160
    base = [word for word in TINY if not word.startswith(("algo.", "data."))]
    data = ["data=file", f"data.source={ray / 'dataset'}", "data.solution_column=solution", "data.eval_size=2"]
    sft.main([*base, *LOCAL, *data, "sft.steps=2", f"model.path={teacher}", f"output_dir={tmp_path / 'student'}"])
    assert (tmp_path / "student" / "model" / "model.safetensors").is_file()


def test_a_look_starts_nothing_and_leaves_nothing(
    teacher: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "job"
    distill_generate.main([*settings(teacher, folder, *HERE), "--cfg", "job"])
    assert "rows_per_call: 8" in capsys.readouterr().out
    distill_generate.main([*settings(teacher, folder, *HERE), "dry_run=true"])
    printed = capsys.readouterr().out
    assert "questions    40 of 40 rows" in printed and "answers      160" in printed
    assert not folder.exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["model.path="], "model.path is empty, and a teacher is a trained model"),
        (["model.path=nowhere"], "nowhere"),
        (["data=nothing.jsonl"], "data.source='nothing.jsonl': no such file"),
        (["data.eval_size=3"], "data.eval_size=3: nothing is held out of a dataset"),
        (["cleaning.tests=[nothing.jsonl]"], "cleaning.tests='nothing.jsonl': no such file"),
        (["reward=nothing.py:f"], "nothing.py does not exist"),
        (["sampling.max_new_tokens=60"], r"lower sampling.max_new_tokens, or remove the row|leaves no room"),
        (["sampling.max_new_tokens=64"], "sampling.max_new_tokens=64 leaves no room for a prompt"),
        (["teacher.url=ftp://a"], "teacher.url='ftp://a' is no address"),
        (["teacher.url=http://127.0.0.1:9/v1"], "teacher.model is empty"),
        (["teacher.url=http://127.0.0.1:9/v1", "teacher.model=m", "teacher.retries=0"], "cannot be reached"),
        (["selection.order=best"], "selection.order='best' is unknown; use shortest or readable"),
        (["selection.min_tokens=5", "selection.max_tokens=4"], "selection.max_tokens=4 is below"),
        (["selection.language=xx"], "selection.language='xx' is unknown"),
        (["cleaning.near=0"], "cleaning.near=0.0 must be at least 0.3"),
        (["samples=0"], "samples=0 must be at least 1"),
        (["engine.max_model_len=99999"], "engine.max_model_len=99999 is more than"),
        (["smaples=3"], "smaples is not a key"),
    ],
)
def test_what_cannot_work_is_said_before_anything_starts(
    words: list[str],
    message: str,
    teacher: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(distill_generate, "teacher", None)  # whatever starts one fails
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as left:
        distill_generate.main([*settings(teacher, tmp_path / "job", *HERE), *words])
    error = capsys.readouterr().err
    assert left.value.code == 2 and any(part in error for part in message.split("|")), error
    assert not (tmp_path / "job" / "dataset").exists()
