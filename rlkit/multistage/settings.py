"""The settings of a pipeline: for each size, what all stages share and what each has of its own.

A file in `configs/pipelines/` has one table for each size; in it, one for each stage and one called `all`, of keys as
they stand on the command line of the stage's recipe.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from rlkit.checks import suggestion
from rlkit.config.compose import FILES, FREE_GROUPS, compose_dict
from rlkit.errors import UserError
from rlkit.multistage.origin import Origin, origin_of
from rlkit.multistage.stage import Links
from rlkit.overrides import ConfigError, read_override

BASE = "base"
"""The stage that trains what everything starts from, where no folder is given."""
ALL = "all"
"""The table of the settings that every stage gets whose recipe has them."""
OWN = ("size", BASE, "output_dir", "dry_run")
"""Keys of a pipeline itself."""
FOLDER = "output_dir"


@dataclass(frozen=True, slots=True, kw_only=True)
class PipelineConfig:
    """Everything that a pipeline was told.

    Example: `PipelineConfig(name="r1", size="tiny", base="", output_dir=Path("/runs/r1"), dry_run=False,
    stages={"cold_start": ("sft.steps=60",)}, shared=("cluster=ray",), given=("seed=1",),
    given_alone={"cold_start": ()})`
    """

    name: str
    size: str
    base: str
    """The folder of the model that everything starts from; "" trains one first."""
    output_dir: Path
    dry_run: bool
    stages: Mapping[str, tuple[str, ...]]
    """The words of the file for each stage."""
    shared: tuple[str, ...]
    """The words of the file for every stage that has them."""
    given: tuple[str, ...]
    """The words of the command line for every stage that has them."""
    given_alone: Mapping[str, tuple[str, ...]]
    """The words of the command line for each stage."""

    def words(self, stage: str, recipe: str, number: int, links: Links) -> list[str]:
        """Returns the command line of one stage: the file's words, then those of the command line, then links.

        Of each the words for all stages come before the stage's own. Where links set something, as the data, the
        file's words for the stage count more than those that the command line has for all: they belong to the links.
        A link whose name stands in the words as `${NAME}` goes there, and any other is a key.

        Raises:
            UserError: for a word of the command line that sets what a link sets.
        """
        elsewhere = "write it for a stage that takes none, as STAGE.KEY=VALUE"
        for word in self.given:
            _check_link(word, word, stage, links, elsewhere)
        for word in self.given_alone[stage]:
            _check_link(word, f"{stage}.{word.lstrip('+~')}", stage, links, "leave it out")
        own = self.stages[stage]
        linked = {_group(word) for word in own if any(_place(name) in word for name in links)}
        linked |= {_group(name) for name in links}
        given = [word for word in self.given if has_key(recipe, word)]
        early, late = ([word for word in given if (_group(word) in linked) is first] for first in (True, False))
        shared = [word for word in self.shared if has_key(recipe, word)]
        words = [*shared, *early, *own, *late, *self.given_alone[stage]]
        for name, path in links.items():
            place = _place(name)
            named = any(place in word for word in words)
            words = [word.replace(place, str(path)) for word in words] + ([] if named else [f"{name}={path}"])
        return [*words, f"{FOLDER}={self.folder(stage, number)}"]

    def origin(self, stage: str, recipe: str, number: int, links: Links) -> Origin:
        """Reads what a stage is made from."""
        named = {name: Path(f"<{name}>") for name in links}
        return origin_of(recipe, self.words(stage, recipe, number, links), self.words(stage, recipe, number, named))

    def folder(self, stage: str, number: int) -> Path:
        """Returns where a stage runs: its place and its name, below the pipeline's own folder."""
        return self.output_dir / f"{number}-{stage}"


@cache
def has_key(recipe: str, word: str) -> bool:
    """Says whether a recipe has the group or key that a word sets; raises ConfigError where only its value is wrong."""
    try:
        compose_dict(recipe, [word])
    except ConfigError as error:
        if "is not a key of recipe" in str(error) or "has no such group" in str(error):
            return False
        raise
    return True


