"""Two callers of one engine: who samples, who waits, and who is sent away when the run is over."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping, Sequence

import pytest
from torch import Tensor

from rlkit.engine.base import Engine
from rlkit.engine.examination import Examination
from rlkit.engine.turns import OverError, TakingTurns
from rlkit.types import Group, Prompt, Rollout, Sampling, Weights

SAMPLING = Sampling(temperature=0.0, top_p=1.0, max_new_tokens=1, seed=0)


class Recorder:
    """Notes when each call begins and ends."""

    def __init__(self) -> None:
        self.events: list[str] = []
        self.num = 0

    def generate(self, prompts: Sequence[Prompt], n: int, sampling: Sampling) -> Iterator[Group]:
        self.num += 1
        self.events.append(f"{prompts[0].id} begins")
        for prompt in prompts:
            rollout = Rollout(tokens=(1,), logprobs=(0.0,), text="x", finish_reason="stop", weight_version=3, seed=0)
            yield Group(prompt=prompt, rollouts=(rollout,) * n)
        self.events.append(f"{prompts[0].id} ends")

    def finished(self) -> int:
        return 7

    def drafts(self) -> tuple[int, int]:
        return (self.num, 0)

    def load(self, weights: Weights, version: int) -> None:
        self.events.append(f"load {version}")

    def logprobs(self, sequences: Sequence[Sequence[int]]) -> list[list[float]]:
        return [[0.5]]

    def trace(self, tokens: Sequence[int]) -> Mapping[str, Tensor]:
        return {}

    def examine(self, sequences: Sequence[Sequence[int]]) -> Examination:
        raise NotImplementedError

    def replicas(self) -> Sequence[Engine]:
        return [self]


def prompts(*ids: str) -> list[Prompt]:
    return [Prompt(id=id, tokens=(1,), text=id, meta={}) for id in ids]


def test_a_judge_waits_until_all_groups_are_sampled() -> None:
    engine = Recorder()
    turns = TakingTurns(engine)
    found: list[Group] = []
    sampling = turns.generate(prompts("loop", "b", "c"), 2, SAMPLING)
    next(sampling)
    asked = threading.Thread(target=lambda: found.extend(turns.aside(prompts("judge", "d"), SAMPLING)))
    asked.start()
    assert [group.prompt.id for group in sampling] == ["b", "c"]
    asked.join(30)
    assert engine.events == ["loop begins", "loop ends", "judge begins", "judge ends"]
    assert [(group.prompt.id, len(group.rollouts)) for group in found] == [("judge", 1), ("d", 1)]
    assert turns.drafts() == (1, 0), "those of the loop, not those of the judge"


def test_a_sampling_that_breaks_off_gives_its_turn_back() -> None:
    turns = TakingTurns(Recorder())
    sampling = turns.generate(prompts("a", "b"), 1, SAMPLING)
    next(sampling)
    assert isinstance(sampling, Iterator)
    sampling.close()  # pyright: ignore
    assert len(turns.aside(prompts("c"), SAMPLING)) == 1


def test_who_waits_at_the_end_is_sent_away() -> None:
    turns = TakingTurns(Recorder())
    sampling = turns.generate(prompts("a", "b"), 1, SAMPLING)
    next(sampling)
    raised: list[BaseException] = []

    def wait() -> None:
        try:
            turns.aside(prompts("c"), SAMPLING)
        except OverError as error:
            raised.append(error)

    waiting = threading.Thread(target=wait)
    waiting.start()
    turns.close()
    waiting.join(30)
    assert not waiting.is_alive() and len(raised) == 1
    with pytest.raises(OverError):
        turns.aside(prompts("c"), SAMPLING)


def test_all_else_is_the_engines() -> None:
    engine = Recorder()
    turns: Engine = TakingTurns(engine)
    turns.load([], 4)
    assert engine.events == ["load 4"] and turns.finished() == 7 and turns.logprobs([[1]]) == [[0.5]]
    assert turns.trace([1]) == {} and turns.replicas() == [engine]
    with pytest.raises(NotImplementedError):
        turns.examine([[1]])
