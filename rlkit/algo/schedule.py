"""Learning rate as a function of the step alone, so that a resumed run cannot disagree."""

from __future__ import annotations

import math
from dataclasses import dataclass

from rlkit.checks import number, one_of, whole

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
        """Refuses rates, ratios and kinds that mean nothing."""
        number("lr", self.lr, above=0, most=1, fix="AdamW moves every weight by about this much in a step")
        whole("warmup_steps", self.warmup_steps)
        one_of("kind", self.kind, SCHEDULES)
        number("final_ratio", self.final_ratio, least=0, most=1, fix="0.1 ends at a tenth of lr, 1 stays there")

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
