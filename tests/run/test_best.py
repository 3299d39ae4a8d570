"""`best/` is replaced whole or not at all, by a lower loss alone."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from rlkit.run.best import is_lowest, replacing_best, write_score


def record(folder: Path, *losses: float) -> None:
    lines = [{"stage": "sft", "step": step, "loss": 1.0} for step in range(1, 2 * len(losses) + 1)]
    for line, loss in zip(lines[1::2], losses, strict=True):
        line["held_out_loss"] = loss
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def test_only_a_lower_loss_is_the_best(tmp_path: Path) -> None:
    record(tmp_path, 2.0, 1.5, 1.5, math.nan)
    assert not is_lowest(tmp_path, "sft", 10, 1.5), "an equal one came first"
    assert is_lowest(tmp_path, "sft", 10, 1.4)
    assert is_lowest(tmp_path, "sft", 4, 1.4), "its own line does not count against it"
    assert not is_lowest(tmp_path, "second", 4, 1.6), "a later stage must be better than the earlier one"
    assert not is_lowest(tmp_path, "sft", 10, math.nan)


def write(folder: Path, word: str) -> None:
    with replacing_best(folder) as new:
        new.mkdir()
        (new / "model").write_text(word)
        write_score(new, "sft", 1, 0.5)


def test_a_death_at_any_moment_leaves_a_whole_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path, "first")
    with pytest.raises(KeyboardInterrupt), replacing_best(tmp_path) as new:  # in the middle of writing
        new.mkdir()
        (new / "model").write_text("half")
        raise KeyboardInterrupt
    assert (tmp_path / "best" / "model").read_text() == "first"

    rename, done = Path.rename, []

    def dies(self: Path, target: Path) -> Path:  # between the two renames
        if done:
            raise KeyboardInterrupt
        done.append(target)
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", dies)
    with pytest.raises(KeyboardInterrupt):
        write(tmp_path, "second")
    monkeypatch.setattr(Path, "rename", rename)
    write(tmp_path, "third")
    assert (tmp_path / "best" / "model").read_text() == "third"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["best"], "nothing is left behind"
