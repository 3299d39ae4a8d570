"""What runs in a reward process: one reward, samples in, verdicts out; it imports the reward and little else.

It has no deadline of its own: a function that hangs in C code hears no signal. Who holds the other end of the channel
kills the process (`rlkit.cluster.scoring`). The channel closes with the driver, and then the process ends.
"""

from __future__ import annotations

import inspect
import time
import traceback
from collections.abc import Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection

import rewards

MAX_REASON = 200
"""Characters of a reason; a function may put a whole completion there."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Ready:
    """The reward is loaded; `one_by_one` says whether it judges each sample on its own."""

    one_by_one: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdicts:
    """Values and reasons of the next samples, and the seconds that the call took."""

    values: tuple[tuple[float | None, str], ...]
    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Failed:
    """The reward cannot be loaded, or raised; `trace` shows where."""

    message: str
    trace: str


def main(descriptor: int) -> None:
    """Serve on an inherited channel until its other end closes: `(name, kwargs)` first, then lists of samples."""
    channel = Connection(descriptor)
    name, kwargs = channel.recv()
    try:
        judge = rewards.load(name, **kwargs)
    except BaseException as error:  # also what sys.exit() in a module raises: a silent end would look like a crash
        channel.send(_failed(error))
        return
    one_by_one = judges_one_by_one(judge)
    try:
        channel.send(Ready(one_by_one=one_by_one))
        while True:
            _judge(channel, judge, one_by_one, channel.recv())
    except (EOFError, BrokenPipeError):  # the driver is done, or gone
        judge.close()


def judges_one_by_one(judge: rewards.RewardFunction) -> bool:
    """Whether samples may be passed one at a time, so that one that hangs costs no other its verdict.

    A batch function sees a whole group, and so do coroutines, which wait together.
    """
    return judge.shape.per_sample and not inspect.iscoroutinefunction(judge.fn)


def _judge(
    channel: Connection, judge: rewards.RewardFunction, one_by_one: bool, samples: Sequence[rewards.Sample]
) -> None:
    for part in [[sample] for sample in samples] if one_by_one else [samples]:
        start = time.perf_counter()
        try:
            found = judge(part)
        except BaseException as error:
            channel.send(_failed(error))
            return
        values = tuple((verdict.value, str(verdict.reason)[:MAX_REASON]) for verdict in found)
        channel.send(Verdicts(values=values, seconds=time.perf_counter() - start))


def _failed(error: BaseException) -> Failed:
    message = str(error) if isinstance(error, rewards.RewardError) else f"{type(error).__name__}: {error}"
    return Failed(message=message, trace=traceback.format_exc())
