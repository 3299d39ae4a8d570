"""The parts of a run, as the stories see them: real ones, or any others that keep to the same protocols."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from rlkit.engine.base import Engine
from rlkit.parity import Agreement
from rlkit.rollout.judging import RewardFn
from rlkit.train.base import Trainer


class SyncError(RuntimeError):
    """Weights that an engine was sent are not those that the trainer published: a wrong byte, version or name."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Learning:
    """What learns, alone: all that a run needs which does not sample."""

    trainer: Trainer


@dataclass(frozen=True, slots=True, kw_only=True)
class Parts(Learning):
    """What samples, what learns and what judges, joined for a run that trains."""

    engine: Engine
    reward: RewardFn
    gate: Callable[[], Agreement]
    """Compares engine and trainer, returns how far their log-probs are apart and raises when it is too far."""
    form: str = "plain"
    """In which of `rlkit.model.files.sent.FORMS` the engine takes weights; `ADAPTER` sends LoRA's matrices alone."""

    def sync(self, version: int) -> Agreement:
        """Publishes the trainer's weights, or its adapter, to the engine and checks that both now say the same."""
        self.engine.load(self.trainer.weights(version, self.form), version)
        return self.gate()
