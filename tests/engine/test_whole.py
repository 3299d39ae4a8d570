"""A load that breaks off leaves an engine that says so, not one that samples from half of each of two models."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from itertools import islice

import pytest
import torch
from torch import Tensor

from rlkit.engine.whole import HalfLoadedError, WholeLoads
from tests.engine.test_local import CONFIG, PROMPTS, SAMPLING, an_engine, drawn
from tests.model.tiny import seeded

Sent = Iterator[tuple[str, Tensor]]


def cut(weights: Sent, count: int) -> Sent:
    yield from islice(weights, count)
    raise ConnectionError("the sender is gone")


def test_the_version_is_that_of_the_last_whole_load() -> None:
    loads = WholeLoads()
    assert loads.version == 0
    with loads.loading(1), pytest.raises(HalfLoadedError, match="weights of version 1 are being loaded"):
        loads.check()
    assert loads.version == 1
    with pytest.raises(KeyboardInterrupt), loads.loading(2):
        raise KeyboardInterrupt
    with pytest.raises(HalfLoadedError, match=r"the load of version 2 broke off \(KeyboardInterrupt: \)"):
        _ = loads.version
    with loads.loading(3):
        pass
    assert loads.version == 3


INTERRUPTIONS: dict[str, tuple[Callable[[Sent], Sent], str]] = {
    "the sender dies": (lambda weights: cut(weights, 9), "ConnectionError: the sender is gone"),
    "before the first tensor": (lambda weights: cut(weights, 0), "ConnectionError: the sender is gone"),
    "after the last tensor": (lambda weights: cut(weights, 10_000), "ConnectionError: the sender is gone"),
    "a name is missing": (lambda weights: islice(weights, 9), "ValueError: .*missing, with"),
}


@pytest.mark.parametrize("what", INTERRUPTIONS)
def test_an_engine_in_this_process_refuses_until_a_load_is_whole(what: str) -> None:
    engine, other = an_engine(), seeded(CONFIG, seed=5)
    interrupted, reason = INTERRUPTIONS[what]
    with pytest.raises((ConnectionError, ValueError)):
        engine.load(interrupted(other.checkpoint_weights()), 4)
    broken = re.compile(rf"the load of version 4 broke off \({reason}")
    for ask in (
        lambda: next(engine.generate(PROMPTS, 1, SAMPLING)),
        lambda: engine.logprobs([[3, 4, 5]]),
        lambda: engine.trace([3, 4, 5]),
    ):
        with pytest.raises(HalfLoadedError, match=broken):
            ask()
    engine.load(other.checkpoint_weights(), 5)
    assert drawn(engine, PROMPTS, 1, SAMPLING)[0].rollouts[0].weight_version == 5
    expected = an_engine(other).logprobs([[3, 4, 5]])
    assert torch.equal(torch.tensor(engine.logprobs([[3, 4, 5]])), torch.tensor(expected))
