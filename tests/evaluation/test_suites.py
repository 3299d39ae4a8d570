"""On each suite reference answers earn 100 % and those of other problems 0 %; what is missing is said with its fix."""

from __future__ import annotations

import gzip
import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from rlkit.config import EvalRun, SftRun
from rlkit.config.compose import load_config
from rlkit.data.rows import Row, read_rows
from rlkit.errors import UserError
from rlkit.evaluation.measure import same_answer
from rlkit.evaluation.suites import read_suites, suite_names
from rlkit.types import Prompt
from tests.evaluation.scripted import Scripted, evaluate, model_folder, sums, tagged, write_rows

SHARED = Path(__file__).resolve().parents[3] / "shared" / "data"
INVENTED = [
    {"problem": r"Find the remainder when $2^{10}$ is divided by $1000$.", "answer": "024"},
    {"problem": "How many primes are below 100?", "answer": "25"},
    {"problem": "Find the sum of the digits of 999999.", "answer": 54},
]
"""In the form of AIME, whose own problems are not at hand for 2025."""


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return model_folder(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A `suite_dir` with the files that are not shipped, as far as they are at hand."""
    place = tmp_path_factory.mktemp("suites")
    for name, file in (("math500", "math500/test.jsonl.gz"), ("aime24", "aime24/test.jsonl")):
        if (SHARED / file).exists():
            shutil.copyfile(SHARED / file, place / f"{name}{''.join(Path(file).suffixes)}")
    write_rows(place / "aime25.jsonl", INVENTED)
    return place


def config(*words: str) -> EvalRun:
    return load_config("eval", EvalRun, ["model.path=nowhere", "cluster=local", "engine=torch", *words])


def read(word: str, folder: Path) -> Sequence[Row]:
    [suite] = read_suites(config(f"suite={word}", f"suite_dir={folder}"))
    return suite.rows


def reference(row: Row) -> str:
    """What somebody who knows the answer writes."""
    if "canonical_solution" in row.meta:
        return f"Here it is:\n```python\n{row.meta['prompt']}{row.meta['canonical_solution']}```\n"
    return f"```python\n{row.meta['code']}\n```" if "code" in row.meta else tagged(row.answer)


def of_another(rows: Sequence[Row]) -> Callable[[Prompt, int], str]:
    """The reference of the next problem whose answer is another one."""

    def script(prompt: Prompt, number: int) -> str:
        place = int(prompt.id.partition("#")[0].rpartition("/")[2])
        for step in range(1, len(rows)):
            other = rows[(place + step) % len(rows)]
            if not other.answer or not same_answer(rows[place].answer, other.answer):
                return reference(other)
        raise AssertionError("all answers are the same")

    return script


# Programs take a sandbox and milliseconds each; tests/sandbox runs all of these.
@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "size", "number"),
    [
        ("gsm8k", 300, 300),
        ("math500", -1, 500),
        ("aime24", -1, 30),
        ("aime25", -1, 3),
        ("reasoning_gym", -1, 400),
        ("humaneval", 30, 30),
        ("mbpp", 30, 30),
        ("own.jsonl", -1, 6),
    ],
)
def test_references_earn_everything_and_those_of_other_problems_nothing(
    name: str, size: int, number: int, model: Path, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if name in ("math500", "aime24") and not list(folder.glob(f"{name}.*")):
        pytest.skip(f"{name} is not at {SHARED}")
    word = str(sums(tmp_path / name)) if name.endswith("jsonl") else name
    rows = read(word, folder)
    asked = [f"suite={word}", f"suite_dir={folder}", f"size={size}", "samples=1"]
    by_id = {f"{row.id}#0": row for row in rows}
    Scripted(lambda prompt, number: reference(by_id[prompt.id])).started(monkeypatch)
    [right] = evaluate(model, *asked, f"output_dir={tmp_path / 'right'}")["suites"].values()
    Scripted(of_another(rows)).started(monkeypatch)
    [wrong] = evaluate(model, *asked, f"output_dir={tmp_path / 'wrong'}")["suites"].values()
    assert (right["problems"], right["pass@1"]["value"], right["reasons"]) == (number, 1.0, {"correct": number})
    assert (wrong["problems"], wrong["pass@1"]["value"], wrong["no_verdict"]) == (number, 0.0, 0)
    assert (right["pass@1"]["high"], wrong["pass@1"]["low"]) == pytest.approx((1, 0))


@pytest.mark.slow
def test_what_is_shipped_is_whole() -> None:
    nowhere = Path("nowhere")
    assert [len(read(name, nowhere)) for name in ("gsm8k", "humaneval", "mbpp")] == [1319, 164, 500]
    ids = [row.meta["task_id"] for row in read("mbpp", nowhere)]
    assert ids == list(range(11, 511)), "the test split of Austin et al."
    assert "assert" in read("mbpp", nowhere)[0].question
    first, again = (read("reasoning_gym", nowhere) for _ in range(2))
    assert first == again and len({row.question for row in first}) == 400


def test_generated_problems_are_not_those_that_a_run_of_the_default_seed_trains_on(tmp_path: Path) -> None:
    """The space is so wide (5 numbers of up to 4 digits) that two seeds share no sum."""
    task = {"chain_sum": {"min_terms": 5, "max_terms": 5, "max_digits": 4}}
    suite = tmp_path / "sums.yaml"
    suite.write_text(json.dumps({"title": "sums", "source": "reasoning_gym", "tasks": task, "size": 20}))
    words = [f"data.tasks={json.dumps(task)}", "data.train_size=20", "data.eval_size=5"]
    trained = read_rows(load_config("sft", SftRun, words).data)
    seen = {row.question for row in (*trained.train, *trained.held_out)}
    assert len(seen) == 25 and not seen & {row.question for row in read(str(suite), tmp_path)}


def test_a_suite_that_cannot_be_shipped_says_where_its_file_goes(tmp_path: Path) -> None:
    assert suite_names() == ["aime24", "aime25", "gsm8k", "humaneval", "math500", "mbpp", "reasoning_gym"]
    for name in ("aime24", "aime25", "math500"):
        with pytest.raises(UserError) as refusal:
            read_suites(config(f"suite=gsm8k,{name}", f"suite_dir={tmp_path}"))
        said = str(refusal.value)
        assert f"put them at {tmp_path / name}.jsonl" in said and "the columns problem and answer" in said, said
        assert ".parquet" in said and "suite_dir" in said


@pytest.mark.parametrize("ending", [".jsonl", ".json", ".jsonl.gz"])
def test_the_file_may_have_any_of_the_endings(ending: str, tmp_path: Path) -> None:
    text = json.dumps(INVENTED) if ending == ".json" else "".join(json.dumps(row) + "\n" for row in INVENTED)
    content = gzip.compress(text.encode()) if ending.endswith("gz") else text.encode()
    (tmp_path / f"aime25{ending}").write_bytes(content)
    assert [row.answer for row in read("aime25", tmp_path)] == ["024", "25", "54"]


def test_what_is_no_suite_is_refused_with_those_there_are(tmp_path: Path) -> None:
    def said(*words: str) -> str:
        with pytest.raises(UserError) as refusal:
            read_suites(config(*words, f"suite_dir={tmp_path}"))
        return str(refusal.value)

    unknown = said("suite=gsm8,mbpp")
    assert unknown.startswith("suite='gsm8' is unknown (did you mean 'gsm8k'?); there are aime24, aime25, gsm8k")
    assert "question and answer" in unknown
    assert "names no suite" in said("suite=,")
    assert "there is no file" in said(f"suite={tmp_path}/mine.jsonl")
    assert "no such file" in said(f"suite={tmp_path}/mine.yaml")
    other = write_rows(tmp_path / "other.jsonl", [{"problem": "1 + 1", "answer": 2}])
    columns = said(f"suite={other}")
    assert "row 1 has no column 'question' (its columns: problem, answer)" in columns
    assert "the columns question and answer" in columns
    (tmp_path / "deeper").mkdir()
    files = sums(tmp_path / "own.jsonl"), sums(tmp_path / "deeper" / "own.jsonl")
    assert "two suites are called 'own'" in said(f"suite={files[0]},{files[1]}")
    (tmp_path / "empty.jsonl").write_text("")
    assert "has no rows" in said(f"suite={tmp_path / 'empty.jsonl'}")


def test_a_suite_file_of_ones_own_says_what_differs(tmp_path: Path) -> None:
    write_rows(tmp_path / "rows.jsonl", [{"text": "1 + 1", "gold": 2}])
    keys: dict[str, Any] = {"title": "Mine", "source": "rows", "prompt_column": "{text} =", "answer_column": "gold"}
    file = tmp_path / "mine.yaml"
    file.write_text(json.dumps(keys | {"reward": "number", "kwargs": {}, "size": 1}))
    [suite] = read_suites(config(f"suite={file}"))
    [row] = suite.rows
    assert (row.id, row.question, row.answer) == ("mine/0", "1 + 1 =", "2")
    assert (suite.reward.fn, suite.about.sampling.max_new_tokens, suite.votes) == ("number", 1024, True)
    file.write_text(json.dumps(keys | {"rewards": "number"}))
    with pytest.raises(UserError, match=r"mine\.yaml: rewards"):
        read_suites(config(f"suite={file}"))
    file.write_text(json.dumps(keys | {"sampling": {"temperature": -1, "top_p": 1, "max_new_tokens": 8}}))
    with pytest.raises(UserError, match=r"mine\.yaml: sampling\.temperature=-1"):
        read_suites(config(f"suite={file}"))


def test_the_reward_and_the_instruction_of_all_suites_can_be_chosen(tmp_path: Path) -> None:
    own = sums(tmp_path / "own.jsonl")
    [suite] = read_suites(config(f"suite={own}", "reward=number", "instruction=Think."))
    assert (suite.reward.fn, suite.reward.kwargs, suite.about.instruction) == ("number", {}, "Think.")
    for words, message in (
        (("reward.kwargs.workers=1",), "settings of reward.fn, which is empty"),
        (("sampling.temperature=0", "samples=4"), "would be equal; set samples=1"),
        (("samples=0",), "samples=0 must be at least 1"),
        (("sampling.top_p=2",), "sampling.top_p=2"),
    ):
        with pytest.raises(UserError, match=message):
            config(f"suite={own}", *words)
    assert config(f"suite={own}", "sampling.temperature=0").sampling.temperature == 0
