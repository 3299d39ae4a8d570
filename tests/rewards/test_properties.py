"""What must hold for any text, any lengths and any weights, checked on drawn examples."""

from __future__ import annotations

import math
import random
from collections import Counter
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import rewards
from rewards import Reward, RewardError, Sample
from rewards.language import prose_of, thought_of

pytestmark = pytest.mark.slow

TEXTS = st.text(alphabet="<think>/answer \\boxed{}$`[]()\n#7ab.\u4e2d\u0434", max_size=120)
VALUES = st.one_of(st.none(), st.floats(-10, 10))
REASONS = {
    "number": {"correct", "wrong", "no_answer", "unparsable"},
    "format": {"correct", "missing_tag", "repeated_tag", "wrong_order", "text_outside", "empty_answer"},
    "language": {"measured", "no_letters", "too_short"},
    "repetition": {"distinct", "repeated", "too_short"},
}
RANGES = {"number": (0, 1), "format": (0, 1), "language": (0, 1), "repetition": (-1, 0)}
JUDGES = {name: rewards.load(name) for name in REASONS}


@pytest.mark.parametrize("name", REASONS)
@given(text=TEXTS, opened=st.booleans())
def test_any_text_gets_a_verdict_with_a_known_reason(name: str, text: str, opened: bool) -> None:
    sample = Sample("3 + 4<think>" if opened else "3 + 4", text, meta={"answer": "7"})
    [reward] = JUDGES[name]([sample])
    low, high = RANGES[name]
    assert reward.value is not None and low <= reward.value <= high and reward.reason in REASONS[name]
    assert JUDGES[name]([sample, sample]) == [reward, reward]


@given(TEXTS)
def test_prose_is_made_of_the_thought_only(text: str) -> None:
    thought = thought_of(text)
    assert thought in text
    assert not Counter(filter(str.isalpha, prose_of(thought))) - Counter(thought)


@given(st.lists(st.integers(0, 3), max_size=30), st.integers(1, 4))
def test_repetition_by_its_definition(ids: list[int], size: int) -> None:
    # by counting how often each n-gram came before, not by the size of a set
    repeated, grams = 0, [tuple(ids[start : start + size]) for start in range(len(ids) - size + 1)]
    for place, gram in enumerate(grams):
        repeated += gram in grams[:place]
    expected = -repeated / len(grams) if grams else 0.0
    [reward] = rewards.load("repetition", ngram_size=size)([Sample("", "x" * len(ids), completion_ids=ids)])
    assert reward.value == pytest.approx(expected)


@given(st.integers(1, 300), st.data())
def test_soft_overlong_never_rises_with_length_and_has_no_jump_inside(longest: int, data: st.DataObject) -> None:
    cache = data.draw(st.integers(1, longest))
    judge = rewards.load("length", max_completion_len=longest, soft_punish_cache=cache)
    samples = [Sample("", "x" * n, completion_ids=[1] * n) for n in range(longest + 3)]
    values = [reward.value for reward in judge(samples)]
    known = [value for value in values if value is not None]
    steps = [before - after for before, after in pairwise(known)]
    assert len(known) == len(values) and known[0] == 0.0 and known[longest] == known[-1] == -1.0
    assert all(-1e-12 < step < 1 / cache + 1e-12 for step in steps)


@given(st.integers(1, 200), st.booleans())
def test_cosine_stays_inside_its_bounds_and_orders_by_length(longest: int, right: bool) -> None:
    judge = rewards.load("cosine", fn="number", max_len=longest)
    text = f"<answer>{7 if right else 8}</answer>"
    samples = [Sample("", text, completion_ids=[1] * n, meta={"answer": "7"}) for n in range(1, longest + 20)]
    values = [reward.value for reward in judge(samples)]
    known = [value for value in values if value is not None]
    assert len(known) == len(values)
    assert known == sorted(known, reverse=right), "short right answers and long wrong ones are worth more"
    assert all(0.5 <= value <= 1.0 for value in known) if right else all(-1.0 <= value <= -0.5 for value in known)
    assert known[longest - 1 :] == pytest.approx([0.5 if right else -0.5] * 20)


def given_value(completion: str, values: dict[str, Any], name: str) -> Reward:
    value = values[name]
    return Reward(value, f"{name} {'missing' if value is None else 'there'}")


