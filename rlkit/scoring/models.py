"""Reward models while sampling goes on: they score a group as it is finished, and hand it to the other rewards.

A model is in this process (`cluster=local`) or in Ray actors; here it is a function that scores a group. Each has a
thread that waits for it, so that the loop, which starts to judge and goes on, never does. A group is scored alone and
whole: its scores do not depend on which other groups are waiting, nor on how many models there are.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from queue import SimpleQueue

import torch

from rewards.base import thought_is_open
from rewards.extract import thought_end
from rewards.model_score import Asked
from rlkit.data.tokenizer import load_tokenizer
from rlkit.model.files.folder import Checkpoint
from rlkit.model.files.names import EMBEDDING
from rlkit.model.scorer import DeepseekScorer
from rlkit.scoring.pool import Scorer
from rlkit.types import Group, Rollout, Score

MAX_TOKENS = 2**14
"""Tokens that a model scores in one pass."""

ScoreGroup = Callable[[Group], list[float]]
"""Scores the rollouts of a group; it may take its time."""


class RewardModel:
    """A reward model in this process."""

    def __init__(self, asked: Asked) -> None:
        """Loads it, as it is stored (fp32 or bf16), on the GPU if there is one."""
        folder = Path(asked.folder)
        stored = Checkpoint.open(folder).weights[EMBEDDING].dtype
        dtype = torch.float32 if stored == "F32" else torch.bfloat16
        device = "cuda" if torch.cuda.is_available() else "cpu"
        self.model = DeepseekScorer.from_checkpoint(folder, dtype).to(device).eval()
        self._device, self._reads, self._tokenizer = device, asked.reads, load_tokenizer(folder)

    @torch.no_grad()
    def score(self, group: Group) -> list[float]:
        """Scores the rollouts of a group behind its prompt, in order."""
        thinking = thought_is_open(group.prompt.text)
        samples = [(*group.prompt.tokens, *self._read(rollout, thinking)) for rollout in group.rollouts]
        scores: list[float] = []
        for part in _parts(samples):
            tokens_T = torch.tensor([token for sample in part for token in sample], device=self._device)
            scores += self.model(tokens_T, tuple(map(len, part))).tolist()
        return scores

    def _read(self, rollout: Rollout, thinking: bool = False) -> tuple[int, ...]:
        """Returns the tokens to judge: as they were sampled, or those of the answer alone, encoded anew.

        Nothing answers behind a thought that is left open, so that no praise inside it is scored. `thinking` says that
        the prompt ended inside one.
        """
        begin = thought_end(rollout.text, thinking)
        if self._reads == "whole" or begin == 0:
            return rollout.tokens
        answer = "" if begin is None else rollout.text[begin:]
        tokens: list[int] = self._tokenizer(answer, add_special_tokens=False)["input_ids"]
        end = self._tokenizer.eos_token_id
        return (*tokens, end) if rollout.finish_reason == "stop" and isinstance(end, int) else tuple(tokens)


def _parts(samples: Sequence[tuple[int, ...]]) -> Iterator[list[tuple[int, ...]]]:
    """Cuts samples into runs of at most `MAX_TOKENS` tokens, or one sample."""
    part: list[tuple[int, ...]] = []
    for sample in samples:
        if part and sum(map(len, part)) + len(sample) > MAX_TOKENS:
            yield part
            part = []
        part.append(sample)
    yield part


class Copies:
    """Copies of one reward model: a group goes to the next that is idle."""

    def __init__(self, copies: Sequence[ScoreGroup]) -> None:
        self._threads = ThreadPoolExecutor(len(copies), "reward-model")
        self._idle: SimpleQueue[ScoreGroup] = SimpleQueue()
        for copy in copies:
            self._idle.put(copy)

    def __call__(self, group: Group) -> Future[list[float]]:
        """Queues a group; the future has a score for each rollout, in their order."""
        return self._threads.submit(self._score, group)

    def _score(self, group: Group) -> list[float]:
        copy = self._idle.get()
        try:
            return copy(group)
        finally:
            self._idle.put(copy)

    def close(self) -> None:
        """Drops what is queued and waits for what is being scored."""
        self._threads.shutdown(cancel_futures=True)


class ModelScorer:
    """The loop's reward where reward models are asked: they score a group first, then the pool judges it with them."""

    def __init__(self, models: Mapping[str, Copies], pool: Scorer) -> None:
        """`models` are by `Asked.key`."""
        self._models, self._pool = models, pool
        self._thread = ThreadPoolExecutor(1, "scored")

    def __call__(self, group: Group) -> Future[Sequence[Score]]:
        """Starts to score a group and returns at once."""
        asked = {key: copies(group) for key, copies in self._models.items()}
        verdicts: Future[Sequence[Score]] = Future()
        self._thread.submit(self._hand_on, group, asked, verdicts)
        return verdicts

    def _hand_on(
        self, group: Group, asked: Mapping[str, Future[list[float]]], verdicts: Future[Sequence[Score]]
    ) -> None:
        """Waits for the scores of a group, and gives them to the pool with it."""
        try:
            found = {key: scores.result() for key, scores in asked.items()}
            rows = [{key: scores[i] for key, scores in found.items()} for i in range(len(group.rollouts))]
            self._pool(group, rows).add_done_callback(lambda judged: _pass_on(judged, verdicts))
        except BaseException as error:  # whoever waits for the verdicts is told
            verdicts.set_exception(error)

    def close(self) -> None:
        """Drops the groups whose scores are still to come."""
        self._thread.shutdown(cancel_futures=True)


def _pass_on(judged: Future[Sequence[Score]], verdicts: Future[Sequence[Score]]) -> None:
    """Gives one future what another one has."""
    try:
        verdicts.set_result(judged.result())
    except BaseException as error:
        verdicts.set_exception(error)


@contextmanager
def closing_all(models: dict[str, Copies]) -> Iterator[dict[str, Copies]]:
    """Ends the threads of the models with the block."""
    try:
        yield models
    finally:
        for copies in models.values():
            copies.close()
