"""From a command line to what SFT shows: forms of rows, mixtures, what is held out and what is left out."""

from __future__ import annotations

import gzip
import hashlib
import json
from pathlib import Path
from typing import Any

import datasets
import pyarrow
import pyarrow.parquet
import pytest

from rlkit.algo import pack_demonstrations
from rlkit.config import SftRun, SftThenGrpoRun
from rlkit.config.compose import load_config
from rlkit.data.sources import open_stream
from rlkit.run.plan import derived
from rlkit.run.prepare import Task, prepare
from rlkit.types import Demonstration
from tests.data.templates import chat

LOCAL = ["cluster=local", "engine=torch", "trainer=torch", "model.architecture.vocab_size=320"]
QUICKSTART = {
    1: "3b254f5698042dee3058b612761058bd7f29f900f2da54b1fef9955af073a9e4",
    2: "295cc7e5af2de127b64f002ab917529e9e862ac872a0d4ab5b84226c77cd4c11",
    8: "fba31a4611fdd87b2f2eabe65561a4fa05447a25aec1c3ba9cb14ef554c0925a",
    9: "3091170785a84a8bc29f066e33e3723f0438d5bc80e58179add256d453ca88b9",
    350: "b2091f66e054bb3ac7fb1e01b8383f11603a688bad23cfe2aec33b66fe6c8352",
}
"""SHA-256 of the packs of these steps, worked out when SFT knew pairs of prompt and completion alone."""


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def read(*overrides: str) -> Task:
    return prepare(load_config("sft", SftRun, [*LOCAL, *overrides]))


def texts(task: Task, shown: tuple[Demonstration, ...] | list[Demonstration]) -> list[tuple[str, str]]:
    """What is read and what is learned of each, of demonstrations with one trained span."""
    found = []
    for one in shown:
        [(first, end)] = one.trained
        found.append((task.tokenizer.decode(one.tokens[:first]), task.tokenizer.decode(one.tokens[first:end])))
    return found


def sums(count: int, start: int = 0) -> list[dict[str, Any]]:
    return [
        {"question": f"{i} + 5", "answer": str(i + 5), "solution": f"{i}+5={i + 5}", "r1": f"<think>hm {i}</think>ok"}
        for i in range(start, start + count)
    ]


def talks(count: int, start: int = 0) -> list[dict[str, Any]]:
    return [
        {"messages": chat(f"say {i}", f"I say {i}.", "again", f"{i}, I said.")} for i in range(start, start + count)
    ]


def documents(count: int) -> list[dict[str, Any]]:
    return [{"content": f"def f{i}(x):\n    return x + {i}\n"} for i in range(count)]


def test_the_packs_of_the_quickstart_are_what_they_were() -> None:
    cfg = load_config("sft_then_grpo", SftThenGrpoRun, ["data.train_size=1000"])
    task = prepare(cfg)
    for step, expected in QUICKSTART.items():
        shown = task.demonstrations.draw(step - 1, cfg.sft.batch_size, cfg.seed)
        batch = pack_demonstrations(shown, max_tokens=cfg.trainer.max_tokens)
        digest = hashlib.sha256()
        for pack in batch.packs:
            digest.update(pack.tokens_T.numpy().tobytes())
            digest.update(pack.weights_T.numpy().tobytes())
            digest.update(repr((pack.tokens_T.dtype, pack.weights_T.dtype, pack.lengths, pack.ids)).encode())
        digest.update(repr((batch.num_samples, batch.num_tokens, batch.temperature)).encode())
        assert digest.hexdigest() == expected, f"step {step}"
    assert task.demonstrations.held_out == (), "nothing is measured that nobody asked for"


def test_a_file_of_conversations_needs_no_setting_and_asks_nothing(tmp_path: Path) -> None:
    rows = talks(40) + talks(3)  # three of them twice
    task = read(f"data={write(tmp_path / 'chat.jsonl', rows)}", "data.eval_size=5", "sft.held_out_every=10")
    assert task.prompts == task.held_out == ()
    [part] = task.demonstrations.parts
    held_out = {one.id for one in task.demonstrations.held_out}
    assert len(part.shown) == 35 and len(held_out) == 5 and part.repeated == 3
    assert not held_out & {one.id for one in part.shown}
    one = part.shown[0]
    number = int(one.id.rpartition("/")[2])
    learned = [task.tokenizer.decode(one.tokens[first:end]) for first, end in one.trained]
    assert learned == [f"I say {number % 40}.<eos>", f"{number % 40}, I said.<eos>"]
    cfg = load_config("sft", SftRun, [*LOCAL, "data=chat.jsonl"])
    said = dict(derived(cfg, task))
    assert said["shown"] == "3 rows that come twice or are held out are left out" and "prompts" not in said
    assert said["held out"] == "5 demonstrations, whose loss is measured"


