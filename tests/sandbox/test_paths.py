"""Removing what a job left, whatever it built there."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from sandbox import Limits, Sandbox, paths


def dig(folder: Path, depth: int, name: str) -> None:
    """Folders below each other, deeper than a path can say."""
    home = os.open(".", os.O_RDONLY)
    os.chdir(folder)
    try:
        for _ in range(depth):
            os.mkdir(name)
            os.chdir(name)
    finally:
        os.chdir(home)
        os.close(home)


@pytest.mark.slow
def test_a_tree_of_any_depth_goes(tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    tree.mkdir()
    dig(tree, 3000, "d" * 200)
    (tree / "a" / "b").mkdir(parents=True)
    for place in (tree, tree / "a", tree / "a" / "b"):
        (place / "file").write_text("x")
        os.mkfifo(place / "pipe")
    (tree / "a" / "b").chmod(0)
    tree.chmod(0)
    paths.remove(str(tree))
    assert not tree.exists()


def test_links_are_removed_and_not_followed(tmp_path: Path) -> None:
    outside, tree = tmp_path / "outside", tmp_path / "tree"
    (tree / "inner").mkdir(parents=True)
    outside.mkdir(mode=0o750)
    (outside / "file").write_text("kept")
    (tree / "link").symlink_to(outside)
    (tree / "inner" / "link").symlink_to(outside / "file")
    paths.remove(str(tree))
    assert not tree.exists() and (outside / "file").read_text() == "kept"
    (tmp_path / "alias").symlink_to(outside)
    paths.remove(str(tmp_path / "alias"))
    assert (outside / "file").read_text() == "kept" and outside.stat().st_mode & 0o777 == 0o750
    paths.remove(str(tmp_path / "absent"))


def test_what_cannot_be_removed_is_left_and_the_rest_goes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "tree" / "a").mkdir(parents=True)
    for name in ("fixed", "free"):
        (tmp_path / "tree" / "a" / name).write_text("x")
    fixed = (tmp_path / "tree" / "a" / "fixed").stat().st_ino
    unlink = os.unlink

    def refused(name: str, *, dir_fd: int) -> None:
        if os.lstat(name, dir_fd=dir_fd).st_ino == fixed:
            raise PermissionError(1, "immutable", name)
        unlink(name, dir_fd=dir_fd)

    with monkeypatch.context() as patch:
        patch.setattr(os, "unlink", refused)
        paths.remove(str(tmp_path / "tree"))
    (left,) = (tmp_path / "tree").iterdir()
    assert left.stat().st_ino == fixed


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::sandbox.SandboxWarning")
@pytest.mark.parametrize("level", ["namespaces", "landlock"])
def test_a_job_that_digs_deep_leaves_nothing(level: str) -> None:
    program = "import os\nfor _ in range(3000):\n    os.mkdir('d' * 200)\n    os.chdir('d' * 200)"
    with Sandbox(level, workers=1, limits=Limits(disk_mb=512)) as box:
        box.run(program)
        assert box.run("import os; print(os.listdir())").stdout == "['main.py']\n"
    assert not list(Path("/tmp").glob(f"sandbox-*/box/{'d' * 200}"))