@given(st.lists(st.tuples(VALUES, st.floats(-2, 2), st.booleans()), min_size=1, max_size=5))
def test_a_composite_is_the_sum_it_says_it_is(terms: list[tuple[float | None, float, bool]]) -> None:
    terms = [(*terms[0][:2], False), *terms[1:]]  # the first says what is right, so it is needed, whatever it weighs
    names = [f"part{place}" for place in range(len(terms))]
    entries = [
        {"fn": given_value, "name": name, "weight": weight, "optional": optional, "kwargs": {"name": name}}
        for name, (_, weight, optional) in zip(names, terms, strict=True)
    ]
    sample = Sample("", "", meta={"values": {name: value for name, (value, _, _) in zip(names, terms, strict=True)}})
    [reward] = rewards.load("composite", rewards=entries)([sample])
    needed = [
        name
        for name, (value, weight, optional) in zip(names, terms, strict=True)
        if value is None and not optional and (weight or name == "part0")
    ]
    known = {name: value for name, (value, _, _) in zip(names, terms, strict=True) if value is not None}
    assert reward.parts == known
    if needed or not known:
        assert reward.value is None and reward.reason == f"{(needed or names)[0]} missing"
    else:
        total = math.fsum(weight * value for value, weight, _ in terms if value is not None)
        assert reward.value == pytest.approx(total, abs=1e-9)
        assert reward.reason == f"part0 {'missing' if terms[0][0] is None else 'there'}"


@given(st.lists(st.sampled_from("abc"), max_size=20))
def test_routing_gives_each_sample_what_its_own_reward_says(tasks: list[str]) -> None:
    table = {
        task: {"fn": lambda completion, place, by: place * by, "kwargs": {"by": by}} for by, task in enumerate("abc")
    }
    samples = [Sample("", "", meta={"task": task, "place": place}) for place, task in enumerate(tasks)]
    found = rewards.load("composite", rewards=table, by="task")(samples)
    assert [reward.value for reward in found] == [place * "abc".index(task) for place, task in enumerate(tasks)]


# One wrong result among many, in every shape that a function may have

WRONG = [math.nan, math.inf, -math.inf, "1", b"1", [1.0], {"reward": 1.0}, 1j, object(), 10**400]


def in_shape(shape: str, results: list[Any]) -> Any:
    """A function of the shape that returns the results one by one or all together."""
    left = iter(results)
    return {
        "rlkit": lambda completion: next(left),
        "rlkit, batch": lambda samples: results,
        "TRL": lambda completions: results,
        "verl": lambda solution_str: {"score": next(left)},
        "OpenRLHF": lambda queries: {"rewards": results},
        "parts": lambda samples: [Reward(0.5, parts={"a": result}) for result in results],
    }[shape]


@pytest.mark.parametrize("shape", ["rlkit", "rlkit, batch", "TRL", "verl", "OpenRLHF", "parts"])
@pytest.mark.parametrize("wrong", WRONG, ids=lambda wrong: str(wrong)[:12])
def test_a_wrong_result_in_any_shape_names_its_sample(shape: str, wrong: Any) -> None:
    place = random.Random(str(type(wrong)) + shape).randrange(5)
    results: list[Any] = [1.0, 0.5, 0.0, True, 1]
    results[place] = wrong
    judge = rewards.load(in_shape(shape, results))
    with pytest.raises(RewardError, match=f"returned .* for sample {place} "):
        judge([Sample(str(n), "x") for n in range(5)])


@pytest.mark.parametrize("shape", ["rlkit", "rlkit, batch", "TRL", "verl", "OpenRLHF"])
def test_no_verdict_stays_no_verdict_in_any_shape(shape: str) -> None:
    judge = rewards.load(in_shape(shape, [None, 1.0, None]))
    assert [reward.value for reward in judge([Sample("", "x")] * 3)] == [None, 1.0, None]


@pytest.mark.parametrize("shape", ["rlkit, batch", "TRL", "OpenRLHF"])
@pytest.mark.parametrize("count", [0, 2, 4])
def test_a_batch_of_the_wrong_length_is_an_error_in_any_shape(shape: str, count: int) -> None:
    judge = rewards.load(in_shape(shape, [1.0] * count))
    with pytest.raises(RewardError, match=f"must return a list of 3 rewards, one for each completion, not {count} "):
        judge([Sample("", "x")] * 3)
