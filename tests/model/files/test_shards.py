"""Folders appear whole or not at all, whenever the writer dies."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from rlkit.model import DeepseekV3
from rlkit.model.files.shards import ShardWriter, read_headers, read_tensor, replaced_folder
from tests.model.tiny import seeded

ROOT = Path(__file__).resolve().parents[3]


def names(folder: Path) -> list[str]:
    return sorted(os.listdir(folder))


def test_saving_over_an_old_checkpoint_keeps_strangers_and_removes_stale_shards(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    seeded(seed=1).save_checkpoint(folder, dtype="fp32", max_shard_bytes=100_000)
    (folder / "tokenizer.json").write_text("{}")
    (folder / "fp8_scales.sft").write_text("of the old weights")
    (folder / "logs").mkdir()
    (folder / "logs" / "config.json").write_text("not ours")
    (folder / "link").symlink_to("tokenizer.json")
    model = seeded(seed=9)
    model.save_checkpoint(folder, dtype="fp32")
    assert names(folder) == ["config.json", "link", "logs", "model.safetensors", "tokenizer.json"]
    assert (folder / "logs" / "config.json").read_text() == "not ours" and (folder / "link").is_symlink()
    assert torch.equal(DeepseekV3.from_checkpoint(folder).lm_head.weight, model.lm_head.weight)
    assert names(tmp_path) == ["model"]


@pytest.mark.parametrize("step", ["save_file", "ShardWriter.finish", "_copy_others", "_sync"])
def test_an_interrupted_save_leaves_the_old_checkpoint(
    step: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = seeded(seed=1)
    old.save_checkpoint(tmp_path / "model", dtype="fp32")

    def killed(*_args: object, **_kwargs: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(f"rlkit.model.files.shards.{step}", killed)
    for target in ("model", "fresh"):
        if (step, target) != ("_copy_others", "fresh"):
            with pytest.raises(KeyboardInterrupt):
                seeded(seed=2).save_checkpoint(tmp_path / target, dtype="fp32")
            assert names(tmp_path) == ["model"]
    assert torch.equal(DeepseekV3.from_checkpoint(tmp_path / "model").lm_head.weight, old.lm_head.weight)


@pytest.mark.slow
def test_what_a_killed_process_left_is_removed_by_the_next_save(tmp_path: Path) -> None:
    """SIGKILL leaves the old folder and a hidden half-written one."""
    old = seeded(seed=1)
    old.save_checkpoint(tmp_path / "model", dtype="fp32")
    script = (
        "import sys, time\n"
        "from rlkit.model.files.shards import replaced_folder\n"
        "with replaced_folder(sys.argv[1]) as folder:\n"
        "    (folder / 'model.safetensors').write_text('half')\n"
        "    print('half', flush=True)\n"
        "    time.sleep(60)\n"
    )
    command = [sys.executable, "-c", script, str(tmp_path / "model")]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None and process.stdout.readline() == b"half\n"
        process.send_signal(signal.SIGKILL)
    assert names(tmp_path) == [".model.partial", "model"]
    assert torch.equal(DeepseekV3.from_checkpoint(tmp_path / "model").lm_head.weight, old.lm_head.weight)
    seeded(seed=2).save_checkpoint(tmp_path / "model", dtype="fp32")
    assert names(tmp_path) == ["model"]


def test_killed_between_the_two_renames_the_old_folder_comes_back(tmp_path: Path) -> None:
    old = tmp_path / ".model.replaced"
    old.mkdir()
    (old / "notes.txt").write_text("kept")
    with replaced_folder(tmp_path / "model") as folder:
        assert (tmp_path / "model" / "notes.txt").read_text() == "kept"
        (folder / "model.safetensors").write_text("new")
    assert names(tmp_path) == ["model"] and names(tmp_path / "model") == ["model.safetensors", "notes.txt"]


def test_a_relative_path_and_missing_parents(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    seeded().save_checkpoint("a/b/model")
    assert names(tmp_path / "a" / "b") == ["model"]
    DeepseekV3.from_checkpoint("a/b/model")


TENSORS = {
    "odd": torch.arange(3).to(torch.float8_e4m3fn),  # 3 bytes: what follows must still be aligned
    "scale": torch.ones(1, 1),
    "bf16": torch.ones(2, 5, dtype=torch.bfloat16),
    "large": torch.arange(40.0),
    "view": torch.arange(12.0).view(3, 4).t(),
    "last": torch.zeros(1),
}


@pytest.mark.parametrize(("limit", "files"), [(10**6, 1), (100, 3), (1, 6)])
def test_shards_hold_every_tensor_once(limit: int, files: int, tmp_path: Path) -> None:
    writer = ShardWriter(tmp_path, limit)
    for name, tensor in TENSORS.items():
        writer.add({name: tensor})
    writer.finish()
    headers = read_headers(tmp_path)
    assert headers.keys() == TENSORS.keys()
    assert len({stored.file for stored in headers.values()}) == files
    for name, tensor in TENSORS.items():
        read = read_tensor(name, headers[name])
        assert read.dtype == tensor.dtype and headers[name].shape == tuple(tensor.shape)
        assert torch.equal(read.float(), tensor.float())
        assert torch.equal(load_file(headers[name].file)[name].float(), tensor.float())


def test_a_tensor_in_two_shards_is_refused(tmp_path: Path) -> None:
    writer = ShardWriter(tmp_path, 1)
    for name in ("a", "b"):
        writer.add({name: torch.ones(1)})
    writer.finish()
    save_file({"a": torch.ones(1), "b": torch.ones(1)}, tmp_path / "model-00002-of-00002.safetensors")
    with pytest.raises(ValueError, match=r"model-00002-of-00002\.safetensors: a is in it, but .* does not say so"):
        read_headers(tmp_path)


def test_strangers_are_linked_not_copied(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "big.bin").write_bytes(b"1")
    inode = (tmp_path / "model" / "big.bin").stat().st_ino
    seeded().save_checkpoint(tmp_path / "model")
    assert (tmp_path / "model" / "big.bin").stat().st_ino == inode
