from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from rlkit.errors import UserError
from rlkit.run.folder import START, STATE_FILE, Position, newest_checkpoint, save_checkpoint


class Writer:
    """A trainer whose state is one file."""

    def __init__(self, content: str = "weights") -> None:
        self.content = content

    def save(self, folder: Path) -> None:
        (folder / "state.bin").write_text(self.content)


class Dying(Writer):
    def save(self, folder: Path) -> None:
        super().save(folder)
        raise KeyboardInterrupt


def at(stage: str, step: int) -> Position:
    return Position(stage=stage, step=step, weight_version=step, finished=("sft",) if stage == "grpo" else ())


def test_the_furthest_one_is_found_and_old_ones_go(tmp_path: Path) -> None:
    for stage, step in (("sft", 100), ("sft", 200), ("grpo", 5), ("grpo", 10)):
        save_checkpoint(tmp_path, at(stage, step), Writer(), keep=2)  # type: ignore[arg-type]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["grpo-000005", "grpo-000010"]
    assert newest_checkpoint(tmp_path) == (tmp_path / "grpo-000010", at("grpo", 10))


def test_grpo_comes_after_sft_whatever_the_step(tmp_path: Path) -> None:
    save_checkpoint(tmp_path, at("grpo", 1), Writer(), keep=5)  # type: ignore[arg-type]
    save_checkpoint(tmp_path, at("sft", 900), Writer(), keep=5)  # type: ignore[arg-type]
    found = newest_checkpoint(tmp_path)
    assert found is not None and found[1].stage == "grpo"


def test_a_kill_while_writing_leaves_the_older_one(tmp_path: Path) -> None:
    save_checkpoint(tmp_path, at("grpo", 1), Writer(), keep=2)  # type: ignore[arg-type]
    with pytest.raises(KeyboardInterrupt):
        save_checkpoint(tmp_path, at("grpo", 2), Dying(), keep=2)  # type: ignore[arg-type]
    assert newest_checkpoint(tmp_path) == (tmp_path / "grpo-000001", at("grpo", 1))
    # and the next attempt is not disturbed by what the killed one left
    save_checkpoint(tmp_path, at("grpo", 2), Writer("whole"), keep=2)  # type: ignore[arg-type]
    found = newest_checkpoint(tmp_path)
    assert found is not None and (found[0] / "state.bin").read_text() == "whole"


def test_nothing_there_is_not_an_error(tmp_path: Path) -> None:
    assert newest_checkpoint(tmp_path / "nowhere") is None


INCOMPLETE = json.dumps({"stage": "grpo", "step": 1, "weight_version": 0})


@pytest.mark.parametrize("content", [None, "", "{", "[]", '{"stage": "grpo"}', INCOMPLETE])
def test_a_folder_that_is_no_checkpoint_is_named(tmp_path: Path, content: str | None) -> None:
    folder = tmp_path / "grpo-000003"
    folder.mkdir()
    if content is not None:
        (folder / STATE_FILE).write_text(content)
    with pytest.raises(ValueError, match=r"grpo-000003 is not a checkpoint .*remove that folder"):
        newest_checkpoint(tmp_path)


def test_steps_done_by_stage() -> None:
    assert [START.steps_done(stage, 9) for stage in ("sft", "grpo")] == [0, 0]
    assert [at("sft", 4).steps_done(stage, 9) for stage in ("sft", "grpo")] == [4, 0]
    assert [at("grpo", 4).steps_done(stage, 9) for stage in ("sft", "grpo")] == [9, 4]


def test_stages_have_the_names_that_a_recipe_gives_them() -> None:
    """An R1 pipeline runs SFT and RL twice each, under names of their own."""
    position = START
    for stage, step, version in (("cold-start", 1, None), ("cold-start", 2, None), ("reasoning-rl", 1, 1)):
        position = position.after(stage, step, version)
    assert position == Position(stage="reasoning-rl", step=1, weight_version=1, finished=("cold-start",))
    position = position.after("second-sft", 1, None)
    assert position == Position(stage="second-sft", step=1, weight_version=1, finished=("cold-start", "reasoning-rl"))
    assert [position.steps_done(s, 7) for s in ("cold-start", "reasoning-rl", "second-sft", "last-rl")] == [7, 7, 1, 0]
    begun = position.begin("nothing-to-do").after("last-rl", 1, 2)
    assert [begun.has_begun(s) for s in ("cold-start", "nothing-to-do", "last-rl", "another")] == [True] * 3 + [False]


