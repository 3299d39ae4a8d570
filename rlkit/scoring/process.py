"""What runs in a reward process: samples come in, verdicts go out; it imports one reward and little else.

It has no deadline of its own, because a function that hangs in C code hears no signal: the driver, at the other end of
the pipe, kills the process (`rlkit.scoring.pool`). The pipe closes when the driver ends, and then the process ends too.
"""

from __future__ import annotations

import math
import time
import traceback
from collections.abc import Mapping, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass, replace
from typing import Any

import rewards
from rewards.failure import described
from rewards.judge.answer import Answer, Failure
from rewards.judge.policy import Asked, connect
from rewards.process import Channel

MAX_REASON = 200
"""Characters of a reason that are kept; a function may put a whole completion there."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Ready:
    """Says that the reward is loaded, and whether samples may be passed to it one at a time."""

    one_by_one: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdicts:
    """Holds what the reward says of the next samples, and the seconds that the call took; logs keep their numbers."""

    rewards: tuple[rewards.Reward, ...]
    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Failed:
    """Says that the reward cannot be loaded, or has raised; `trace` shows where."""

    message: str
    trace: str


def serve(channel: Channel) -> None:
    """Loads the reward that the first message names, then judges a list of samples for each message; never returns.

    The channel raises Gone when the driver has closed its end.
    """
    name, kwargs = channel.receive()
    try:
        judge = rewards.load(name, **kwargs)
    except BaseException as error:  # also what sys.exit() in a module raises: a silent end would look like a crash
        channel.send(_failed(error))
        return
    with closing(judge):
        channel.send(Ready(one_by_one=judge.independent))
        connect(lambda asked: _ask_driver(channel, asked))
        while True:
            _judge(channel, judge, channel.receive())


def _ask_driver(channel: Channel, asked: Asked) -> list[Answer | Failure]:
    """Lets the policy answer, whose engine only the driver can reach."""
    channel.send(asked)
    return channel.receive()


def _judge(channel: Channel, judge: rewards.RewardFunction, samples: Sequence[rewards.Sample]) -> None:
    for part in [[sample] for sample in samples] if judge.independent else [samples]:
        start = time.perf_counter()
        try:
            found = tuple(map(_portable, judge(part)))
        except BaseException as error:
            channel.send(_failed(error))
            return
        channel.send(Verdicts(rewards=found, seconds=time.perf_counter() - start))


def _portable(verdict: rewards.Reward) -> rewards.Reward:
    """Keeps what the run needs of a verdict; a reason may be a whole completion, and `logs` may hold anything."""
    reason = str(verdict.reason)[:MAX_REASON]
    return replace(verdict, reason=reason, parts=_numbers(verdict.parts), logs=_numbers(verdict.logs))


def _numbers(entries: Mapping[str, Any]) -> dict[str, float]:
    numbers = {}
    for name, entry in entries.items():
        with suppress(TypeError, ValueError, OverflowError):  # a reward may log what is not a number
            if not isinstance(entry, str) and math.isfinite(number := float(entry)):
                numbers[str(name)] = number
    return numbers


def _failed(error: BaseException) -> Failed:
    message = str(error) if isinstance(error, rewards.RewardError) else described(error)
    return Failed(message=message, trace=traceback.format_exc())
