"""Functions of verl, OpenRLHF and TRL, and classes, are told apart by their parameters and called as at home."""

from __future__ import annotations

import asyncio
import pickle
import sys
import threading
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch

import rewards
from rewards import Reward, RewardError, Sample

SAMPLES = [
    Sample("3 + 4", "it is #### 7", completion_ids=(5, 6, 7), meta={"answer": "7", "data_source": "gsm8k"}),
    Sample(
        "1 + 1", "#### 3", completion_ids=(8,), meta={"answer": "2", "data_source": "gsm8k", "extra_info": {"i": 4}}
    ),
]
CHAT = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "3 + 4"}]


def values(fn: Callable[..., Any], samples: Sequence[Sample] = SAMPLES, **settings: Any) -> list[float | None]:
    return [reward.value for reward in rewards.load(fn, **settings)(samples)]


# verl: the signature of docs/preparation/reward_function.rst


def by_hash(data_source, solution_str, ground_truth, extra_info=None):
    """As verl's own for GSM8K: the number after ####."""
    return 1.0 if solution_str.rpartition("#### ")[2] == ground_truth else 0.0


def test_verl_functions_get_their_four_arguments() -> None:
    def seen(data_source, solution_str, ground_truth, extra_info=None, **rest):
        assert (data_source, rest) == ("gsm8k", {"scale": 3})
        return {"score": 1.0, "text": solution_str, "gold": ground_truth, "info": extra_info}

    assert values(by_hash) == [1.0, 0.0]
    assert [reward.logs for reward in rewards.load(seen, scale=3)(SAMPLES)] == [
        {"text": "it is #### 7", "gold": "7", "info": {}},
        {"text": "#### 3", "gold": "2", "info": {"i": 4}},
    ]


@pytest.mark.parametrize(
    ("row", "gold"),
    [
        ({"reward_model": {"style": "rule", "ground_truth": "7"}, "answer": "8"}, "7"),
        ({"ground_truth": "7", "answer": "8"}, "7"),
        ({"answer": "7"}, "7"),
        ({"reward_model": {"style": "model"}, "answer": "7"}, "7"),
    ],
)
def test_verl_finds_the_gold_in_its_own_layout_first(row: dict[str, Any], gold: str) -> None:
    def gold_of(solution_str, ground_truth):
        return Reward(0.0, ground_truth)

    assert rewards.load(gold_of)([Sample("", "", meta=row)])[0].reason == gold
    assert values(by_hash, [Sample("", "#### 7", meta=row)], data_source="gsm8k") == [1.0]


def test_verl_without_a_data_source_is_an_error_not_a_zero() -> None:
    def by_source(data_source, solution_str, ground_truth):
        return 1.0 if data_source == "gsm8k" else 0.0

    sample = Sample("", "#### 7", meta={"answer": "7"})
    with pytest.raises(RewardError, match=r"needs data_source, which sample 0.*or set reward\.kwargs\.data_source"):
        values(by_source, [sample])
    assert values(by_source, [sample], data_source="gsm8k") == [1.0]
    assert values(lambda solution_str, data_source="none": data_source == "none", [sample]) == [1.0]


def test_verl_settings_and_what_goes_wrong() -> None:
    def scaled(solution_str, ground_truth, method="strict", score=1.0):
        return score if method == "loose" else 0.0

    async def later(solution_str, ground_truth):
        await asyncio.sleep(0)
        return solution_str.endswith(ground_truth)

    assert values(scaled) == [0.0, 0.0] and values(scaled, method="loose", score=0.5) == [0.5, 0.5]
    assert values(later) == [1.0, 0.0]
    with pytest.raises(RewardError, match="needs ground_truth, which sample 0"):
        values(by_hash, [Sample("", "#### 7")], data_source="gsm8k")
    with pytest.raises(RewardError, match="takes no setting 'ground_truth'; it takes method, score"):
        rewards.load(scaled, ground_truth="7")
    with pytest.raises(RewardError, match=r"returned .*'points': 1.* for sample 0"):
        values(lambda solution_str: {"points": 1})
    with pytest.raises(RewardError, match=r"returned 'nan' for sample 0"):
        values(lambda solution_str: {"score": float("nan")})


# OpenRLHF: examples/python/reward_func.py


def test_openrlhf_functions_get_queries_and_return_tensors() -> None:
    def reward_func(queries, prompts, labels, **kwargs):
        assert not kwargs and queries == ["3 + 4it is #### 7", "1 + 1#### 3"] and prompts == ["3 + 4", "1 + 1"]
        reward = torch.tensor([float(query.endswith(label)) for query, label in zip(queries, labels, strict=True)])
        return {"rewards": reward * 2, "scores": reward, "extra_logs": {"dummy": reward, "name": "x"}}

    found = rewards.load(reward_func)(SAMPLES)
    assert [(reward.value, reward.parts) for reward in found] == [(2.0, {"score": 1.0}), (0.0, {"score": 0.0})]
    assert [float(reward.logs["dummy"]) for reward in found] == [1.0, 0.0] and found[0].logs["name"] == "x"


