"""Several rewards as one: their weighted sum, or for each sample the one that its task asks for."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from rewards.base import Reward, RewardError, Sample
from rewards.function import RewardFunction
from rewards.model_score import PREFIX

_ENTRY = "{fn: math, weight: 1.0} (also kwargs, name, optional), a name, or a pair such as [math, 1.0]"
_KEYS = ("fn", "weight", "kwargs", "name", "optional")


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """One term of the sum.

    Example: `Part(name="format", judge=rewards.load("format"), weight=0.1, needed=True)`
    """

    name: str
    judge: RewardFunction
    weight: float
    needed: bool
    """Says whether a sample without this verdict has none at all."""


class Composite:
    """A weighted sum of rewards with its breakdown, or a choice among rewards by a column of the dataset row.

    For a sum, `rewards` is a list of {fn, weight, kwargs, name, optional}. The value is sum_k weight_k value_k, `parts`
    has every value_k under its name, and the reason is that of the first reward. When a needed part has no verdict, the
    sample has none either, with the reason of that part. A part that is `optional`, or weighs 0, is then left out.

    For a choice, `by` names a column, and `rewards` is a table from its values to such an entry or list of entries.
    """

    def __init__(self, rewards: Sequence[Any] | Mapping[str, Any], by: str = "") -> None:
        """Loads every reward; raises RewardError for an entry that cannot be read or loaded."""
        self.by = by
        if by:
            if not isinstance(rewards, Mapping) or not rewards:
                raise RewardError(f"by={by!r} needs rewards={{value of {by}: reward, ...}}, not {rewards!r}")
            self.routes = {str(task): _parts(entry) for task, entry in rewards.items()}
        else:
            if isinstance(rewards, (str, Mapping)) or not rewards:
                raise RewardError(f"rewards={rewards!r} must be a list of {_ENTRY}; for a table set `by` to its column")
            self.routes = {"": _parts(rewards)}

    def __call__(self, samples: Sequence[Sample]) -> list[Reward]:
        """Judges every sample by the rewards of its route; raises RewardError for a task that has none."""
        verdicts: dict[int, Reward] = {}
        for route, indices in self._routed(samples).items():
            chosen = [samples[index] for index in indices]
            verdicts |= zip(indices, _sum(self.routes[route], chosen), strict=True)
        return [verdicts[index] for index in range(len(samples))]

    @property
    def independent(self) -> bool:
        """Says whether all rewards judge each sample on its own."""
        return all(part.judge.independent for parts in self.routes.values() for part in parts)

    @property
    def longest_s(self) -> float:
        """The seconds after which the slowest route gives up on a sample; its parts take theirs one after the other."""
        return max(sum(part.judge.longest_s for part in parts) for parts in self.routes.values())

    def check_samples(self, samples: Sequence[Sample]) -> None:
        """Raises RewardError for a row whose task has no reward, or that lacks what its rewards need."""
        for route, indices in self._routed(samples).items():
            for part in self.routes[route]:
                part.judge.check_samples([samples[index] for index in indices])

    def close(self) -> None:
        """Lets go of all rewards."""
        for parts in self.routes.values():
            for part in parts:
                part.judge.close()

    def _routed(self, samples: Sequence[Sample]) -> dict[str, list[int]]:
        routed: dict[str, list[int]] = {}
        for index, sample in enumerate(samples):
            routed.setdefault(self._route(index, sample), []).append(index)
        return routed

    def _route(self, index: int, sample: Sample) -> str:
        if not self.by:
            return ""
        if self.by not in sample.meta:
            columns = ", ".join(map(str, sample.meta)) or "none"
            raise RewardError(f"by={self.by!r}: sample {index} has no such column; its columns: {columns}")
        route = str(sample.meta[self.by])
        if route not in self.routes:
            known = ", ".join(self.routes)
            raise RewardError(f"{self.by}={route!r} of sample {index} has no reward; there are rewards for {known}")
        return route


def _parts(entries: Any) -> list[Part]:
    if isinstance(entries, (str, Mapping)) or callable(entries):
        entries = [entries]
    parts = [_part(entry) for entry in entries]
    names = [part.name for part in parts]
    if twice := {name for name in names if names.count(name) > 1}:
        raise RewardError(f"rewards: {', '.join(sorted(twice))} is there twice; give each a `name` of its own")
    # What is right is read from the first reward, so without its verdict there is none.
    if not parts[0].needed and parts[0].weight:
        raise RewardError(f"rewards: {parts[0].name!r} comes first and cannot be optional; put another first")
    return [replace(parts[0], needed=True), *parts[1:]]


def _part(entry: Any) -> Part:
    from rewards.registry import load  # it lists this module

    match entry:
        case str() | Callable():
            entry = {"fn": entry}
        case [fn, int() | float() as weight]:
            entry = {"fn": fn, "weight": weight}
    if not isinstance(entry, Mapping) or "fn" not in entry or not entry.keys() <= set(_KEYS):
        raise RewardError(f"rewards: {entry!r} is not a reward; write {_ENTRY}")
    fn, weight, settings = entry["fn"], entry.get("weight", 1.0), entry.get("kwargs") or {}
    if isinstance(weight, bool) or not isinstance(weight, (int, float)):
        raise RewardError(f"rewards: weight={weight!r} of {fn!r} is not a number")
    if not math.isfinite(weight):
        raise RewardError(f"rewards: weight={weight!r} of {fn!r} is not finite; give a number such as 0.5")
    optional = entry.get("optional", False)
    if not isinstance(optional, bool):
        raise RewardError(f"rewards: optional={optional!r} of {fn!r} must be true or false")
    if not isinstance(settings, Mapping):
        raise RewardError(f"rewards: kwargs={settings!r} of {fn!r} is not a table of settings")
    judge = load(fn, **settings)
    return Part(
        name=str(entry.get("name") or _short(judge)),
        judge=judge,
        weight=float(weight),
        needed=not optional and weight != 0,
    )


def _short(judge: RewardFunction) -> str:
    """Shorten a name for the breakdown: `math` stays, package.module:fn and file.py:fn become `fn`, a model "model"."""
    return "model" if judge.name.startswith(PREFIX) else judge.name.rpartition(":")[2]


def _sum(parts: Sequence[Part], samples: Sequence[Sample]) -> list[Reward]:
    columns = [part.judge(samples) for part in parts]
    return [_add(parts, verdicts) for verdicts in zip(*columns, strict=True)]


def _add(parts: Sequence[Part], verdicts: Sequence[Reward]) -> Reward:
    logs: dict[str, Any] = {}
    values: dict[str, float] = {}
    inner: dict[str, float] = {}
    missing = None
    for part, verdict in zip(parts, verdicts, strict=True):
        if verdict.value is None:
            missing = verdict if part.needed and missing is None else missing
        else:
            values[part.name] = verdict.value
        inner |= {f"{part.name}.{name}": value for name, value in verdict.parts.items()}
        logs |= {f"{part.name}.{name}": value for name, value in {"reason": verdict.reason, **verdict.logs}.items()}
    if missing is not None or not values:
        return Reward(None, (missing or verdicts[0]).reason, parts=values | inner, logs=logs)
    total = sum(part.weight * values[part.name] for part in parts if part.name in values)
    return Reward(total, verdicts[0].reason, parts=values | inner, logs=logs)
