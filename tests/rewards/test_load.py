"""Functions of every shape a user may bring, TRL's included, and what goes wrong with them."""

from __future__ import annotations

import asyncio
import math
import re
import subprocess
import sys
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch

import rewards
from rewards import Reward, RewardError, Sample

ROOT = Path(__file__).parents[2]
SAMPLES = [
    Sample("3 + 4", "it is 7", completion_ids=(5, 6, 7), meta={"answer": "7", "task": "math"}),
    Sample("1 + 1", "3", completion_ids=(8,), finish_reason="length", meta={"answer": "2", "task": "code"}),
]


def values(fn: Callable[..., Any] | str, samples: list[Sample] = SAMPLES, **kwargs: Any) -> list[float | None]:
    return [reward.value for reward in rewards.load(fn, **kwargs)(samples)]


def test_import_is_light() -> None:
    script = (
        "import sys, time; start = time.process_time(); import rewards; print(time.process_time() - start);"
        "assert rewards.load('number')([rewards.Sample('', '<answer>1</answer>', meta={'answer': 1})])[0].value == 1;"
        "sys.exit(str({'torch', 'ray', 'rlkit', 'numpy', 'transformers'} & sys.modules.keys() or 0))"
    )
    seconds = []
    for _ in range(3):
        done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True)
        assert done.stderr == "0\n", done.stderr
        seconds.append(float(done.stdout))
    assert min(seconds) < 0.3


def test_the_built_in_is_found_by_name() -> None:
    assert "number" in rewards.names()
    assert rewards.load("number")([Sample("", "<answer>7</answer>", meta={"answer": "7"})]) == [Reward(1.0, "correct")]
    assert values("rewards.number:number", [Sample("", "<answer>8</answer>", meta={"answer": "7"})]) == [0.0]
    assert rewards.load("number")([]) == []


# Per sample


def test_a_function_gets_the_columns_it_names_and_no_others() -> None:
    def named(completion: str, answer: str) -> bool:
        return answer in completion

    def everything(completion: str, **columns: Any) -> float:
        expected = {"prompt", "completion_ids", "finish_reason", "answer", "task"}
        return float(columns.keys() == expected and isinstance(columns["answer"], str))

    def fields(prompt: str, completion: str, completion_ids: list[int], finish_reason: str) -> float:
        return len(completion_ids) + (finish_reason == "length") * 10 + len(prompt) * 100

    assert values(named) == [1.0, 0.0]
    assert values(everything) == [1.0, 1.0]
    assert values(fields) == [503.0, 511.0]


def test_defaults_fill_missing_columns_and_settings_are_bound() -> None:
    def scaled(completion: str, weight: float = 2.0, *, extra: float = 0.5) -> float:
        return weight + extra

    assert values(scaled) == [2.5, 2.5]
    assert values(scaled, weight=3.0) == [3.5, 3.5]
    columns = [Sample("p", "c", meta={"weight": 5.0, "extra": 1.0})]
    assert values(scaled, columns) == [6.0] and values(scaled, columns, weight=0.0) == [1.0]


def test_a_dataset_column_cannot_take_the_place_of_the_completion() -> None:
    sample = Sample("p", "real", meta={"completion": "gold", "prompt": "row"})
    assert values(lambda completion, prompt: completion == "real" and prompt == "p", [sample]) == [1.0]
    assert values(lambda completions: [completions == ["real"]], [sample]) == [1.0]
    assert values(lambda completions, **columns: [columns.keys() & {"prompt", "completion"} == set()], [sample]) == [
        1.0
    ]


def test_every_kind_of_number_counts_and_none_is_no_verdict() -> None:
    numbers = [1, 0.25, True, None, Fraction(1, 2), numpy.float32(0.5), numpy.bool_(True), torch.tensor(0.75)]
    samples = [Sample("", "", meta={"value": value}) for value in numbers]
    expected = [1.0, 0.25, 1.0, None, 0.5, 0.5, 1.0, 0.75]
    for got in (values(lambda completion, value: value, samples), values(lambda completions, value: value, samples)):
        assert got == expected and {type(value) for value in got} == {float, type(None)}