def test_openrlhf_older_results_labels_and_chats() -> None:
    assert values(lambda queries, prompts, labels: torch.tensor([[0.5], [1.0]])) == [0.5, 1.0]
    assert values(lambda queries, labels: {"rewards": [float(label == "a") for label in labels]}, [
        Sample("", "", meta={"label": "a", "answer": "b"}), Sample("", "", meta={"answer": "b"})
    ]) == [1.0, 0.0]  # fmt: skip
    assert values(lambda queries: [query == "Be brief.\n3 + 47" for query in queries], [Sample(CHAT, "7")]) == [1.0]
    with pytest.raises(RewardError, match="list of 2 rewards, one for each completion, not 3 values"):
        values(lambda queries: {"rewards": [1.0, 2.0, 3.0]})


def test_openrlhf_without_a_label_is_an_error_not_a_zero() -> None:
    def by_label(queries, prompts, labels):
        return [float(query.endswith(str(label))) for query, label in zip(queries, labels, strict=True)]

    with pytest.raises(RewardError, match=r"needs labels, which sample 1 .*; give every row `label` or `answer`"):
        values(by_label, [Sample("", "7", meta={"answer": "7"}), Sample("", "7", meta={"gold": "7"})])
    assert values(lambda queries, labels=None: [labels is None], [Sample("", "7")]) == [1.0]


@pytest.mark.parametrize("result", [{"rewards": 0.5}, {"rewards": None}, {"rewards": [1.0, 2.0], "extra_logs": [1]}])
def test_openrlhf_results_that_cannot_be_read_name_the_function(result: Any) -> None:
    def reward_func(queries, prompts, labels):
        return result

    with pytest.raises(RewardError, match=r"reward_func.*returned \"\{'rewards'.*return a list of 2 rewards"):
        values(reward_func)


# TRL: conversational data and trainer_state


def test_trl_conversational_functions_run_on_text_prompts_when_asked() -> None:
    def contents(prompts, completions, **kwargs):
        asked = [prompt[-1]["content"] == "3 + 4" for prompt in prompts]
        return [right and completion[0]["content"] == "7" for right, completion in zip(asked, completions, strict=True)]

    text, chat = Sample("3 + 4", "7"), Sample(CHAT, "7")
    with pytest.raises(RewardError, match="string indices"):
        values(contents, [text])
    assert values(contents, [text, chat], conversational=True) == [1.0, 1.0]
    assert values(lambda completions, conversational: [conversational] * 2, conversational=3) == [3.0, 3.0]
    assert values(lambda completions: [c == "7" for c in completions], [text], conversational=False) == [1.0]
    for other in (by_hash, lambda completion: 1.0):
        with pytest.raises(RewardError, match="takes no setting 'conversational', which is for functions in TRL's"):
            rewards.load(other, conversational=True)


def test_trl_trainer_state_knows_the_step_inside_a_run() -> None:
    def curriculum(completions, trainer_state, **kwargs):
        return [trainer_state.global_step / 10 for _ in completions]

    assert values(curriculum, [Sample("", "a", step=4), Sample("", "b", step=4)]) == [0.4, 0.4]
    with pytest.raises(RewardError, match="needs trainer_state, which sample 0"):
        values(curriculum)


# Shapes that the parameters do not tell


def anything(**given: Any) -> Any:
    """Returns what it was given, in the result of each shape."""
    if "solution_str" in given:
        return {"score": 1.0, "given": sorted(given)}
    return [Reward(1.0, logs={"given": sorted(given)})] * len(given.get("completions") or given["queries"])


@pytest.mark.parametrize(
    ("adapter", "settings", "given"),
    [
        (rewards.from_verl, {}, ["data_source", "extra_info", "ground_truth", "solution_str", "x"]),
        (rewards.from_openrlhf, {}, ["labels", "prompts", "queries", "x"]),
        (rewards.from_trl, {}, ["answer", "completion_ids", "completions"]),
        (rewards.from_trl, {"conversational": True}, ["completions_ids", "data_source", "extra_info", "log_extra"]),
    ],
)
def test_a_forced_shape_survives_pickling(adapter: Callable[..., Any], settings: dict[str, Any], given: list) -> None:
    with pytest.raises(RewardError, match="has neither a parameter `completion` nor `completions`"):
        rewards.load(anything)
    judge = pickle.loads(pickle.dumps(adapter(anything, x=1, **settings)))
    for reward in judge(SAMPLES):
        assert reward.value == 1.0 and set(given) <= set(reward.logs["given"])


