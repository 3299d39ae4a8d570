"""Rewards off the driver: a group goes to one of a few processes as soon as it is sampled, and its scores come later.

These are plain processes on the driver's machine, with Ray or without. They start in a moment, hold nothing but the
reward, and can be killed when a function hangs, which neither a thread nor an alarm inside the reward allows. What is
not covered: processes on other machines (let a heavy reward call a service), and telling a slow call from one that
hangs.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from queue import Empty, SimpleQueue
from threading import Lock
from typing import Any

from rewards import RewardError, Sample
from rewards.judge.policy import Asked
from rewards.process import Gone, Overdue, Process
from rlkit.config import RewardConfig
from rlkit.scoring.policy import PolicyJudge, answered
from rlkit.scoring.process import Failed, Ready, Verdicts
from rlkit.types import Group, Score

LOAD_S = 120.0
"""Seconds that a process has to import the reward and what it needs."""
LEAVE_S = 5.0
"""Seconds that all processes together have to close their rewards (a sandbox, a pool) when the run ends; then they are
killed."""
OVER = "the run is over"
"""Said to a thread that comes for a process after the end."""


@contextmanager
def build_reward(cfg: RewardConfig) -> Iterator[Scorer]:
    """Gives the reward behind the loop's types, in processes of its own that end with the block."""
    scorer = Scorer(cfg)
    try:
        yield scorer
    finally:
        scorer.close()


class Scorer:
    """The loop's reward: it takes a group, returns at once, and judges it in one of `reward.workers` processes.

    A reward that judges each sample on its own has `reward.timeout` seconds for each of them. One that needs the batch
    gets a whole group, and the time of all its samples. A rollout that takes longer has no verdict (reason "deadline"),
    and neither has one whose process dies (reason "worker_lost"); a new process then goes on with the others. The
    future raises RewardError when the reward cannot be loaded, raises, or returns something that is not a reward.
    """

    def __init__(self, cfg: RewardConfig) -> None:
        """Starts the processes; they load the reward while the run starts its other parts."""
        self._cfg = cfg
        self._lock, self._closed = Lock(), False
        self._workers: set[_Worker] = set()
        self._idle: SimpleQueue[_Worker | None] = SimpleQueue()
        """Processes that wait for work; None tells a thread that comes after the end to give up."""
        for _ in range(cfg.workers):
            self._idle.put(self._start())
        self._threads = ThreadPoolExecutor(cfg.workers, "reward")
        self._policy: PolicyJudge | None = None

    def judged_by(self, policy: PolicyJudge) -> None:
        """Lets the policy answer what a reward with endpoint=policy asks."""
        self._policy = policy

    def __call__(self, group: Group, scores: Sequence[Mapping[str, float]] = ()) -> Future[Sequence[Score]]:
        """Queues a group; the future has one score for each rollout, in their order.

        `scores` is what reward models have said of each rollout (`rewards.Sample.scores`).
        """
        return self._threads.submit(self._judge, group, scores or [{}] * len(group.rollouts))

    def close(self) -> None:
        """Drops what is queued, kills busy processes, and lets idle ones close their reward.

        There is one thread for each process. A thread is in one of three places: without work, waiting in `_judge` for
        an idle process, or waiting for the verdict of one. Each must find its way out before the threads are joined.
        """
        with self._lock:
            self._closed = True  # from here on no process is started
        if self._policy is not None:
            self._policy.close()  # the thread that waits for its turn at the engine gives up
        self._threads.shutdown(wait=False, cancel_futures=True)  # those without work end
        idle = set()
        with suppress(Empty):
            while True:
                idle.add(self._idle.get_nowait())
        for worker in self._workers - idle:
            worker.process.kill()  # the thread that waits for its verdict reads the end of the pipe
        for _ in range(self._cfg.workers):
            self._idle.put(None)  # the thread that has taken a group, but no process yet, gives up
        self._threads.shutdown()
        for worker in self._workers:
            worker.process.dismiss()  # all at once, so that they close their rewards side by side
        deadline = time.monotonic() + LEAVE_S
        for worker in self._workers:
            worker.process.end(max(0.0, deadline - time.monotonic()))

    def _judge(self, group: Group, said: Sequence[Mapping[str, float]]) -> Sequence[Score]:
        samples = [_sample(group, index, said[index]) for index in range(len(group.rollouts))]
        scores: list[Score] = []
        worker = self._idle.get()
        if worker is None:
            raise RuntimeError(OVER)
        try:
            # `scores` grows as verdicts come, so that a process that is lost costs the sample it was busy with and no
            # other: the next one goes on behind it. What was lost has a reason instead of a value.
            while len(scores) < len(samples):
                try:
                    for found in worker.judge(samples[len(scores) :], self._cfg.timeout, self._policy):
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
        worker.process.end(patience=0)
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
    """The process hangs or has ended; `scores` are those of the samples that it was judging."""

    def __init__(self, reason: str, num_samples: int, seconds: float) -> None:
        self.reason = reason
        self.scores = [Score(value=None, reason=reason, seconds=seconds)] * num_samples


