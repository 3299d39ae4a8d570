"""Reward functions of other libraries run in a recipe as they are, alone and added up."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from recipes import grpo
from tests.e2e.runs import GRPO_ONLY, LOCAL

# From TRL's documentation (docs/source/grpo_trainer.md, examples 1, 2 and 6), word for word.
TRL = r'''
import re


def reward_func(completion_ids, **kwargs):
    """Reward function that assigns higher scores to longer completions (in terms of token count)."""
    return [float(len(ids)) for ids in completion_ids]


def format_reward_func(completions, **kwargs):
    """Reward function that checks if the completion has a specific format."""
    pattern = r"^<think>.*?</think><answer>.*?</answer>$"
    completion_contents = [completion[0]["content"] for completion in completions]
    matches = [re.match(pattern, content) for content in completion_contents]
    return [1.0 if match else 0.0 for match in matches]


def logging_reward_func(completions, ground_truth, log_extra=None, log_metric=None, **kwargs):
    extracted = [re.search(r"\\boxed\{(.*?)\}", c) for c in completions]
    extracted = [m.group(1) if m else None for m in extracted]
    rewards = [1.0 if e == gt else 0.0 for e, gt in zip(extracted, ground_truth)]

    if log_extra:
        log_extra("golden_answer", list(ground_truth))
        log_extra("extracted_answer", [e or "[none]" for e in extracted])

    if log_metric:
        log_metric("accuracy", sum(rewards) / len(rewards))

    return rewards
'''
# From verl's documentation (docs/preparation/reward_function.rst), with a look at the arguments that it does not use.
VERL = """
def my_reward_fn(data_source, solution_str, ground_truth, extra_info=None):
    assert data_source == "sums" and int(ground_truth) < 20 and extra_info == {"split": "train"}
    return len(solution_str)/100
"""
SMALL = [word for word in GRPO_ONLY if not word.startswith("data.")]


@pytest.fixture
def rows(tmp_path: Path) -> str:
    """A dataset with the columns of all three, verl's own layout among them."""
    path = tmp_path / "rows.jsonl"
    with path.open("w") as file:
        for a in range(1, 10):
            for b in range(1, 10):
                gold = str(a + b)
                row = {"question": f"{a} + {b}", "answer": gold, "ground_truth": gold, "data_source": "sums"}
                row |= {"reward_model": {"style": "rule", "ground_truth": gold}, "extra_info": {"split": "train"}}
                file.write(json.dumps(row) + "\n")
    return str(path)


def steps(rows: str, out: Path, *overrides: str) -> list[dict]:
    data = [f"data={rows}", "data.train_size=40", "data.eval_size=8", "algo.steps=1", f"output_dir={out}"]
    grpo.main([*SMALL, *LOCAL, *data, *overrides])
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return [line for line in lines if line["stage"] == "grpo"]


@pytest.mark.slow
def test_functions_of_trl_and_verl_train_unchanged(rows: str, tmp_path: Path) -> None:
    (tmp_path / "theirs.py").write_text(TRL + VERL)
    for name, scale in (("reward_func", 1.0), ("my_reward_fn", None)):
        found = steps(rows, tmp_path / name, f"reward={tmp_path}/theirs.py:{name}")
        assert [line["masked"] for line in found] == [0] and found[0]["reward"] > 0
        if scale is not None:  # TRL's example pays one for each token
            assert [line["reward"] for line in found] == pytest.approx([line["length"] for line in found])


@pytest.mark.slow
def test_a_task_column_chooses_their_sum_from_the_command_line(rows: str, tmp_path: Path) -> None:
    (tmp_path / "theirs.py").write_text(TRL + VERL)
    file = f"{tmp_path}/theirs.py"
    entries = [
        f"{{fn: '{file}:reward_func', weight: 0.5}}",
        f"{{fn: '{file}:format_reward_func', kwargs: {{conversational: true}}}}",
        f"{{fn: '{file}:logging_reward_func', weight: 1.0}}",
        f"{{fn: '{file}:my_reward_fn', weight: 0}}",
        "{fn: repetition, weight: 0.1, kwargs: {ngram_size: 2}}",
    ]
    table = f"reward.kwargs.rewards={{sums: [{', '.join(entries)}]}}"
    [first] = steps(rows, tmp_path / "run", "reward=composite", "reward.kwargs.by=data_source", table)
    assert first["masked"] == 0
    # half a point for each token, at most two points for form and answer, at most 0.1 off for repetition
    assert 0.5 * first["length"] - 0.1 <= first["reward"] <= 0.5 * first["length"] + 2.0
