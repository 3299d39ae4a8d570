"""Rewards are found by name, import path, file and entry point, and nothing is taken that could be meant otherwise."""

from __future__ import annotations

import pickle
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import rewards
from rewards import Reward, RewardError, Sample
from rewards.registry import BUILT_IN

ROOT = Path(__file__).parents[2]
SAMPLES = [Sample("3 + 4", "it is 7", meta={"answer": "7"}), Sample("1 + 1", "3", meta={"answer": "2"})]


def values(fn: Callable[..., Any] | str, **kwargs: Any) -> list[float | None]:
    return [reward.value for reward in rewards.load(fn, **kwargs)(SAMPLES)]


def test_files_modules_and_their_errors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    code = "from dataclasses import dataclass\n@dataclass\nclass Box:\n    n: int\nLIMIT = 3\n"
    code += "def short(completion, most=LIMIT):\n    return Box(len(completion)).n <= most\n"
    (tmp_path / "mine.py").write_text(code)
    (tmp_path / "broken.py").write_text("import no_such_module_here\n")
    (tmp_path / "leaves.py").write_text("import sys\nsys.exit(0)\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    for place in ("mine.py", str(tmp_path / "mine.py"), "mine"):
        assert values(f"{place}:short") == [0.0, 1.0] and values(f"{place}:short", most=7) == [1.0, 1.0]
    for name, message in (
        ("mine.py:shrt", r"mine\.py has no function 'shrt'; did you mean 'short'\?"),
        ("mine:zzz", r"mine has no function 'zzz'; check the part after"),
        ("mine.py:LIMIT", r"mine\.py:LIMIT' is a int, not a function"),
        ("gone.py:f", r"reward file .*gone\.py does not exist"),
        ("gone:f", r"gone cannot be imported: No module named 'gone'; start in .* or use file\.py:function"),
        ("broken.py:f", r"broken\.py cannot be imported: ModuleNotFoundError: .*no_such_module_here"),
        ("leaves.py:f", r"leaves\.py cannot be imported: SystemExit: 0"),
        ("no_such_package:f", r"no_such_package cannot be imported"),
        ("numbr", r"no reward is called 'numbr'; did you mean 'number'\?"),
        ("zzz", r"no reward is called 'zzz'; there are .*number"),
        (":f", r"reward module .*cannot be imported"),
    ):
        with pytest.raises(RewardError, match=message):
            rewards.load(name)


def test_a_loaded_reward_pickles_by_name_to_a_process_in_another_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "mine.py").write_text("def at_most(completion, most):\n    return len(completion) <= most\n")
    monkeypatch.chdir(tmp_path)
    pickled = pickle.dumps(rewards.load("mine.py:at_most", most=3))
    script = (
        "import pickle, sys, rewards; fn = pickle.loads(sys.stdin.buffer.read());"
        "print([r.value for r in fn([rewards.Sample('', 'abc'), rewards.Sample('', 'abcd')])], fn)"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, input=pickled, capture_output=True)
    assert done.stdout.decode() == f"[1.0, 0.0] <reward '{tmp_path.resolve()}/mine.py:at_most' {{'most': 3}}>\n"
    assert pickle.loads(pickle.dumps(rewards.load("number")))([Sample("", "", meta={"answer": 1})])[0].value == 0.0


def test_a_setting_that_only_looks_like_a_file_stays_as_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "solve.py").write_text("")
    monkeypatch.chdir(tmp_path)
    for text in ("see solve.py: then go", "gone.py:f", "solve.py: then go", "x" * 9999 + ".py:f", "\0.py:f"):
        assert rewards.load(lambda completion, note: Reward(0.0, note), note=text).settings == {"note": text}
    judge = rewards.load(lambda completion, fn: 1.0, fn="solve.py:f")
    assert judge.settings == {"fn": f"{tmp_path.resolve()}/solve.py:f"}


def test_an_installed_package_can_register_a_reward(tmp_path: Path) -> None:
    folder = tmp_path / "theirs-1.0.dist-info"
    folder.mkdir()
    (folder / "METADATA").write_text("Metadata-Version: 2.1\nName: theirs\nVersion: 1.0\n")
    (folder / "entry_points.txt").write_text("[rlkit.rewards]\nempty = theirs:is_empty\n")
    (tmp_path / "theirs.py").write_text("def is_empty(completion):\n    return not completion\n")
    script = "import rewards; print(rewards.names(), rewards.load('empty')([rewards.Sample('', '')])[0].value)"
    path = f"{tmp_path}:{ROOT}"
    done = subprocess.run([sys.executable, "-c", script], env={"PYTHONPATH": path}, capture_output=True, text=True)
    expected = tuple(sorted([*BUILT_IN, "empty"]))
    assert done.stdout == f"{expected} 1.0\n", done.stderr