def read_settings(name: str, argv: Sequence[str]) -> PipelineConfig:
    """Reads the pipeline's file, chooses a size, and deals the command line's words to the stages.

    `STAGE.KEY=VALUE` is for one stage; any other word for all that have the key.

    Raises:
        UserError: for an unknown size, for a stage's key that belongs to the pipeline, and for one of a stage that
            does not run.
    """
    own = {"size": "tiny", BASE: "", FOLDER: f"outputs/{name}", "dry_run": "false"}
    words = [(override.key, word) for word in argv for override in [read_override(word)]]
    own |= {key: word.partition("=")[2] for key, word in words if key in OWN}
    sizes = yaml.safe_load((FILES / "pipelines" / f"{name}.yaml").read_text(encoding="utf-8"))
    if own["size"] not in sizes:
        near = suggestion(own["size"], list(sizes))
        raise UserError(f"size={own['size']} is unknown; {name} has {', '.join(sizes)}{near}")
    if own["dry_run"] not in ("true", "false"):
        raise UserError(f"dry_run={own['dry_run']} is neither true nor false; give one of them")
    table = sizes[own["size"]]
    stages = {stage: [as_word(key, value) for key, value in keys.items()] for stage, keys in table.items()}
    shared, given = stages.pop(ALL, []), []
    alone: dict[str, list[str]] = {stage: [] for stage in stages}
    for key, word in words:
        stage, _, rest = key.partition(".")
        if key in OWN:
            continue
        if stage in stages:
            _check_stage_word(word, stage, rest, own)
            sign = word[: len(word) - len(word.lstrip("+~"))]
            alone[stage].append(sign + word.partition(".")[2])
        else:
            given.append(word)
    return PipelineConfig(
        name=name,
        size=own["size"],
        base=own[BASE] and str(Path(own[BASE]).expanduser().absolute()),
        output_dir=Path(own[FOLDER]).expanduser().absolute(),
        dry_run=own["dry_run"] == "true",
        stages={stage: tuple(found) for stage, found in stages.items()},
        shared=tuple(shared),
        given=tuple(given),
        given_alone={stage: tuple(found) for stage, found in alone.items()},
    )


def _group(word: str) -> str:
    """Returns the first part of the key of a word."""
    return word.partition("=")[0].partition(".")[0].lstrip("+~")


def _place(name: str) -> str:
    """Returns how the name of a link stands in words."""
    return f"${{{name}}}"


def _check_link(word: str, written: str, stage: str, links: Links, fix: str) -> None:
    """Refuses a word that sets what a link sets, which would count more."""
    override = read_override(word)
    _, free = FREE_GROUPS.get(override.key, ("", ""))
    key = free if "/" in override.text or "." in override.text else override.key
    for name, path in links.items():
        if name in (key, override.key):
            base = f", or set {BASE}=FOLDER to start everything from another model" if name == "model.path" else ""
            raise UserError(f"{written}: the stage {stage} takes {name} from {path}; {fix}{base}")


def _check_stage_word(word: str, stage: str, rest: str, own: Mapping[str, str]) -> None:
    if not rest:
        raise UserError(f"{word}: {stage} is a stage; write {stage}.KEY=VALUE, with a key of its recipe")
    if rest == FOLDER:
        raise UserError(f"{word}: a stage's folder is {own[FOLDER]}/NUMBER-{stage}; set {FOLDER} instead")
    if rest == "dry_run":
        raise UserError(f"{word}: all stages are checked together; set dry_run instead")
    if stage == BASE and own[BASE]:
        raise UserError(
            f"{word}: base={own[BASE]} takes the place of the stage {BASE}, which does not run; leave one of them out"
        )


class _Written(yaml.SafeDumper):
    """Writes out what an anchor of the file names, as often as it is named."""

    def ignore_aliases(self, data: Any) -> bool:
        """Says that nothing stands for anything else."""
        return True


def as_word(key: str, value: Any) -> str:
    """Writes a setting of the file as a word of the command line."""
    if isinstance(value, str):
        return f"{key}={value}"
    text = yaml.dump(value, Dumper=_Written, default_flow_style=True, sort_keys=False, width=2**20, allow_unicode=True)
    text = text.strip()
    return f"{key}={text.removesuffix('...').strip()}"