@pytest.mark.parametrize("stage", ["", "eval", "phase/one", "../up", "phase one", ".hidden", "a.tmp"])
def test_a_name_that_no_folder_of_checkpoints_can_have_is_refused(stage: str) -> None:
    for begin in (START.begin, at("sft", 4).begin, lambda name: at("sft", 4).after(name, 1, 1)):
        with pytest.raises(UserError, match=r"is no name for a stage.*use letters, digits"):
            begin(stage)


def test_a_kill_while_an_old_one_is_deleted_does_not_block_the_next_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_checkpoint(tmp_path, at("grpo", 1), Writer(), keep=1)  # type: ignore[arg-type]
    real = shutil.rmtree

    def half_deleted(path: Path, *args: object) -> None:
        (path / STATE_FILE).unlink()
        raise KeyboardInterrupt

    monkeypatch.setattr(shutil, "rmtree", half_deleted)
    with pytest.raises(KeyboardInterrupt):
        save_checkpoint(tmp_path, at("grpo", 2), Writer(), keep=1)  # type: ignore[arg-type]
    monkeypatch.setattr(shutil, "rmtree", real)
    assert newest_checkpoint(tmp_path) == (tmp_path / "grpo-000002", at("grpo", 2))
    save_checkpoint(tmp_path, at("grpo", 3), Writer(), keep=1)  # type: ignore[arg-type]
    assert [path.name for path in tmp_path.iterdir()] == ["grpo-000003"]


class Ranks(Writer):
    """Two ranks that write into a folder of their own."""

    def save(self, folder: Path) -> None:
        for rank in range(2):
            (folder / "ranks").mkdir(exist_ok=True)
            (folder / "ranks" / f"{rank}.bin").write_bytes(bytes([rank]) * 5000)


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda file: file.write_bytes(file.read_bytes()[:-1]), "is not as it was written"),
        (lambda file: file.write_bytes(b""), "is not as it was written"),
        (lambda file: file.write_bytes(bytes(5000)), "is not as it was written"),
        (lambda file: file.write_bytes(file.read_bytes() + b"0"), "is not as it was written"),
        (lambda file: file.unlink(), "is gone"),
    ],
)
@pytest.mark.parametrize("keep", [1, 2])
def test_a_torn_checkpoint_is_named_and_the_older_one_offered(
    damage: Callable[[Path], object], words: str, keep: int, tmp_path: Path
) -> None:
    for step in (1, 2, 3):
        save_checkpoint(tmp_path, at("grpo", step), Ranks(), keep=keep)  # type: ignore[arg-type]
    damage(tmp_path / "grpo-000003" / "ranks" / "1.bin")
    way_on = "goes on from grpo-000002" if keep == 2 else "begins anew, as there is no older one"
    with pytest.raises(UserError) as refused:
        newest_checkpoint(tmp_path)
    message = str(refused.value)
    assert f"{tmp_path / 'grpo-000003'} is torn: its file ranks/1.bin {words}" in message
    assert f"remove that folder ({tmp_path / 'grpo-000003'})" in message and way_on in message
    shutil.rmtree(tmp_path / "grpo-000003")
    found = newest_checkpoint(tmp_path)
    assert found == ((tmp_path / "grpo-000002", at("grpo", 2)) if keep == 2 else None)


def test_a_torn_state_offers_the_older_one_too(tmp_path: Path) -> None:
    for step in (1, 2):
        save_checkpoint(tmp_path, at("grpo", step), Writer(), keep=2)  # type: ignore[arg-type]
    state = tmp_path / "grpo-000002" / STATE_FILE
    state.write_text(state.read_text()[:20])
    with pytest.raises(UserError, match=r"grpo-000002 is not a checkpoint .*the run goes on from grpo-000001"):
        newest_checkpoint(tmp_path)


def test_a_checkpoint_of_an_earlier_version_has_no_fingerprints(tmp_path: Path) -> None:
    save_checkpoint(tmp_path, at("grpo", 1), Writer(), keep=2)  # type: ignore[arg-type]
    state = tmp_path / "grpo-000001" / STATE_FILE
    state.write_text(json.dumps({key: value for key, value in json.loads(state.read_text()).items() if key != "files"}))
    assert newest_checkpoint(tmp_path) == (tmp_path / "grpo-000001", at("grpo", 1))