def test_a_reward_passes_through_with_its_reason_parts_and_logs() -> None:
    full = Reward(True, "fine", parts={"a": 1.0}, logs={"b": "x"})
    [reward, _] = rewards.load(lambda completion: full)(SAMPLES)
    assert reward == Reward(1.0, "fine", {"a": 1.0}, {"b": "x"}) and type(reward.value) is float
    assert rewards.load(lambda completions: [full, None])(SAMPLES) == [reward, Reward(None)]


# Per batch, in the shapes that TRL documents


def test_trl_lengths() -> None:
    def by_tokens(completion_ids, **kwargs):
        return [float(len(ids)) for ids in completion_ids]

    def by_tokens_old_name(completions_ids, **kwargs):
        return [float(len(ids)) for ids in completions_ids]

    def by_characters(completions, **kwargs):
        return [float(len(completion)) for completion in completions]

    assert values(by_tokens) == values(by_tokens_old_name) == [3.0, 1.0]
    assert values(by_characters) == [7.0, 1.0]


def test_trl_conversational_format() -> None:
    def tagged(completions, **kwargs):
        contents = [completion[0]["content"] for completion in completions]
        return [1.0 if re.match(r"^<think>.*?</think><answer>.*?</answer>$", content) else 0.0 for content in contents]

    chat = [{"role": "user", "content": "3 + 4"}]
    samples = [Sample(chat, "<think>3+4=7</think><answer>7</answer>"), Sample(chat, "7")]
    assert values(tagged, samples) == [1.0, 0.0]
    assert values(lambda completion: completion == "7", samples) == [0.0, 1.0]  # per sample it is always text
    assert values(lambda prompts, completions: [prompt == chat for prompt in prompts], samples) == [1.0, 1.0]


def test_trl_reference_column() -> None:
    def boxed(completions, ground_truth, **kwargs):
        matches = [re.search(r"\\boxed\{(.*?)\}", completion) for completion in completions]
        contents = [match.group(1) if match else "" for match in matches]
        return [1.0 if content == truth else 0.0 for content, truth in zip(contents, ground_truth, strict=True)]

    samples = [Sample("", rf"so \boxed{{{n}}}", meta={"ground_truth": truth}) for n, truth in ((2, "2"), (6, "5"))]
    assert values(boxed, samples) == [1.0, 0.0]


def test_trl_multi_task_with_none() -> None:
    def only_math(prompts, completions, task, **kwargs):
        return [1.0 if t == "math" and c else None for _, c, t in zip(prompts, completions, task, strict=True)]

    assert values(only_math) == [1.0, None]


def test_trl_async_functions() -> None:
    async def batch(prompts, completions, **kwargs):
        await asyncio.sleep(0)
        return [1.0 if completion else 0.0 for completion in completions]

    async def single(completion, answer):
        await asyncio.sleep(0)
        return answer in completion

    async def broken(completion):
        raise KeyError("x")

    assert values(batch) == [1.0, 1.0] and values(single) == [1.0, 0.0]
    with pytest.raises(RewardError, match="raised KeyError: 'x'"):
        values(broken)


def test_trl_logging_arguments_end_in_the_logs() -> None:
    def logging(completions, log_extra=None, log_metric=None):
        log_extra("length", [len(completion) for completion in completions])
        log_metric("mean", 4.0)
        return [Reward(1.0, logs={"own": 1}), 0.0]

    assert [reward.logs for reward in rewards.load(logging)(SAMPLES)] == [
        {"length": 7, "mean": 4.0, "own": 1},
        {"length": 1, "mean": 4.0},
    ]


def test_a_column_that_some_rows_lack_is_none_for_them_unless_it_is_needed() -> None:
    samples = [Sample("", "a", meta={"gold": 1}), Sample("", "b", meta={})]
    assert values(lambda completions, **columns: columns["gold"], samples) == [1.0, None]
    assert values(lambda completions, gold=None: gold, samples) == [1.0, None]
    with pytest.raises(RewardError, match=r"needs gold, which sample 1 .* \(its columns: none\)"):
        values(lambda completions, gold: gold, samples)


# What goes wrong


