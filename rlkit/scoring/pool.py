"""Rewards off the driver: a group goes to one of a few processes as soon as it is sampled, its scores come later.

Plain processes on the driver's machine, with Ray or without: they start in a moment, hold nothing but the reward, and
can be killed when a function hangs, which neither a thread nor an alarm inside the reward allows. What is not covered:
processes on other machines (let a heavy reward call a service), telling a slow call from one that hangs.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from multiprocessing import Pipe
from queue import Empty, SimpleQueue
from threading import Lock
from typing import Any

from rewards import RewardError, Sample
from rlkit.cluster.reaper import below
from rlkit.config import RewardConfig
from rlkit.scoring.process import Failed, Ready, Verdicts
from rlkit.types import Group, Score

LOAD_S = 120.0
"""For a process to import the reward and what it needs."""
LEAVE_S = 5.0
"""For all processes to close their reward (a sandbox, a pool) when the run ends; then they are killed."""
OVER = "the run is over"
"""Said to a thread that comes after the end."""
# The driver's own search path, so that names mean the same; -P: nothing else goes in front of it.
PROGRAM = (
    "import json, sys; sys.path[:] = json.loads(sys.argv[2]); "
    "from rlkit.scoring.process import main; main(int(sys.argv[1]))"
)


@contextmanager
def build_reward(cfg: RewardConfig) -> Iterator[Scorer]:
    """The reward behind the loop's types, in processes of its own that end with the block."""
    scorer = Scorer(cfg)
    try:
        yield scorer
    finally:
        scorer.close()


class Scorer:
    """`rlkit.loop.RewardFn`: takes a group, returns at once, and judges it in one of `reward.workers` processes.

    A reward that judges each sample on its own has `reward.timeout` seconds for each; one that needs the batch gets a
    whole group and the time of all its samples. A rollout that takes longer has no verdict (reason "deadline"), nor has
    one whose process dies (reason "worker_lost"): the process is replaced and goes on with the others. A reward that
    cannot be loaded, raises, or returns what is no reward, raises RewardError from the future.
    """

    def __init__(self, cfg: RewardConfig) -> None:
        """Start the processes; they load the reward while the run starts its other parts."""
        self._cfg = cfg
        self._lock, self._closed = Lock(), False
        self._workers: set[_Worker] = set()
        self._idle: SimpleQueue[_Worker | None] = SimpleQueue()
        """None for a thread that comes after the end."""
        for _ in range(cfg.workers):
            self._idle.put(self._start())
        self._threads = ThreadPoolExecutor(cfg.workers, "reward")

    def __call__(self, group: Group) -> Future[Sequence[Score]]:
        """Queue a group; the future has one score for each rollout, in their order."""
        return self._threads.submit(self._judge, group)

    def close(self) -> None:
        """Drop what is queued, kill busy processes, and let idle ones close their reward."""
        with self._lock:
            self._closed = True
        self._threads.shutdown(wait=False, cancel_futures=True)
        idle = set()
        with suppress(Empty):
            while True:
                idle.add(self._idle.get_nowait())
        for worker in self._workers - idle:
            worker.kill()  # the thread that waits for its verdict reads the end of the channel
        for _ in range(self._cfg.workers):
            self._idle.put(None)  # a thread that has taken a group, but no worker yet, would wait for ever
        self._threads.shutdown()
        deadline = time.monotonic() + LEAVE_S
        for worker in self._workers:
            worker.dismiss()
        for worker in self._workers:
            worker.end(deadline)

    def _judge(self, group: Group) -> Sequence[Score]:
        samples = [_sample(group, index) for index in range(len(group.rollouts))]
        scores: list[Score] = []
        worker = self._idle.get()
        if worker is None:
            raise RuntimeError(OVER)
        try:
            while len(scores) < len(samples):
                try:
                    for found in worker.judge(samples[len(scores) :], self._cfg.timeout):
                        scores += found
                except _Lost as lost:
                    worker = self._replace(worker)
                    scores += lost.scores
        except RewardError as error:
            raise RewardError(f"{error} [prompt {group.prompt.id!r}, from rollout {len(scores)} on]") from error
        finally:
            self._idle.put(worker)
        return scores

    def _replace(self, worker: _Worker) -> _Worker:
        worker.kill()
        worker.dismiss()
        with self._lock:
            self._workers.remove(worker)
        return self._start()

    def _start(self) -> _Worker:
        with self._lock:
            if self._closed:
                raise RuntimeError(OVER)
            worker = _Worker(self._cfg.fn, self._cfg.kwargs)
            self._workers.add(worker)
            return worker


