"""Questions are checked by arithmetic that reasoning-gym did not do; solutions step by step."""

from __future__ import annotations

import math
import time
from itertools import islice

import pytest

from rlkit.data.reasoning import draw, solve

SUMS = {"min_terms": 3, "max_terms": 4, "min_digits": 1, "max_digits": 2}


def records(tasks: dict, num_rows: int, seed: int = 0) -> list[dict]:
    return [record for _, record in islice(draw(tasks, seed), num_rows)]


def check_steps(solution: str) -> int:
    """Every `left=a=b...` holds; returns the last value."""
    value = 0
    for step in solution.split():
        left, *results = step.split("=")
        for result in results:
            assert eval(left) == int(result), step
        value = int(results[-1])
    return value


@pytest.mark.parametrize("parameters", [SUMS, {"allow_negation": True}, {"min_terms": 6, "max_terms": 8}])
def test_sums_and_their_steps_are_right(parameters: dict) -> None:
    for record in records({"chain_sum": parameters}, 300):
        expression = record["metadata"]["expression"]
        assert eval(expression) == int(record["answer"])
        assert check_steps(record["solution"]) == int(record["answer"])
        assert record["solution"].split("=")[0] == "".join(expression.split()[:3])


def test_the_steps_of_a_sum_run_from_left_to_right() -> None:
    assert solve("chain_sum", {"expression": "12 + 34 - 5"}) == "12+34=46 46-5=41"
    assert solve("chain_sum", {"expression": "3 - -4"}) == "3--4=7"


def test_gcd_steps_are_euclids() -> None:
    assert solve("gcd", {"numbers": [26, 760]}) == "760%26=6 26%6=2 6%2=0"
    for record in records({"gcd": {"min_numbers": 2, "max_numbers": 4}}, 300):
        numbers = record["metadata"]["numbers"]
        assert math.gcd(*numbers) == int(record["answer"])
        check_steps(record["solution"])
        assert record["solution"].rpartition("%")[2] == f"{record['answer']}=0"  # the last divisor left no remainder


@pytest.mark.parametrize("parameters", [{}, {"min_terms": 3, "max_terms": 3}, {"allow_negation": True}])
def test_products_by_partial_products(parameters: dict) -> None:
    for record in records({"products": parameters | {"max_digits": 3}}, 300):
        assert check_steps(record["solution"]) == int(record["answer"]) == eval(record["metadata"]["expression"])


def test_a_product_takes_one_digit_at_a_time() -> None:
    assert solve("products", {"expression": "12 * 34"}) == "12*30=360 12*4=48 360+48=408"
    assert solve("products", {"expression": "12 * 4"}) == "12*4=48"


def test_a_task_without_steps_has_no_solution() -> None:
    [record] = records({"decimal_chain_sum": {}}, 1)
    assert record["solution"] == "" and record["task"] == "decimal_chain_sum"


def test_bare_keeps_the_expression_alone() -> None:
    for record in records({"chain_sum": SUMS | {"bare": True}, "products": {"bare": True}}, 20):
        assert record["question"] == record["metadata"]["expression"]
    [record] = records({"gcd": {"bare": True}}, 1)
    assert record["question"] == f"gcd({', '.join(map(str, record['metadata']['numbers']))})"
    [record] = records({"spell_backward": {"bare": True}}, 1)
    assert record["question"] == record["metadata"]["word"] and record["answer"] == record["question"][::-1]
    with pytest.raises(ValueError, match=r"data\.tasks\.leg_counting\.bare=true: only chain_sum"):
        records({"leg_counting": {"bare": True}}, 1)


def test_without_bare_the_question_is_reasoning_gyms_own() -> None:
    import reasoning_gym

    [record] = records({"chain_sum": None}, 1)
    dataset = reasoning_gym.create_dataset("chain_sum", size=1, seed=1)
    template = dataset[0]["question"].replace(dataset[0]["metadata"]["expression"], "{}")
    assert record["question"] == template.format(record["metadata"]["expression"])


def test_tasks_take_turns_and_ids_are_unique() -> None:
    drawn = list(islice(draw({"chain_sum": SUMS, "gcd": {}, "products": {}}, 0), 30))
    assert [record["task"] for _, record in drawn] == ["chain_sum", "gcd", "products"] * 10
    assert len({id for id, _ in drawn}) == 30
    assert drawn[0][0].startswith("chain_sum/")


def test_the_seed_decides_everything_and_near_seeds_share_almost_nothing() -> None:
    tasks = {"chain_sum": {"min_digits": 4}}
    assert records(tasks, 200, seed=3) == records(tasks, 200, seed=3)
    here, there = ({record["question"] for record in records(tasks, 200, seed)} for seed in (3, 4))
    assert len(here & there) < 5  # reasoning-gym alone would share 199 of the 200


def test_no_question_comes_twice_and_running_out_says_so() -> None:
    digits = {"chain_sum": {"min_terms": 2, "max_terms": 2, "max_digits": 1}}
    assert len({record["question"] for record in records(digits, 200)}) == 200  # 10 x 10 x {+, -}: all there are
    with pytest.raises(ValueError, match=r"data\.tasks\.chain_sum has no more than about 200 distinct.*min_terms"):
        records(digits, 201)


@pytest.mark.parametrize(
    ("tasks", "message"),
    [
        ({}, r"data\.tasks is empty"),
        ({"chain_sums": {}}, r"data\.tasks\.chain_sums: .*nearest: 'chain_sum'"),
        ({"chain_sum": {"terms": 3}}, r"data\.tasks\.chain_sum=\{'terms': 3\}: .*min_terms, max_terms"),
        ({"chain_sum": {"min_terms": 0}}, r"data\.tasks\.chain_sum.*min_terms must be positive"),
        ({"chain_sum": {"min_terms": "x"}}, r"data\.tasks\.chain_sum=\{'min_terms': 'x'\}"),
        ({"chain_sum": {"seed": 1}}, r"data\.tasks\.chain_sum\.seed: set data\.seed"),
        ({"chain_sum": {"size": 1}}, r"data\.tasks\.chain_sum\.size: set data\.seed, data\.train_size"),
        ({"chain_sum": {"min_terms": 2.5}}, r"data\.tasks\.chain_sum"),
    ],
)
def test_errors_name_the_key_and_the_fix(tasks: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        records(tasks, 1)


def test_twenty_thousand_sums_take_less_than_three_seconds() -> None:
    records({"chain_sum": SUMS}, 1)  # importing reasoning-gym is not part of it
    start = time.process_time()
    records({"chain_sum": SUMS | {"bare": True}}, 20_000)
    assert time.process_time() - start < 3