def test_rows_with_questions_stay_questions_beside_messages(tmp_path: Path) -> None:
    rows = [{**a, **b} for a, b in zip(sums(20), talks(20), strict=True)]
    file = write(tmp_path / "both.jsonl", rows)
    assert len(read(f"data={file}", "data.eval_size=2").held_out) == 2
    assert read(f"data={file}", "data.eval_size=2", "data.prompt_column=").held_out == ()


def test_the_two_kinds_of_samples_of_deepseek_v3(tmp_path: Path) -> None:
    """<problem, original response> and <system prompt, problem, R1 response>, as two parts of the same file."""
    file = write(tmp_path / "rows.jsonl", sums(40))
    plain = f"{{source: {file}, response_column: solution}}"
    r1 = f"{{source: {file}, weight: 3, response_column: r1, system_prompt: 'Reflect, then verify.'}}"
    mixture = [f"data.mixture=[{plain}, {r1}]", "data.source=", "data.eval_size=8", "sft.held_out_every=1"]
    task = read("data=file", "data.instruction=Add.", *mixture)
    first, second = task.demonstrations.parts
    assert task.demonstrations.shares == (0.25, 0.75)
    said = [
        words
        for label, words in derived(load_config("sft", SftRun, [*LOCAL, "data=file", *mixture]), task)
        if label == "shown"
    ]
    assert said[1].startswith(f"{file}: {len(second.shown)} demonstrations, 75.0% of what is shown")
    for one, (before, learned) in zip(first.shown, texts(task, first.shown), strict=True):
        i = one.id.rpartition("/")[2]
        assert before == f"<bos><|user|>Add.\n{i} + 5<|assistant|>" and learned == f"{i}+5={int(i) + 5}<eos>"
    for one, (before, learned) in zip(second.shown, texts(task, second.shown), strict=True):
        i = one.id.rpartition("/")[2]
        assert before == f"<bos>Reflect, then verify.<|user|>Add.\n{i} + 5<|assistant|>"
        assert learned == f"<think>hm {i}</think>ok<eos>"
    # 2 rows of the first part and 6 of the second are held out, from both
    held_out = {one.id for one in task.demonstrations.held_out}
    assert 6 <= len(held_out) <= 8 and len(task.demonstrations.held_out) == 8
    assert not held_out & {one.id for part in task.demonstrations.parts for one in part.shown}


def test_what_is_asked_is_shown_by_no_part(tmp_path: Path) -> None:
    asked = write(tmp_path / "asked.jsonl", sums(20))
    rows = write(tmp_path / "rows.jsonl", sums(30))
    talk = [{"messages": chat(row["question"], row["answer"])} for row in sums(30)]
    spoken = write(tmp_path / "chat.jsonl", talk)
    parts = f"data.mixture=[{{source: {rows}}}, {{source: {spoken}}}, {{source: {spoken}, stream: true}}]"
    task = read(f"data={asked}", "data.eval_size=10", parts)
    questions = {prompt.meta["question"] for prompt in task.held_out}
    held_out = {question.split()[0] for question in questions}
    assert len(questions) == 10
    first, second, third = task.demonstrations.parts
    for part in (first, second):
        assert len(part.shown) == 20 and part.repeated == 10
        assert not held_out & {one.id.rpartition("/")[2] for one in part.shown}
    task.demonstrations.begin(0)
    shown = [one.id for step in range(10) for one in task.demonstrations.draw(step, 6, 0)]
    assert len(shown) == 60 and not held_out & {name.rpartition("/")[2] for name in shown}
    assert task.demonstrations.left_out == 10, "the stream passes over the same questions"
    assert third.name == str(spoken)


def test_rows_that_do_not_fit_are_counted_and_left_out_or_refused(tmp_path: Path) -> None:
    long = {"question": "1 " * 60 + "?", "answer": "60", "solution": "", "r1": ""}
    thoughtful = {"question": "7 + 7", "answer": "14", "solution": "1+" * 60, "r1": ""}
    file = write(tmp_path / "rows.jsonl", [*sums(20), long, thoughtful])
    given = [f"data={file}", "data.eval_size=2", "data.solution_column=solution", "data.eval_source=" + str(
        write(tmp_path / "eval.jsonl", sums(4, start=100)))]  # fmt: skip
    sizes = ["engine.max_model_len=64", "evaluation.sampling.max_new_tokens=16"]
    with pytest.raises(ValueError, match=r"row 'rows/train/20' has \d+ tokens, but only 48 fit"):
        read(*given, *sizes)
    task = read(*given, *sizes, "data.too_long=drop")
    [part] = task.demonstrations.parts
    assert (len(part.shown), part.left_out, len(task.prompts)) == (20, 2, 21)
    cfg = load_config("sft", SftRun, [*LOCAL, *given, *sizes])
    assert dict(derived(cfg, task))["shown"] == "2 rows do not fit and are left out"
    messages = [f"data={write(tmp_path / 'chat.jsonl', [*talks(5), {'messages': chat('1 ' * 60, 'no')}])}"]
    with pytest.raises(ValueError, match=r"row 'chat/train/5' has \d+ \+ \d+ tokens.*data\.too_long=drop"):
        read(*messages, *sizes, "data.eval_size=1", "data.seed=2")
    [part] = read(*messages, *sizes, "data.eval_size=1", "data.seed=2", "data.too_long=drop").demonstrations.parts
    assert (len(part.shown), part.left_out) == (4, 1)


