"""What `rlkit eval` refuses, and how a choice of sampling lies over a suite's own."""

from __future__ import annotations

from typing import Any

import pytest

from rlkit.config import EvalRun, SamplingChoice, SamplingConfig, SuiteConfig
from rlkit.errors import UserError
from tests.config.variants import but, default

OWN = SamplingConfig(temperature=0.6, top_p=0.95, max_new_tokens=64)


def choice(**values: Any) -> SamplingChoice:
    return SamplingChoice(**{"temperature": None, "top_p": None, "max_new_tokens": None} | values)


def suite(**values: Any) -> SuiteConfig:
    given: dict[str, Any] = {
        "title": "Sums",
        "about": "made up",
        "source": "reasoning_gym",
        "tasks": {"chain_sum": {}},
        "size": 20,
        "prompt_column": "question",
        "answer_column": "answer",
        "instruction": "",
        "reward": "number",
        "kwargs": {},
        "sampling": OWN,
    }
    return SuiteConfig(**given | values)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"temperature": -0.1}, "temperature=-0.1 must be at least 0 and at most 100; 1 is usual, 0 is greedy"),
        ({"temperature": 101}, "temperature=101 must be at least 0 and at most 100"),
        ({"temperature": 0.001}, "temperature=0.001 is so low that logits overflow"),
        ({"temperature": float("nan")}, "temperature=nan must be a finite number"),
        ({"top_p": 0.0}, "top_p=0.0 must be above 0 and at most 1; 1 cuts nothing"),
        ({"top_p": 1.5}, "top_p=1.5 must be above 0 and at most 1"),
        ({"max_new_tokens": 0}, "max_new_tokens=0 must be at least 1"),
        ({"max_new_tokens": 8.0}, "max_new_tokens=8.0 must be a whole number"),
    ],
)
def test_a_choice_that_no_sampler_can_follow(values: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError) as refused:
        choice(**values)
    assert message in str(refused.value)


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({}, (0.6, 0.95, 64)),
        ({"temperature": 0}, (0, 0.95, 64)),
        ({"temperature": 1.0}, (1.0, 0.95, 64)),
        ({"top_p": 1.0}, (0.6, 1.0, 64)),
        ({"max_new_tokens": 7}, (0.6, 0.95, 7)),
        ({"temperature": 0.7, "top_p": 0.8, "max_new_tokens": 9}, (0.7, 0.8, 9)),
    ],
)
def test_what_is_set_takes_the_place_of_the_suites_own(values: dict[str, Any], expected: tuple[float, ...]) -> None:
    """0 is a value, and None is none."""
    found = choice(**values).over(OWN)
    assert (found.temperature, found.top_p, found.max_new_tokens) == expected
    assert SamplingConfig(temperature=0.6, top_p=0.95, max_new_tokens=64) == OWN, "the suite keeps its own"


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"samples": 0}, ["samples=0 must be at least 1"]),
        ({"size": 0}, ["size=0 must be at least 1; -1 takes all problems"]),
        ({"size": -2}, ["size=-2 must be at least 1; -1 takes all problems"]),
        ({"reward.kwargs": {"tolerance": 1}},
         ["reward.kwargs={'tolerance': 1} are settings of reward.fn, which is empty", "set reward.fn too"]),
        ({"sampling.temperature": 0, "samples": 4},
         ["sampling.temperature=0 is greedy, so that all samples=4 of a problem would be equal",
          "set samples=1, or another temperature"]),
        ({"cluster.kind": "local"}, ["engine=vllm needs a process of its own"]),
        ({"seed": -1}, ["seed=-1 must be at least 0"]),
    ],
)  # fmt: skip
def test_an_evaluation_that_measures_nothing(changes: dict[str, Any], words: list[str]) -> None:
    with pytest.raises(UserError) as refused:
        but(default("eval"), changes)
    assert all(word in str(refused.value) for word in words), refused.value


def test_the_other_side_of_each_pair_is_allowed() -> None:
    def allowed(**changes: Any) -> EvalRun:
        return but(default("eval"), {key.replace("__", "."): value for key, value in changes.items()})

    assert allowed(sampling__temperature=0, samples=1).samples == 1
    assert allowed(sampling__temperature=None, samples=4).samples == 4, "the suite says the temperature"
    assert allowed(reward__fn="math", reward__kwargs={"tolerance": 1}).reward.fn == "math"
    assert allowed(size=-1).size == -1 and allowed(size=1).size == 1
    assert allowed(cluster__kind="local", engine__kind="torch").demand.processes == 1


def test_a_suite_has_some_problems() -> None:
    assert suite(size=-1).size == -1 and suite(size=1).size == 1
    for size in (0, -2):
        with pytest.raises(UserError, match=f"size={size} must be at least 1; -1 takes all problems"):
            suite(size=size)
    with pytest.raises(UserError, match=r"size=2\.5 must be a whole number"):
        suite(size=2.5)
