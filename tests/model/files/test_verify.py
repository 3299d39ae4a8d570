"""Two checkpoints compared tensor by tensor, and the commands that do it."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from rlkit.cli.main import main
from rlkit.errors import UserError
from rlkit.model.files.verify import compare_checkpoints, tensor_hash
from tests.model.tiny import seeded

BASE = {"a": torch.arange(6.0).view(2, 3), "b": torch.ones(4, dtype=torch.bfloat16), "c": torch.zeros(2)}
CHANGES = {
    "nothing": ({}, []),
    "a value": ({"a": torch.arange(6.0).view(2, 3) + torch.eye(2, 3)}, [("a", "values")]),
    "the sign of zero": ({"c": -torch.zeros(2)}, [("c", "values")]),
    "a shape": ({"a": torch.arange(6.0).view(3, 2)}, [("a", "shape")]),
    "a dtype": ({"b": torch.ones(4, dtype=torch.float16)}, [("b", "dtype")]),
    "one more": ({"d": torch.ones(1)}, [("d", "missing")]),
    "one less": ({"b": None}, [("b", "missing")]),
    "several": ({"a": torch.ones(2, 3), "c": None}, [("a", "values"), ("c", "missing")]),
}  # fmt: skip


@pytest.mark.parametrize("name", CHANGES)
def test_every_kind_of_difference_is_found(name: str, tmp_path: Path) -> None:
    changes, expected = CHANGES[name]
    for folder, tensors in (("a", BASE), ("b", {k: t for k, t in (BASE | changes).items() if t is not None})):
        (tmp_path / folder).mkdir()
        save_file(tensors, tmp_path / folder / "model.safetensors")
    done: list[int] = []
    found = [(row.tensor, row.what) for row in compare_checkpoints(tmp_path / "a", tmp_path / "b", done.append)]
    assert found == expected
    assert sum(done) == len(BASE.keys() | changes.keys())
    assert len(list(compare_checkpoints(tmp_path / "b", tmp_path / "a"))) == len(expected)


def test_the_hash_is_that_of_the_bytes() -> None:
    for tensor in (BASE["a"], BASE["b"], BASE["a"].t(), torch.tensor(3.0), torch.zeros(0)):
        data = tensor.contiguous().flatten().view(torch.uint8).tolist()
        assert tensor_hash(tensor) == hashlib.sha256(bytes(data)).hexdigest()
    assert tensor_hash(torch.ones(2, dtype=torch.float8_e4m3fn)) == hashlib.sha256(b"\x38\x38").hexdigest()


def rlkit(*words: str | Path) -> int:
    """The command's exit code."""
    try:
        main(["checkpoint", *map(str, words)])
    except SystemExit as stop:
        return stop.code if isinstance(stop.code, int) else 1
    return 0


# The tiny model: 10 weights in the dense layer, 36 in each of the two others, embedding, norm and head: 85.
@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("saved")
    seeded().save_checkpoint(folder / "one", dtype="fp32")
    seeded().save_checkpoint(folder / "many", dtype="fp32", max_shard_bytes=100_000)
    return folder


def test_verify_says_what_a_sound_checkpoint_holds(saved: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert rlkit("verify", saved / "one") == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].endswith("weights (85 in F32) in 1 files") and lines[1:] == [
        "complete, finite, and as config.json says"
    ]


