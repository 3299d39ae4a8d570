"""Questions from reasoning-gym's task generators, with worked solutions for the tasks where the steps are mechanical.

What is not covered: the scorers of tasks with more than one right answer; those are rewards, not data.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import fields
from difflib import get_close_matches
from hashlib import blake2b
from importlib.util import find_spec
from itertools import count
from types import ModuleType
from typing import Any

from rlkit.errors import UserError

Parameters = Mapping[str, Any]


def draw(tasks: Mapping[str, Parameters | None], seed: int) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yields (id, record) without end, one task after the other in turn; no question comes twice.

    A record has `question`, `answer`, `solution` ("" where no steps are known), `task` and reasoning-gym's `metadata`.
    Raises UserError for an unknown task, a bad parameter, and a task that runs out of new questions.
    """
    if not tasks:
        raise UserError("data.tasks is empty: name at least one reasoning-gym task, such as data.tasks.chain_sum={}")
    seen: set[str] = set()
    streams = [_draw_task(name, dict(parameters or {}), seed, seen) for name, parameters in tasks.items()]
    while True:
        for stream in streams:
            yield next(stream)


def solve(task: str, metadata: Mapping[str, Any]) -> str:
    """Returns the worked solution of one question as short steps, "" for a task without one.

    Example: `solve("chain_sum", {"expression": "12 + 34 - 5"}) == "12+34=46 46-5=41"`
    """
    return _SOLUTIONS[task](metadata) if task in _SOLUTIONS else ""


def _allow_missing_solver() -> None:
    """Lets reasoning-gym import without pycosat, which needs a compiler and serves its zebra puzzles only."""
    if "pycosat" not in sys.modules and find_spec("pycosat") is None:
        sys.modules["pycosat"] = ModuleType("pycosat")


def _draw_task(
    task: str, parameters: dict[str, Any], seed: int, seen: set[str]
) -> Iterator[tuple[str, dict[str, Any]]]:
    bare = parameters.pop("bare", False)
    if bare and task not in _EXPRESSIONS:
        raise UserError(f"data.tasks.{task}.bare=true: only {', '.join(_EXPRESSIONS)} have a bare form; remove it")
    dataset = _create(task, parameters, seed)
    found = misses = 0
    for index in count():
        try:
            item = dataset[index]
        except Exception as error:
            raise UserError(f"data.tasks.{task}: reasoning-gym failed on question {index}: {error!r}") from error
        question = _EXPRESSIONS[task](item["metadata"]) if bare else item["question"]
        if question in seen:
            misses += 1
            if misses > 1000 + 5 * found:
                raise UserError(
                    f"data.tasks.{task} has no more than about {found} distinct questions: lower data.train_size and "
                    f"data.eval_size, or widen the task's own parameters ({_parameter_names(task)})"
                )
            continue
        found, misses = found + 1, 0
        seen.add(question)
        solution = solve(task, item["metadata"])
        yield f"{task}/{index}", {**item, "question": question, "solution": solution, "task": task}


def _create(task: str, parameters: Parameters, seed: int) -> Any:
    # Imported here: it takes seconds and pulls in sympy and more, which no other source needs.
    _allow_missing_solver()
    import reasoning_gym
    from reasoning_gym.factory import DATASETS

    if task not in DATASETS:
        near = get_close_matches(task, DATASETS, n=1, cutoff=0.0)[0]
        raise UserError(f"data.tasks.{task}: reasoning-gym has no such task; nearest: {near!r} (of {len(DATASETS)})")
    for name in ("seed", "size"):
        if name in parameters:
            raise UserError(f"data.tasks.{task}.{name}: set data.seed, data.train_size and data.eval_size instead")
    try:
        return reasoning_gym.create_dataset(task, seed=_task_seed(task, seed), **parameters)
    except Exception as error:  # a task checks its parameters with assert, or trips over them in its own way
        raise UserError(
            f"data.tasks.{task}={dict(parameters)}: {error}; its parameters are {_parameter_names(task)}"
        ) from error


def _parameter_names(task: str) -> str:
    from reasoning_gym.factory import DATASETS

    return ", ".join(field.name for field in fields(DATASETS[task][1]) if field.name not in ("seed", "size"))


def _task_seed(task: str, seed: int) -> int:
    # reasoning-gym seeds question i with seed + i, so seeds 0 and 1 would share all questions but one.
    return int.from_bytes(blake2b(f"{seed}/{task}".encode(), digest_size=4).digest(), "big") >> 1


def _sum_steps(metadata: Parameters) -> str:
    first, *rest = metadata["expression"].split()
    total, steps = int(first), []
    for sign, term in zip(rest[::2], rest[1::2], strict=True):
        after = total + int(term) if sign == "+" else total - int(term)
        steps.append(f"{total}{sign}{term}={after}")
        total = after
    return " ".join(steps)


def _gcd_steps(metadata: Parameters) -> str:
    divisor, *rest = metadata["numbers"]
    steps = []
    for number in rest:
        high, low = max(divisor, number), min(divisor, number)
        while low:
            steps.append(f"{high}%{low}={high % low}")
            high, low = low, high % low
        divisor = high
    return " ".join(steps)


def _product_steps(metadata: Parameters) -> str:
    first, *rest = (int(factor) for factor in metadata["expression"].split(" * "))
    total, steps = first, []
    for factor in rest:
        after = total * factor
        digits = str(abs(factor))
        places = [int(digit) * 10 ** (len(digits) - 1 - i) for i, digit in enumerate(digits) if digit != "0"]
        if len(places) > 1:  # one partial product for each digit, then their running sum
            partials = [total * (place if factor > 0 else -place) for place in places]
            sign = "" if factor > 0 else "-"
            steps += [f"{total}*{sign}{place}={partial}" for place, partial in zip(places, partials, strict=True)]
            terms = [str(partials[0]), *(f"{'-' if partial < 0 else '+'} {abs(partial)}" for partial in partials[1:])]
            steps.append(_sum_steps({"expression": " ".join(terms)}))
        else:
            steps.append(f"{total}*{factor}={after}")
        total = after
    return " ".join(steps)


_SOLUTIONS: dict[str, Callable[[Parameters], str]] = {
    "chain_sum": _sum_steps,
    "gcd": _gcd_steps,
    "products": _product_steps,
}
_EXPRESSIONS: dict[str, Callable[[Parameters], str]] = {
    "chain_sum": lambda metadata: metadata["expression"],
    "decimal_chain_sum": lambda metadata: metadata["expression"],
    "products": lambda metadata: metadata["expression"],
    "gcd": lambda metadata: f"gcd({', '.join(map(str, metadata['numbers']))})",
    "spell_backward": lambda metadata: metadata["word"],
}
