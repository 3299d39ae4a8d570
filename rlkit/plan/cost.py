"""GPU-hours and money: of a published run's stages, and of a plan's own floor."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

PRICE = 2.0
"""Dollars for an hour of an H800, as V3's paper assumes (arXiv:2412.19437, table 1)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
    """One stage of a run."""

    name: str
    hours: float
    """GPU-hours."""
    reckoning: str
    """What the hours come from."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Cost:
    """What stages take and cost."""

    stages: tuple[Stage, ...]
    price: float

    @property
    def hours(self) -> float:
        """GPU-hours of all stages."""
        return sum(stage.hours for stage in self.stages)

    @property
    def dollars(self) -> float:
        """What they cost."""
        return self.hours * self.price


def by_tokens(name: str, trillions: float, hours_per_trillion: float) -> Stage:
    """Returns a stage whose hours go by the tokens that it reads."""
    told = f"{trillions:g} T tokens x {hours_per_trillion:,.0f} GPU-hours each"
    return Stage(name=name, hours=trillions * hours_per_trillion, reckoning=told)


def by_wall(name: str, wall_hours: float, gpus: int) -> Stage:
    """Returns a stage whose hours go by the clock."""
    return Stage(name=name, hours=wall_hours * gpus, reckoning=f"{wall_hours:,.4g} h on {gpus:,} GPUs")


def as_stated(name: str, hours: float) -> Stage:
    """Returns a stage whose hours are published as a number alone."""
    return Stage(name=name, hours=hours, reckoning="as published")


V3_STAGES: Sequence[Stage] = (
    by_tokens("pre-training", 14.8, 180_000),
    as_stated("context extension", 119_000),
    as_stated("post-training", 5_000),
)
"""DeepSeek-V3 on 2,048 H800 (arXiv:2412.19437, section 1 and table 1)."""
R1_STAGES: Sequence[Stage] = (
    by_wall("R1-Zero", 198, 512),
    as_stated("SFT data", 5_000),
    by_wall("R1", 80, 512),
)
"""DeepSeek-R1 on 64 x 8 H800 (arXiv:2501.12948, supplementary B.4); the paper rounds each stage and gives 147 K."""