def install(folder: Path, name: str, *points: str) -> None:
    """What an installed package leaves on the search path: its name and its entry points."""
    (folder / f"{name}-1.0.dist-info").mkdir()
    (folder / f"{name}-1.0.dist-info" / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    lines = "\n".join(("[rlkit.rewards]", *points, ""))
    (folder / f"{name}-1.0.dist-info" / "entry_points.txt").write_text(lines)


@pytest.mark.parametrize("name", ["math", "format", "number", "composite", "code", "shared"])
def test_a_name_that_means_several_rewards_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """A plugin named like a built-in reward was ignored in silence, and of two plugins the one that came last won."""
    install(
        tmp_path,
        "theirs",
        *(f"{one} = theirs:f" for one in ("math", "format", "number", "composite", "code", "shared")),
    )
    install(tmp_path, "others", "shared = others:g", "own = theirs:f")
    (tmp_path / "theirs.py").write_text("def f(completion):\n    return 0.25\n")
    monkeypatch.syspath_prepend(tmp_path)
    built_in = "others:g" if name == "shared" else BUILT_IN[name]
    owner = "the package others" if name == "shared" else "rlkit"
    both = ["rewards.number:number", name]
    for load in (
        lambda: rewards.load(name),
        lambda: rewards.from_trl(name),
        lambda: rewards.load("rewards.composite:Composite", rewards=both),
    ):
        with pytest.raises(RewardError, match=rf"'{name}' is the name of several rewards") as raised:
            load()
        assert f"'{built_in}' of {owner}" in str(raised.value)
        assert "'theirs:f' of the package theirs" in str(raised.value)
    assert values("theirs:f") == values("own") == [0.25, 0.25]
    assert {name, "own"} <= set(rewards.names())


@pytest.mark.parametrize(
    ("point", "message"),
    [
        ("mine = theirs", "reward 'mine' of the package theirs is 'theirs' in its entry points, which is not"),
        ("mine = theirs:", "which is not 'package.module:function'; correct it there"),
        ("mine = theirs:g", "theirs has no function 'g'; check"),
        ("mine = gone.away:f", "gone.away cannot be imported: No module named 'gone'"),
    ],
)
def test_an_entry_point_that_leads_nowhere_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, point: str, message: str
) -> None:
    install(tmp_path, "theirs", point)
    (tmp_path / "theirs.py").write_text("def f(completion):\n    return 0.25\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(RewardError, match=re.escape(message)):
        rewards.load("mine")


def test_two_entries_for_one_reward_are_no_contradiction(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install(tmp_path, "theirs", "mine = theirs:f [extra]", f"number = {BUILT_IN['number']}")
    install(tmp_path, "others", "mine = theirs:f")
    (tmp_path / "theirs.py").write_text("def f(completion):\n    return 0.25\n")
    monkeypatch.syspath_prepend(tmp_path)
    assert values("mine") == [0.25, 0.25] and rewards.load("number").name == "number"


def test_a_file_named_like_an_installed_module_is_loaded_by_its_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`rewards.py` is the most natural name of all."""
    (tmp_path / "home").mkdir()
    for name in ("rewards", "json", "math", "tokenizers", "recipes", "home/mine"):
        (tmp_path / f"{name}.py").write_text("from rewards import Reward\ndef f(completion):\n    return Reward(0.5)\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    for name in ("rewards", "json", "math", "tokenizers", "recipes"):
        assert values(f"{name}.py:f") == [0.5, 0.5]
        with pytest.raises(RewardError, match=rf"installed module; for the file in .* write '{name}\.py:f'"):
            rewards.load(f"{name}:f")
    judge = rewards.load("~/mine.py:f")
    assert judge.name == f"{tmp_path}/home/mine.py:f" and judge(SAMPLES)[0].value == 0.5
    with pytest.raises(RewardError, match=r"reward file .*/gone\.py does not exist"):
        rewards.load("~/gone.py:f")