def test_plain_texts_with_holes_in_a_new_model(tmp_path: Path) -> None:
    file = write(tmp_path / "code.jsonl", documents(60))
    task = read(f"data={file}", "data.text_column=content", "data.fim_rate=0.5", "data.eval_size=5")
    [part] = task.demonstrations.parts
    holed = [text for _, text in texts(task, part.shown) if "<|fim_hole|>" in text]
    assert 12 <= len(holed) <= 43 and len(part.shown) == 55
    assert len(task.tokenizer) == task.architecture.vocab_size <= 320


def test_a_streamed_part_shows_the_rows_of_the_file_in_their_order(tmp_path: Path) -> None:
    rows = talks(30)
    file = write(tmp_path / "chat.jsonl", rows)
    settings = ["data=file", "data.source=", "data.eval_size=3", "sft.held_out_every=5"]
    task = read(*settings, f"data.mixture=[{{source: {file}, stream: true}}]")
    mixture = task.demonstrations
    mixture.begin(0)
    assert [one.id for one in mixture.held_out] == [f"chat/train/{i}" for i in range(3)]
    shown = [one for step in range(9) for one in mixture.draw(step, 3, 0)]
    assert [one.id for one in shown] == [f"chat/train/{i}" for i in range(3, 30)]
    at_once = read(*settings, f"data.mixture=[{{source: {file}}}]", "sft.held_out_every=0").demonstrations.parts[0]
    assert {one.id: one for one in shown}.items() <= {one.id: one for one in at_once.shown}.items()


@pytest.mark.parametrize("ending", ["jsonl", "jsonl.gz", "parquet"])
def test_a_stream_reads_from_any_row_on(ending: str, tmp_path: Path) -> None:
    rows = [{"text": f"row {i}\u2028of ten", "number": i} for i in range(10)]
    path = tmp_path / f"rows.{ending}"
    lines = "\n\n".join(json.dumps(row, ensure_ascii=False) for row in rows).encode()
    if ending == "parquet":
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path, row_group_size=3)
    else:
        path.write_bytes(gzip.compress(lines) if ending.endswith("gz") else lines)
    records = open_stream(str(path), "data.mixture[0].source")
    for first in (0, 2, 3, 9, 10, 25):
        assert list(records(first)) == [(f"rows/train/{i}", row) for i, row in enumerate(rows)][first:]


def test_a_stream_of_the_hub_passes_over_rows_there(monkeypatch: pytest.MonkeyPatch) -> None:
    def load(path: str, name: str | None, *, split: str, streaming: bool) -> datasets.IterableDataset:
        assert (path, name, split, streaming) == ("owner/name", "main", "train", True)
        return datasets.Dataset.from_list([{"text": str(i)} for i in range(5)]).to_iterable_dataset()

    monkeypatch.setattr(datasets, "load_dataset", load)
    records = open_stream("owner/name:main", "data.mixture[0].source")
    assert list(records(3)) == [("owner/name/train/3", {"text": "3"}), ("owner/name/train/4", {"text": "4"})]


def test_streams_that_cannot_be_read_are_named(tmp_path: Path) -> None:
    key = "data.mixture[1].source"
    with pytest.raises(ValueError, match=r"data\.mixture\[1\]\.source='gsm8k' cannot be read row by row"):
        open_stream("gsm8k", key)
    with pytest.raises(ValueError, match="no such file"):
        open_stream(str(tmp_path / "gone.jsonl"), key)
    (tmp_path / "torn.jsonl").write_text('{"text": "a"}\n{"text"')
    records = open_stream(str(tmp_path / "torn.jsonl"), key)(0)
    assert next(records) == ("torn/train/0", {"text": "a"})
    with pytest.raises(ValueError, match=r"torn\.jsonl' cannot be read on"):
        next(records)
