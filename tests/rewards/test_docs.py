"""What docs/write-a-reward.md says is so."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import get_args

import rewards
from rewards import Sample
from rewards.adapters import SHAPES
from rewards.attacks import fuzz_texts
from rewards.audit import audit
from rewards.extract import Extraction
from rewards.registry import BUILT_IN
from rlkit.config.compose import compose_dict

ROOT = Path(__file__).resolve().parents[2]
FRONT = (ROOT / "README.md").read_text()
PAGE = (ROOT / "docs" / "write-a-reward.md").read_text()


def table(heading: str) -> list[str]:
    """First cells of the table under a heading, without the header."""
    section = PAGE.partition(f"## {heading}")[2].partition("\n## ")[0]
    rows = [line.split("|")[1].strip() for line in section.splitlines() if line.startswith("|")]
    return [cell.strip("`") for cell in rows[2:]]


def test_every_built_in_reward_is_listed() -> None:
    assert set(table("What is built in")) == set(BUILT_IN)


def test_every_shape_is_listed_by_the_parameter_that_tells_it() -> None:
    marks = {shape.marks[0] for shape in SHAPES.values()}
    assert set(table("Shapes")) == marks


def test_the_settings_in_the_table_are_those_the_rewards_take() -> None:
    needed = {"length": {"max_completion_len": 9, "soft_punish_cache": 3}, "cosine": {"fn": "number", "max_len": 9}}
    needed |= {"judge": {"endpoint": "policy", "rubric": "{reply_a} {reply_b}"}, "words": {"wanted": ["please"]}}
    seen = 0
    for line in PAGE.splitlines():
        cells = [cell.strip() for cell in line.split("|")]
        name = cells[1].strip("`") if len(cells) == 5 else ""
        if name in BUILT_IN and name != "composite":
            settings = {key: typed(text) for key, text in re.findall(r"`([a-z_]+)=([^`]+)`", cells[3])}
            rewards.load(name, **needed.get(name, {}), **settings).close()
            seen += len(settings)
    assert seen >= 9


def test_every_extraction_of_math_is_explained_and_the_examples_hold() -> None:
    assert all(f"- `{mode}`:" in PAGE for mode in get_args(Extraction))
    judge = rewards.load("math", extraction="last", workers=1)
    section = PAGE.partition("Two answers are the same if")[2].partition("An answer that cannot")[0]
    same, _, different = section.partition("They are not the same")
    for pairs, value in ((same, 1.0), (different, 0.0)):
        found = re.findall(r"`([^`]+)`\s+and\s+`([^`]+)`", pairs)
        assert len(found) >= 2
        for gold, answer in found:
            assert judge([Sample("", rf"\boxed{{{answer}}}", meta={"answer": gold})])[0].value == value, (gold, answer)
    assert [judge([Sample("", "It is $9$, which took 2 steps", meta={"answer": a})])[0].value for a in "92"] == [0, 1]
    judge.close()


def typed(text: str) -> object:
    """A setting as YAML reads it."""
    return int(text) if re.fullmatch(r"-?\d+", text) else {"false": False, "true": True}.get(text, text)


def test_the_first_example_passes_its_audit(tmp_path: Path) -> None:
    code = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)[0]
    (tmp_path / "brevity.py").write_text(code)
    found = list(audit(f"{tmp_path}/brevity.py:brevity", {"limit": 80}))
    assert [finding.result for finding in found] == ["pass"] * 7


def test_the_example_of_the_front_page_passes_its_audit(tmp_path: Path) -> None:
    code = next(block for block in re.findall(r"```python\n(.*?)```", FRONT, re.DOTALL) if "# mine.py" in block)
    (tmp_path / "mine.py").write_text(code)
    found = list(audit(f"{tmp_path}/mine.py:mine", {}))
    assert [finding.result for finding in found] == ["pass"] * 7
    judge = rewards.load(f"{tmp_path}/mine.py:mine")
    texts = ["<think>so</think><answer>7</answer>", "<think> so <answer>7", "<think>hm <answer>7</answer>"]
    assert [reward.value for reward in judge([Sample("", text, meta={"answer": "7"}) for text in texts])] == [1, 0, 0]


def test_the_count_of_faults_and_texts_is_right(tmp_path: Path) -> None:
    (tmp_path / "naive.py").write_text("def naive(completion, answer):\n    return answer in completion\n")
    *_, tricks = audit(f"{tmp_path}/naive.py:naive", {})
    assert tricks.check == "known tricks" and len(tricks.details) == 9 and "in nine ways" in PAGE
    assert f"{len(fuzz_texts('x'))} hostile texts" in PAGE


def test_the_commands_for_composites_are_read_as_meant() -> None:
    commands = [line for line in PAGE.splitlines() if line.startswith("reward=composite")]
    assert len(commands) == 2
    added, routed = (compose_dict("grpo", shlex.split(line))["reward"]["kwargs"] for line in commands)
    assert (
        added["rewards"][2] == {"fn": "brevity.py:brevity", "kwargs": {"limit": 80}}
        and added["rewards"][1]["weight"] == 0.1
    )
    assert routed["by"] == "task" and routed["rewards"]["python"] == [{"fn": "code"}, {"fn": "format", "weight": 0.1}]