@pytest.mark.parametrize(
    ("fn", "message"),
    [
        (
            lambda completion, gold: 1.0,
            r"needs gold, which sample 0 \(prompt '3 \+ 4'\).*columns: answer, task.*default",
        ),
        (lambda completions, trainer_state: [1.0, 1.0], r"needs trainer_state, which sample 0"),
        (lambda completion: 1 / (completion != "3"), r"raised ZeroDivisionError: .*sample 1 \(prompt '1 \+ 1'\)"),
        (lambda completions: 1 / 0, r"raised ZeroDivisionError: .*a batch of 2 samples"),
        (lambda completions: [1.0], r"must return a list of 2 rewards.*not 1 values"),
        (lambda completions: [1.0] * 3, r"not 3 values"),
        (lambda completions: [], r"not 0 values"),
        (lambda completions: 1.0, r"not a float"),
        (lambda completions: None, r"not a NoneType"),
        (lambda completions: "10", r"not a str"),
        (lambda completions: {"a": 1, "b": 2}, r"not a dict"),
        (
            lambda completions: [1.0, math.nan],
            r"returned 'nan' for sample 1 \(prompt '1 \+ 1'\); return a finite number",
        ),
        (lambda completion: math.inf, r"returned 'inf' for sample 0"),
        (lambda completion: Reward(-math.inf), r"returned '-inf' for sample 0"),
        (lambda completion: "1.0", r"returned '1.0' for sample 0"),
        (lambda completion: {"score": 1.0}, r"returned \"\{'score': 1.0\}\" for sample 0"),
        (lambda completion: [1.0], r"returned '\[1.0\]' for sample 0"),
        (lambda completion: 10**400, r"returned '1000"),
        (lambda completion: 1j, r"returned '1j' for sample 0"),
    ],
)
def test_a_failing_function_is_an_error_that_names_it_never_a_zero(fn: Callable[..., Any], message: str) -> None:
    with pytest.raises(RewardError, match=f"(?s)reward .*lambda.*{message}"):
        rewards.load(fn)(SAMPLES)


@pytest.mark.parametrize(
    ("fn", "kwargs", "message"),
    [
        (lambda text: 1.0, {}, r"neither a parameter `completion` nor `completions`; write `def f"),
        (lambda *args, **kwargs: 1.0, {}, r"neither a parameter"),
        (lambda completion, completions: 1.0, {}, r"has both"),
        (
            lambda completion, weight=1: 1.0,
            {"wieght": 2},
            r"takes no setting 'wieght' \(did you mean 'weight'\?\); it takes weight",
        ),
        (
            lambda completion, weight=1, **columns: 1.0,
            {"wieght": 2},
            r"takes no setting 'wieght' \(did you mean 'weight'",
        ),
        (lambda completion, **columns: 1.0, {"completion": "x"}, r"takes no setting 'completion'"),
        (lambda prompts, completions: [1.0], {"k": 1}, r"takes no setting 'k'; it takes none"),
    ],
)
def test_a_wrong_signature_is_refused_when_it_is_loaded(fn: Callable[..., Any], kwargs: dict, message: str) -> None:
    with pytest.raises(RewardError, match=message):
        rewards.load(fn, **kwargs)


def test_settings_near_another_ones_name_are_taken_where_any_is() -> None:
    """A slip is a letter or two; `top_p` beside `top_k` and the name of a column are none."""

    def fn(completion: str, answer: str, top_k: int = 1, max_length: int = 9, **settings: object) -> float:
        return float({"top_p", "min_length", "answers"} <= settings.keys())

    [found] = rewards.load(fn, top_p=0.5, min_length=2, answers="x")([Sample("", "", meta={"answer": "7"})])
    assert found.value == 1.0
    with pytest.raises(RewardError, match=r"takes no setting 'max_lenth' \(did you mean 'max_length'"):
        rewards.load(fn, max_lenth=3)


def test_coroutines_of_an_object_are_no_independent_judges() -> None:
    class Later:
        async def __call__(self, completion: str) -> float:
            return 1.0

    judge = rewards.load(Later)
    assert not judge.independent and [reward.value for reward in judge([Sample("", "a"), Sample("", "b")])] == [1, 1]