class _Worker:
    """The reward in a process of its own; it is loaded while the caller does other things."""

    def __init__(self, name: str, kwargs: dict[str, Any]) -> None:
        self._name = name
        self._ready: Ready | None = None
        self.process = Process("rlkit.scoring.process:serve", prints=True)
        with suppress(Gone, Overdue):  # whoever waits for its first answer is told
            self.process.send((name, kwargs), LOAD_S)

    def judge(
        self, samples: Sequence[Sample], timeout: float, policy: PolicyJudge | None = None
    ) -> Iterator[list[Score]]:
        """Yields the scores of all samples as they come; `timeout` is in seconds for each sample.

        Its clock starts anew when the policy has answered what the reward asked: the engine may have been sampling.

        Raises _Lost for those samples that get none, and RewardError if the reward fails.
        """
        if self._ready is None:
            self._ready = self._load()
        size = 1 if self._ready.one_by_one else len(samples)
        with suppress(Gone, Overdue):  # the missing answer says it
            self.process.send(samples, size * timeout)
        # All samples go out in one message and verdicts come back one by one, each with a time limit of its own: the
        # process never waits for the driver between two samples.
        for _ in range(0, len(samples), size):
            answer = self._answer(size * timeout, size)
            while isinstance(answer, Asked):
                try:
                    answers = answered(policy, answer)
                except BaseException:
                    self.process.kill()  # it waits for these answers, and would take what comes next for them
                    raise
                with suppress(Gone, Overdue):
                    self.process.send(answers, size * timeout)
                answer = self._answer(size * timeout, size)
            assert isinstance(answer, Verdicts)
            yield [
                Score(value=r.value, reason=r.reason, parts=r.parts, logs=r.logs, seconds=answer.seconds)
                for r in answer.rewards
            ]

    def _load(self) -> Ready:
        try:
            answer = self._answer(LOAD_S, 0)
        except _Lost as lost:
            how = f"took more than {LOAD_S:g} s" if lost.reason == "deadline" else "ended the process"
            raise RewardError(f"importing reward {self._name!r} {how}; correct its module") from lost
        assert isinstance(answer, Ready)
        return answer

    def _answer(self, seconds: float, num_samples: int) -> Ready | Verdicts | Asked:
        start = time.monotonic()
        try:
            answer = self.process.receive(seconds)
        except Overdue:
            raise _Lost("deadline", num_samples, seconds) from None
        except Gone:
            raise _Lost("worker_lost", num_samples, time.monotonic() - start) from None
        if isinstance(answer, Failed):
            error = RewardError(answer.message)
            error.add_note(f"in the reward's process:\n{answer.trace}")
            raise error
        return answer


def _sample(group: Group, index: int, scores: Mapping[str, float]) -> Sample:
    rollout = group.rollouts[index]
    return Sample(
        group.prompt.text,
        rollout.text,
        completion_ids=rollout.tokens,
        finish_reason=rollout.finish_reason,
        meta=group.prompt.meta,
        step=rollout.weight_version,
        scores=scores,
    )