def test_two_shapes_at_once_are_refused_unless_one_is_named() -> None:
    for fn in (lambda completion, solution_str: 1, lambda completions, queries: 1, lambda samples, completion: 1):
        with pytest.raises(RewardError, match="has both `"):
            rewards.load(fn)

    def of_a_column(completions, queries):
        return [float(completion == query) for completion, query in zip(completions, queries, strict=True)]

    with pytest.raises(
        RewardError, match=r"both `completions` as in TRL and `queries` as in OpenRLHF; if one of .*from_trl"
    ):
        rewards.load(of_a_column)
    rows = [Sample("", "7", meta={"queries": "7"}), Sample("", "7", meta={"queries": "8"})]
    assert [reward.value for reward in rewards.from_trl(of_a_column)(rows)] == [1.0, 0.0]


def test_functions_of_samples() -> None:
    def lengths(samples: Sequence[Sample], unit: float = 1.0) -> list[float | Reward | None]:
        return [None, *(Reward(len(sample.completion) * unit, "long") for sample in samples[1:])]

    assert rewards.load(lengths, unit=0.5)(SAMPLES) == [Reward(None), Reward(3.0, "long")]


# Classes


class AtMost:
    """A class of the user's own, with workers to close."""

    def __init__(self, most: int, unit: str = "characters") -> None:
        if most < 0:
            raise ValueError(f"most={most} is below 0")
        self.most, self.closed = most, 0

    def __call__(self, completion: str) -> bool:
        return len(completion) <= self.most

    def close(self) -> None:
        self.closed += 1


class Unannotated:
    """A class that does not say what its settings are."""

    def __init__(self, most) -> None:
        assert not most < 0


class Silent:
    """Not a reward: it cannot be called."""


def test_a_class_is_constructed_with_the_settings_and_closed() -> None:
    judge = rewards.load(AtMost, most=6)
    assert [reward.value for reward in judge(SAMPLES)] == [0.0, 1.0]
    copy = pickle.loads(pickle.dumps(judge))
    assert copy.fn is not judge.fn and copy(SAMPLES) == judge(SAMPLES)
    judge.close()
    assert (judge.fn.closed, copy.fn.closed) == (1, 0)
    rewards.load("number").close()  # there is nothing to close
    ready = rewards.load(AtMost(3))  # an object is taken as it is
    assert [reward.value for reward in ready(SAMPLES)] == [0.0, 0.0]


@pytest.mark.parametrize(
    ("cls", "settings", "message"),
    [
        (AtMost, {}, r"needs most; set it in reward\.kwargs"),
        (AtMost, {"most": 1, "mist": 2}, "takes no setting 'mist' \\(did you mean 'most'\\?\\); it takes most, unit"),
        (AtMost, {"most": -1}, "cannot be made: most=-1 is below 0"),
        (AtMost, {"most": "1"}, "most='1' must be a whole number"),
        (AtMost, {"most": True}, "most=True must be a whole number"),
        (AtMost, {"most": 1, "unit": 2}, "unit=2 must be text; put it in quotes"),
        (Unannotated, {"most": "1"}, r"cannot be made: TypeError: '<' not supported .*check its settings \(most='1'\)"),
        (Silent, {}, "is a Silent, not a function"),
        (dict, {}, "is a dict, not a function|has no readable signature"),
    ],
)
def test_classes_that_cannot_be_constructed(cls: type, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(RewardError, match=message):
        rewards.load(cls, **settings)


# Threads, loops and ways out


def test_async_functions_run_inside_a_running_loop_and_in_any_thread() -> None:
    async def judged(completion: str) -> float:
        await asyncio.sleep(0)
        return float(completion.endswith("7"))

    async def caller() -> list[float | None]:
        return values(judged)

    found: list[list[float | None]] = [asyncio.run(caller()), values(judged)]
    thread = threading.Thread(target=lambda: found.append(values(judged)))
    thread.start()
    thread.join()
    assert found == [[1.0, 0.0]] * 3


def test_an_async_failure_names_its_sample_and_leaves_no_coroutine_behind() -> None:
    async def picky(completion: str, answer: str) -> float:
        if answer == "2":
            raise KeyError("x")
        return 1.0

    with pytest.raises(RewardError, match=r"raised KeyError: 'x' at .* \(on sample 1 \(prompt '1 \+ 1'\)"):
        values(picky)
    with pytest.raises(RewardError, match="needs answer, which sample 1"):
        values(picky, [SAMPLES[0], Sample("", "")])  # a coroutine never awaited would be a warning, so an error


@pytest.mark.parametrize("is_async", [False, True])
def test_leaving_python_is_a_failure_not_the_end_of_the_run(is_async: bool) -> None:
    def leaves(completion: str) -> float:
        sys.exit(0)

    async def leaves_later(completion: str) -> float:
        sys.exit(0)

    with pytest.raises(RewardError, match="raised SystemExit: 0"):
        values(leaves_later if is_async else leaves)
