"""Learning rate as a function of the step alone, so that a resumed run cannot disagree."""

from __future__ import annotations

import math
from dataclasses import dataclass

SCHEDULES = ("constant", "cosine", "linear")


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """Linear warm-up to `lr`, then constant, cosine or linear decay; doubles as a configuration node."""

    lr: float
    """Peak learning rate."""
    warmup_steps: int
    """Steps until the peak; the first step already learns at lr / warmup_steps."""
    kind: str
    final_ratio: float
    """Learning rate of the last step / peak; not read when constant."""

    def __post_init__(self) -> None:
        """Refuse rates and kinds that mean nothing."""
        if self.lr <= 0:
            raise ValueError(f"lr={self.lr} must be above 0")
        if self.warmup_steps < 0:
            raise ValueError(f"warmup_steps={self.warmup_steps} must be 0 or more")
        if self.kind not in SCHEDULES:
            raise ValueError(f"kind={self.kind!r} is unknown; use one of {', '.join(SCHEDULES)}")

    def at(self, step: int, num_steps: int) -> float:
        """Learning rate of step 1..num_steps.

        warm-up:  lr step / warmup_steps
        after:    lr (f + (1 - f) r),  r = (1 + cos(pi p)) / 2 or 1 - p,  p = (step - warmup) / (num_steps - warmup)
        """
        if step <= self.warmup_steps:
            return self.lr * step / self.warmup_steps
        if self.kind == "constant":
            return self.lr
        progress = (step - self.warmup_steps) / max(1, num_steps - self.warmup_steps)
        remaining = (1 + math.cos(math.pi * progress)) / 2 if self.kind == "cosine" else 1 - progress
        return self.lr * (self.final_ratio + (1 - self.final_ratio) * remaining)
