"""A run that goes on has the files that it began with, or says which one is another."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path

import pytest

from rlkit.config import GrpoRun
from rlkit.config.compose import load_config
from rlkit.errors import UserError
from rlkit.run import inputs
from rlkit.run.inputs import CONFIG_FILE, INPUTS_FILE, check_same, digest, fingerprints, write_inputs

ROWS = "".join(json.dumps({"question": f"{i} + 1", "answer": str(i + 1)}) + "\n" for i in range(40))


@pytest.fixture
def cfg(tmp_path: Path) -> GrpoRun:
    """A run of which everything comes from files."""
    for name, content in (
        ("rows.jsonl", ROWS),
        ("held.jsonl", ROWS),
        ("mine.py", "def f(completion): return 0.0\n"),
        ("part.py", "def g(completion): return 0.0\n"),
        ("words.txt", "seven\n"),
        ("my_loss.py", "def loss(logprobs_T, pack): ...\n"),
    ):
        (tmp_path / name).write_text(content)
    model = tmp_path / "model"
    model.mkdir()
    for name in ("config.json", "tokenizer.json", "model.safetensors", "chat_template.jinja", "README.md"):
        (model / name).write_text(name)
    words = [
        *(f"output_dir={tmp_path}/run", f"data={tmp_path}/rows.jsonl", f"data.eval_source={tmp_path}/held.jsonl"),
        *(f"model.path={model}", f"reward={tmp_path}/mine.py:f", f"algo.loss_fn={tmp_path}/my_loss.py:loss"),
        f"reward.kwargs={{rewards: [number, {{fn: '{tmp_path}/part.py:g'}}], lists: {{a: '{tmp_path}/words.txt'}}}}",
    ]
    found = load_config("grpo", GrpoRun, words)
    found.output_dir.mkdir()
    write_inputs(found)
    return found


def test_the_same_files_go_on(cfg: GrpoRun) -> None:
    check_same(cfg)
    for file in cfg.output_dir.parent.glob("*.*"):
        os.utime(file, (0, 0))  # copied, touched, checked out again
    (Path(cfg.model.path) / "README.md").write_text("not read by a run")
    check_same(cfg)
    write_inputs(cfg)
    check_same(cfg)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("file", "key"),
    [
        ("rows.jsonl", "data.source"),
        ("held.jsonl", "data.eval_source"),
        ("mine.py", "reward.fn"),
        ("part.py", "reward.kwargs"),
        ("words.txt", "reward.kwargs"),
        ("my_loss.py", "algo.loss_fn"),
        ("model/model.safetensors", "model.path"),
        ("model/config.json", "model.path"),
        ("model/tokenizer.json", "model.path"),
        ("model/chat_template.jinja", "model.path"),
    ],
)
def test_a_replaced_file_is_named(cfg: GrpoRun, file: str, key: str) -> None:
    place = cfg.output_dir.parent / file
    before, times = place.read_text(), place.stat()
    place.write_text(before[:-1] + "#")  # of the same length and age
    os.utime(place, (times.st_atime, times.st_mtime))
    with pytest.raises(UserError) as refused:
        check_same(cfg)
    message = str(refused.value)
    assert place.name in message and key in message and "put it back, or use another output_dir" in message
    place.write_text(before)
    check_same(cfg)
    place.write_text("accepted")
    (cfg.output_dir / INPUTS_FILE).unlink()
    check_same(cfg)
    write_inputs(cfg)
    check_same(cfg)


def test_a_model_in_files_of_other_names_is_another(cfg: GrpoRun) -> None:
    """A base model in one file was replaced by one in two, and the run went on without a word."""
    model = Path(cfg.model.path)
    (model / "notes.md").write_text("not read by a run")
    check_same(cfg)
    (model / "model.safetensors").rename(model / "model-00001-of-00002.safetensors")
    (model / "model-00002-of-00002.safetensors").write_text("x")
    (model / "model.safetensors.index.json").write_text("{}")
    with pytest.raises(UserError) as refused:
        check_same(cfg)
    message = str(refused.value)
    assert "model.path" in message and "gone: model.safetensors;" in message and "and 3 more" in message
    assert "new: model-00001-of-00002.safetensors, model-00002-of-00002.safetensors, model.safetensors.index" in message
    (cfg.output_dir / INPUTS_FILE).unlink()
    check_same(cfg)


@pytest.mark.parametrize("gone", [True, False])
def test_one_file_more_or_less_is_named(cfg: GrpoRun, gone: bool) -> None:
    place = Path(cfg.model.path) / ("chat_template.jinja" if gone else "added_tokens.json")
    place.unlink() if gone else place.write_text("{}")
    with pytest.raises(
        UserError, match=f"{place.name}.*model\\.path" if gone else f"no {place.name}: model\\.path has"
    ):
        check_same(cfg)


def test_a_file_that_a_reward_read_must_still_be_there(cfg: GrpoRun) -> None:
    (cfg.output_dir.parent / "words.txt").unlink()
    with pytest.raises(UserError, match=r"began with words\.txt, which reward\.kwargs.* is gone"):
        check_same(cfg)


def test_settings_are_compared_as_before(cfg: GrpoRun) -> None:
    with pytest.raises(UserError, match=r"holds a run with other settings: seed \(seed was 0, now 1\)"):
        check_same(replace(cfg, seed=1))
    with pytest.raises(UserError, match="already holds a run, and resume=never"):
        check_same(replace(cfg, resume="never"))
    check_same(replace(cfg, dry_run=True))


@pytest.mark.parametrize(("name", "content"), [(CONFIG_FILE, "a: ["), (INPUTS_FILE, '{"a": '), (CONFIG_FILE, "x")])
def test_a_torn_record_is_named(cfg: GrpoRun, name: str, content: str) -> None:
    (cfg.output_dir / name).write_text(content)
    with pytest.raises(UserError, match=f"{name} .*mend it, or use another output_dir"):
        check_same(cfg)


def test_names_that_are_no_files_have_no_fingerprint(tmp_path: Path) -> None:
    words = [f"output_dir={tmp_path}/run", "data=owner/name", "reward=math", "reward.kwargs={note: 'a: b', rate: 1e-3}"]
    assert fingerprints(load_config("grpo", GrpoRun, words)) == {}
    assert fingerprints(load_config("grpo", GrpoRun, ["reward=os.path:join"])) == {}


def test_a_large_file_is_read_in_pieces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its length counts, its first and last bytes, and pieces between; the whole of it where it must."""
    monkeypatch.setattr(inputs, "WHOLE_BYTES", 1000)
    monkeypatch.setattr(inputs, "PIECE_BYTES", 10)
    file, content = tmp_path / "large", bytes(i * 7 % 251 for i in range(5000))
    file.write_bytes(content)
    known = digest(file, sampled=True)
    assert known.startswith("sampled:") and digest(file).startswith("sha256:")
    for place in (0, 4999):
        file.write_bytes(content[:place] + b"\xff" + content[place + 1 :])
        assert digest(file, sampled=True) != known
    for other in (content[:-1], content + b"\0", bytes(5000), b""):
        file.write_bytes(other)
        assert digest(file, sampled=True) != known
    file.write_bytes(content)
    assert digest(file, sampled=True) == known
