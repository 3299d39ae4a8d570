"""The score of a reward model as a reward among others: "model:FOLDER".

A run computes the scores where its models are, and hands them on with the sample; here they are only read. So a model
can stand in a weighted sum or be the choice of a task like every other reward (`rewards.composite`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rewards.base import Reward, RewardError, Sample

PREFIX = "model:"
READS = ("whole", "answer")


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """A reward model that a run's reward asks for.

    Example: `Asked(folder="outputs/reward_model/model", reads="answer")`
    """

    folder: str
    """As an absolute path."""
    reads: str = "whole"
    """What it reads behind the prompt: the "whole" completion, or the "answer", which is what follows the last
    `</think>`; behind a thought that is left open it is empty."""
    actors: int = 1
    """How many copies of it judge at the same time, on Ray."""

    def __post_init__(self) -> None:
        """Refuses settings that mean nothing."""
        if self.reads not in READS:
            raise RewardError(f"reward {self.name!r}: reads={self.reads!r} is unknown; use {' or '.join(READS)}")
        if type(self.actors) is not int or self.actors < 1:
            raise RewardError(f"reward {self.name!r}: actors={self.actors!r} must be a whole number of at least 1")

    @property
    def name(self) -> str:
        """Returns the words of a configuration."""
        return f"{PREFIX}{self.folder}"

    @property
    def key(self) -> str:
        """Returns the name of its scores in `Sample.scores`."""
        return f"{self.reads} {self.folder}"


class ModelScore:
    """Reads the score that a reward model has given; the value is the score itself."""

    independent = True

    def __init__(self, folder: str, reads: str = "whole", actors: int = 1) -> None:
        """Raises RewardError for settings that mean nothing."""
        self.asked = Asked(folder=absolute(folder), reads=reads, actors=actors)

    def __call__(self, samples: Sequence[Sample]) -> list[Reward]:
        """Raises RewardError outside a run, where nobody has computed a score."""
        try:
            return [Reward(sample.scores[self.asked.key]) for sample in samples]
        except KeyError:
            raise RewardError(
                f"reward {self.asked.name!r} is a reward model, which judges inside a run only; use another one here"
            ) from None


def asked_for(fn: Any, kwargs: Mapping[str, Any]) -> list[Asked]:
    """Returns the reward models that a reward with these settings asks for, each once."""
    found = {asked.key: asked for asked in _entries({"fn": fn, "kwargs": kwargs})}
    return list(found.values())


def absolute(folder: str) -> str:
    """Returns the full path; other processes may run in another folder."""
    return str(Path(folder).expanduser().absolute())


def _entries(value: Any) -> Iterator[Asked]:
    """Looks for "model:FOLDER" in all forms that an entry of a composite may have."""
    match value:
        case str() if value.startswith(PREFIX):
            yield Asked(folder=absolute(value.removeprefix(PREFIX)))
        case {"fn": str() as fn} if fn.startswith(PREFIX):
            settings = value.get("kwargs") or {}
            if unknown := sorted(settings.keys() - {"reads", "actors"}):
                raise RewardError(f"reward {fn!r} takes no setting {unknown[0]!r}; it takes actors, reads")
            yield Asked(folder=absolute(fn.removeprefix(PREFIX)), **settings)
        case Mapping():
            for entry in value.values():
                yield from _entries(entry)
        case list() | tuple():
            for entry in value:
                yield from _entries(entry)
