"""What a user writes outside of the repository: a recipe with its yaml, a loss, a reward; straight from the docs."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.e2e.runs import GRPO_ONLY, LOCAL, TINY

DOCS = Path(__file__).resolve().parents[2] / "docs"
README = DOCS.parent / "README.md"
MAX_LINES = 30
REWARD = """
def mine(completion, answer, **columns):
    return (len(completion) % 7) / 7
"""


def write_blocks(source: Path, folder: Path) -> dict[str, str]:
    """Write every code block of a page that starts with a file's name into a folder."""
    found = {}
    for block in re.findall(r"^```\w+\n(.*?)^```", source.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE):
        if named := re.match(r"# (\w+\.\w+)", block):
            found[named[1]] = block
            (folder / named[1]).write_text(block)
    return found


def rlkit(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """Run the installed command in a folder of the user's own."""
    command = [sys.executable, "-P", "-c", "from rlkit.cli.main import main; main()", *words]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True)


def lines(folder: Path, stage: str) -> list[dict]:
    every = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [line for line in every if line["stage"] == stage]


@pytest.mark.parametrize("page", [DOCS / "write-a-recipe.md", README], ids=["recipe and loss", "reward"])
def test_what_a_user_writes_is_short(page: Path, tmp_path: Path) -> None:
    blocks = write_blocks(page, tmp_path)
    assert blocks and all(len(block.splitlines()) < MAX_LINES for block in blocks.values())


@pytest.mark.slow
def test_a_recipe_of_the_users_own_runs_and_goes_on(tmp_path: Path) -> None:
    write_blocks(DOCS / "write-a-recipe.md", tmp_path)
    (tmp_path / "rewards.py").write_text(REWARD)  # the most natural name
    words = ["run", "./my_recipe.py", *TINY, *LOCAL, "reward=rewards.py:mine", "output_dir=out", "algo.steps=2"]
    first = rlkit(tmp_path, *words, "checkpoint.every=1")
    assert first.returncode == 0, first.stderr
    for stage, steps in (("warm-up", [1, 2, 3, 4]), ("explore", [1, 2]), ("settle", [1, 2])):
        assert [line["step"] for line in lines(tmp_path / "out", stage)] == steps
    assert [line["name"] for line in lines(tmp_path / "out", "eval")] == ["at the end"]
    again = rlkit(tmp_path, *words, "checkpoint.every=1")
    assert "resuming after settle step 2" in again.stdout and "this run is complete" in again.stdout


@pytest.mark.slow
def test_a_loss_of_the_users_own_takes_the_place_of_grpos(tmp_path: Path) -> None:
    write_blocks(DOCS / "write-a-recipe.md", tmp_path)
    (tmp_path / "mine.py").write_text(REWARD)
    files = ["reward=mine.py:mine", "algo.loss_fn=my_loss.py:reinforce", "algo.loss_settings={baseline: 0.1}"]
    done = rlkit(tmp_path, "run", "grpo", *GRPO_ONLY, *LOCAL, *files, "algo.steps=2", "output_dir=out")
    assert done.returncode == 0, done.stderr
    for line in lines(tmp_path / "out", "grpo"):
        assert 0 < line["better_tokens"] < 1
        assert not {"clip_fraction", "kl"} & line.keys(), "they are numbers of GRPO's own loss"


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ("my_loss.py", "is not 'file.py:function'"),
        ("nowhere.py:f", "nowhere.py does not exist"),
        ("my_loss.py:reinforc", "has no function 'reinforc'"),
        ("no_such_package.loss:f", "install it, or use file.py:function"),
        ("my_loss.py:reinforce algo.loss_settings={base: 1}", "unexpected keyword argument 'base'"),
    ],
)
def test_a_loss_that_cannot_be_found_is_refused_before_anything_starts(
    value: str, words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from rlkit.cli import main as cli

    write_blocks(DOCS / "write-a-recipe.md", tmp_path)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit):
        cli.main(["run", "grpo", *GRPO_ONLY, *LOCAL, *f"algo.loss_fn={value}".split(" ", 1), "output_dir=out"])
    printed = capsys.readouterr().err
    assert printed.startswith("error: algo.loss_fn=") and words in printed
    assert not (tmp_path / "out").exists()
