"""An engine that two callers share: the loop samples, and a judge asks when nobody samples."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

from torch import Tensor

from rlkit.engine.base import Engine
from rlkit.engine.examination import Examination
from rlkit.types import Group, Prompt, Sampling, Weights


class OverError(RuntimeError):
    """The run is over while a caller waits for its turn."""


class TakingTurns:
    """An `Engine` on which one `generate` runs at a time, from its first group to its last; a second one waits.

    So a batch holds what one caller asks and nothing else, and its log-probs do not depend on when another came.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._changed, self._busy, self._over = threading.Condition(), False, False
        self._drafts = (0, 0)

    def generate(self, prompts: Sequence[Prompt], n: int, sampling: Sampling) -> Iterator[Group]:
        """Draws `n` completions for each prompt, as the engine does, when it is free."""
        with self._turn():
            yield from self._engine.generate(prompts, n, sampling)
            self._drafts = self._engine.drafts()

    def aside(self, prompts: Sequence[Prompt], sampling: Sampling) -> list[Group]:
        """Draws a completion for each prompt when the engine is free, and leaves `drafts` as they were.

        Raises OverError if `close` is called while it waits.
        """
        with self._turn():
            return list(self._engine.generate(prompts, 1, sampling))

    def close(self) -> None:
        """Sends those who wait away: a run that failed while it sampled never ends its turn."""
        with self._changed:
            self._over = True
            self._changed.notify_all()

    def finished(self) -> int:
        """As the engine's."""
        return self._engine.finished()

    def drafts(self) -> tuple[int, int]:
        """Counts the drafts of the last `generate`, whatever was asked aside since then."""
        return self._drafts

    def load(self, weights: Weights, version: int) -> None:
        """As the engine's."""
        self._engine.load(weights, version)

    def logprobs(self, sequences: Sequence[Sequence[int]]) -> list[list[float]]:
        """As the engine's."""
        return self._engine.logprobs(sequences)

    def trace(self, tokens: Sequence[int]) -> Mapping[str, Tensor]:
        """As the engine's."""
        return self._engine.trace(tokens)

    def examine(self, sequences: Sequence[Sequence[int]]) -> Examination:
        """As the engine's."""
        return self._engine.examine(sequences)

    def replicas(self) -> Sequence[Engine]:
        """As the engine's."""
        return self._engine.replicas()

    @contextmanager
    def _turn(self) -> Iterator[None]:
        with self._changed:
            self._changed.wait_for(lambda: not self._busy or self._over)
            if self._over:
                raise OverError("the run is over")
            self._busy = True
        try:
            yield
        finally:
            with self._changed:
                self._busy = False
                self._changed.notify_all()