def test_verify_ignores_how_tensors_are_spread(saved: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert rlkit("verify", saved / "one", saved / "many") == 0
    assert capsys.readouterr().out == "the same 85 tensors\n"


def test_verify_lists_differences_in_a_table(saved: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tensors = load_file(saved / "one" / "model.safetensors")
    del tensors["lm_head.weight"]
    tensors["model.norm.weight"] = tensors["model.norm.weight"] + 1
    save_file(tensors, tmp_path / "model.safetensors")
    assert rlkit("verify", saved / "one", tmp_path) == 1
    header, head, norm, count = capsys.readouterr().out.splitlines()
    assert header.split() == ["tensor", "differs", "in", "A", "B"]
    assert head.split() == ["lm_head.weight", "missing", "F32", "[96,", "64]", "-"]
    hashes = [tensor_hash(load_file(saved / "one" / "model.safetensors")["model.norm.weight"])[:16]]
    assert norm.split() == ["model.norm.weight", "values", *hashes, tensor_hash(tensors["model.norm.weight"])[:16]]
    assert count == "2 of 85 tensors differ"


def test_verify_lists_faults_in_a_table(saved: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tensors = load_file(saved / "one" / "model.safetensors")
    tensors["model.norm.weight"][3] = float("nan")
    del tensors["lm_head.weight"]
    save_file(tensors, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_bytes((saved / "one" / "config.json").read_bytes())
    assert rlkit("verify", tmp_path) == 1
    _, header, head, norm, count = capsys.readouterr().out.splitlines()
    assert header.split() == ["file", "tensor", "problem"]
    assert head.split()[1:3] == ["lm_head.weight", "missing;"]
    assert norm.split()[:6] == ["model.safetensors", "model.norm.weight", "a", "number", "is", "NaN"]
    assert count == "faults: 2"


def test_a_long_table_is_cut(saved: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save_file({"other": torch.ones(1)}, tmp_path / "model.safetensors")
    assert rlkit("verify", saved / "one", tmp_path) == 1
    lines = capsys.readouterr().out.splitlines()
    assert lines[-2:] == ["and 36 more", "86 of 86 tensors differ"] and len(lines) == 53


def test_convert_there_and_back(saved: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for source, target, dtype in (("one", "a", "fp8"), (tmp_path / "a", "b", "bf16"), (tmp_path / "b", "c", "fp8")):
        assert rlkit("convert", saved / source, tmp_path / target, "--dtype", dtype, "--max-shard-gb", "0.0001") == 0
        assert capsys.readouterr().out == f"{tmp_path / target}: 85 weights in {dtype}\n"
    assert len(list((tmp_path / "b").glob("*.safetensors"))) > 2
    assert rlkit("verify", tmp_path / "a", tmp_path / "c") == 0
    assert rlkit("verify", tmp_path / "a", tmp_path / "b") == 1


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["verify", "nowhere"], "error: nowhere: no such folder"),
        (["verify", "nowhere", "nowhere"], "error: nowhere: neither model.safetensors nor"),
        (["convert", "nowhere", "out", "--dtype", "fp8"], "error: nowhere: no such folder"),
        (["convert", "nowhere", "out"], "the following arguments are required: --dtype"),
        (["convert", "nowhere", "out", "--dtype", "int8"], "invalid choice: 'int8'"),
        (["compare", "a", "b"], "'rlkit checkpoint compare' is not a command; there are verify, convert"),
    ],
)
def test_mistakes_are_answered_in_one_line(
    words: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as stop:
        main(["checkpoint", *words])
    assert stop.value.code not in (0, None)
    assert message in capsys.readouterr().err + str(stop.value.code)
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("size", ["nan", "inf", "0", "-1"])
def test_a_shard_needs_a_size(size: str, saved: Path, tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match=rf"^error: --max-shard-gb={size}(\.0)? must be .*5 is the default"):
        words = [str(saved / "many"), str(tmp_path / "out"), "--dtype", "bf16", "--max-shard-gb", size]
        main(["checkpoint", "convert", *words])


@pytest.mark.parametrize("bug", [ValueError("a bug"), KeyError("a bug")])
def test_a_bug_keeps_its_traceback_and_a_mistake_is_one_line(
    bug: Exception, saved: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def planted(*_: object) -> None:
        raise bug

    monkeypatch.setattr("rlkit.cli.checkpoint.checkpoint_faults", planted)
    with pytest.raises(type(bug), match="a bug") as raised:
        main(["checkpoint", "verify", str(saved / "many")])
    assert raised.value is bug and raised.traceback[-1].name == "planted"
    bug = UserError("key=value: mend it")
    with pytest.raises(SystemExit) as stop:
        main(["checkpoint", "verify", str(saved / "many")])
    assert stop.value.code == "error: key=value: mend it"


def test_usage_names_the_commands(capsys: pytest.CaptureFixture[str]) -> None:
    assert rlkit() == rlkit("--help") == 0
    assert capsys.readouterr().out.count("rlkit checkpoint convert IN OUT --dtype bf16|fp8|fp8_weights|fp32") == 2
