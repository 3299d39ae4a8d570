"""What a stage of a pipeline is: an ordinary recipe in a folder of its own, which starts from what came before."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from rlkit.run.job import DATASET, PREFERENCES
from rlkit.run.progress import MODEL

Links = Mapping[str, Path]
"""What a stage takes from earlier ones: a key of its recipe, as `{"model.path": base.model}`, or a name that stands in
the stage's settings as `${NAME}`, as in `data.mixture: [{source: "${kept}"}, ...]`."""


class Recipe(Protocol):
    """A module of `recipes`: its function `main` takes the words of a command line."""

    __name__: str

    @staticmethod
    def main(argv: Sequence[str] | None = None) -> None:
        """Runs the recipe."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Made:
    """What a stage leaves behind, for later stages to start from.

    Example: `Made(folder=Path("outputs/r1/2-cold_start")).model` is `outputs/r1/2-cold_start/model`
    """

    folder: Path
    origin: Path | None = None
    """Where the model stands from the start, if no stage trains it."""

    @property
    def model(self) -> Path:
        """Returns the folder of the trained model."""
        return self.origin or self.folder / MODEL

    @property
    def dataset(self) -> Path:
        """Returns the folder of the rows that a data job kept."""
        return self.folder / DATASET

    @property
    def preferences(self) -> Path:
        """Returns the folder of the pairs that a data job made."""
        return self.folder / PREFERENCES


class Pipeline(Protocol):
    """Runs stages one after the other; a recipe of several stages is a function of one of these."""

    def base(self, recipe: Recipe) -> Made:
        """Gives the model that everything starts from: that of key `base`, or a new one that `recipe` trains."""
        ...

    def run(self, name: str, recipe: Recipe, links: Links) -> Made:
        """Runs one stage, or goes on with it, or finds it done; `links` say what it takes from earlier ones."""
        ...


def recipe_name(recipe: Recipe) -> str:
    """Returns the word that `rlkit run` knows a recipe by."""
    return recipe.__name__.rpartition(".")[2]