class _Lost(Exception):
    """The process hangs or is gone; `scores` are those of the samples that it was judging."""

    def __init__(self, reason: str, num_samples: int, seconds: float) -> None:
        self.reason = reason
        self.scores = [Score(value=None, reason=reason, seconds=seconds)] * num_samples


class _Worker:
    """One process and the channel to it."""

    def __init__(self, name: str, kwargs: dict[str, Any]) -> None:
        self._name = name
        self._ready: Ready | None = None
        self._channel, theirs = Pipe()
        command = [sys.executable, "-P", "-c", PROGRAM, str(theirs.fileno()), json.dumps(list(map(str, sys.path)))]
        # A session of its own: Ctrl-C in the terminal is for the driver, which then ends this process.
        self._process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, pass_fds=[theirs.fileno()], start_new_session=True
        )
        theirs.close()
        self._channel.send((name, kwargs))

    def judge(self, samples: Sequence[Sample], timeout: float) -> Iterator[list[Score]]:
        """Scores of all samples, as they come; raises _Lost for those that get none, RewardError if the reward fails.

        `timeout` is in seconds for each sample.
        """
        if self._ready is None:
            self._ready = self._load()
        size = 1 if self._ready.one_by_one else len(samples)
        with suppress(OSError):  # it is gone: the answer says so
            self._channel.send(samples)
        for _ in range(0, len(samples), size):
            answer = self._answer(size * timeout, size)
            assert isinstance(answer, Verdicts)
            yield [
                Score(value=r.value, reason=r.reason, parts=r.parts, logs=r.logs, seconds=answer.seconds)
                for r in answer.rewards
            ]

    def kill(self) -> None:
        """End the process and everything below it, at once."""
        family = below({self._process.pid})
        self._process.kill()
        for pid, _ in family:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self._process.wait()

    def dismiss(self) -> None:
        """Close the channel: a process that waits for samples closes its reward and leaves."""
        self._channel.close()

    def end(self, deadline: float) -> None:
        """Wait for the process until `deadline` (of time.monotonic), then kill it."""
        try:
            self._process.wait(max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            self.kill()

    def _load(self) -> Ready:
        try:
            answer = self._answer(LOAD_S, 0)
        except _Lost as lost:
            how = f"took more than {LOAD_S:g} s" if lost.reason == "deadline" else "ended the process"
            raise RewardError(f"importing reward {self._name!r} {how}; correct its module") from lost
        assert isinstance(answer, Ready)
        return answer

    def _answer(self, seconds: float, num_samples: int) -> Ready | Verdicts:
        start = time.monotonic()
        try:
            if not self._channel.poll(seconds):
                raise _Lost("deadline", num_samples, seconds)
            answer = self._channel.recv()
        except (EOFError, OSError):
            raise _Lost("worker_lost", num_samples, time.monotonic() - start) from None
        if isinstance(answer, Failed):
            error = RewardError(answer.message)
            error.add_note(f"in the reward's process:\n{answer.trace}")
            raise error
        return answer


def _sample(group: Group, index: int) -> Sample:
    rollout = group.rollouts[index]
    return Sample(
        group.prompt.text,
        rollout.text,
        completion_ids=rollout.tokens,
        finish_reason=rollout.finish_reason,
        meta=group.prompt.meta,
        step=rollout.weight_version,
    )
