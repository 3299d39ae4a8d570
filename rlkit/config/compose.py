"""From a command line to a checked configuration: Hydra composes, `rlkit.config` says what is allowed."""

from __future__ import annotations

import json
import re
import shutil
import sys
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass, fields, is_dataclass
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, TypeVar, get_args, get_type_hints

import yaml
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import HydraException
from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import (
    GrammarParseError,
    InterpolationResolutionError,
    MissingMandatoryValue,
    OmegaConfBaseException,
)
from pydantic import TypeAdapter, ValidationError

from rewards import RewardError
from rlkit.checks import shown, suggestion
from rlkit.config.paths import expand_paths
from rlkit.config.runs import BaseRun, GrpoRun
from rlkit.errors import UserError
from rlkit.overrides import ConfigError, Override, read_override, read_text, read_value

C = TypeVar("C")
R = TypeVar("R", bound=BaseRun)
FILES = Path(__file__).resolve().parents[2] / "configs"
"""Ours by its place beside rlkit, not by its name: a folder `configs` of the user's hides nothing."""
OPEN_DICTS = ("reward.kwargs", "data.tasks", "algo.loss_settings")
"""Below these any key may be set, and `data.tasks={...}` replaces the whole: they belong to the reward function and to
the reasoning-gym tasks."""
NOT_ALL_LISTED = (*OPEN_DICTS, "model.architecture", "trainer.lora")
"""Here keys that the YAML leaves at their default can be set as well; what the group does not have is refused."""
FREE_GROUPS = {"reward": ("number", "reward.fn"), "data": ("file", "data.source")}
"""`reward=my_file.py:fn` and `data=rows.jsonl`: when the value is not one of the group's files, the general file of the
group is taken and this key set to the value."""
FIXES = {
    "int": "give a whole number",
    "float": "give a number",
    "finite": "give a finite number",
    "bool": "give true or false",
    "string": "give text",
    "path": "give the name of a folder",
    "dict": "give a group, as {a: 1}",
}
"""What to do about a value of the wrong type, by the first word of pydantic's name for the problem."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Command:
    """What a command line asks for: a run, or only a look at its configuration."""

    overrides: tuple[str, ...]
    print_only: bool


def parse_command(recipe: str | Path, argv: Sequence[str]) -> Command:
    """Splits `key=value ... [--cfg job]` into overrides and flags; `--help` prints the groups and leaves."""
    words, overrides, print_only = iter(argv), [], False
    for word in words:
        flag, separator, value = word.partition("=")
        if flag in ("-h", "--help"):
            print(_help(recipe))
            raise SystemExit(0)
        if flag == "--cfg":
            value = value if separator else next(words, "")
            if value != "job":
                raise ConfigError(f"--cfg={value} is unknown; use --cfg job, which prints the configuration")
            print_only = True
        elif flag.startswith("-"):
            key = flag.lstrip("-").replace("-", "_")
            raise ConfigError(
                f"{word} is no flag of a recipe; settings are written without dashes ({key}={value or '...'}), "
                "the flags are --cfg job and --help"
            )
        else:
            overrides.append(word)
    return Command(overrides=tuple(overrides), print_only=print_only)


def load_config(recipe: str | Path, cls: type[R], overrides: Sequence[str] = ()) -> R:
    """Composes the recipe's YAML with the overrides and checks it.

    `recipe` is the name of a file in `configs/`, or the path of a YAML file beside a recipe of the user's own.

    Raises:
        ConfigError: for an unknown or misspelt key, a wrong type, or values that do not go together.
    """
    return parse(cls, compose_dict(recipe, overrides))


def compose_dict(recipe: str | Path, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """Composes the recipe's YAML with the overrides; interpolations are resolved, nothing is checked but the keys."""
    groups, values = _sorted(_folders(recipe), [read_override(word) for word in overrides])
    try:
        composed = _compose(recipe, groups)
        OmegaConf.set_struct(composed, False)
        for override in values:
            _set(composed, override, recipe, groups)
        resolved = OmegaConf.to_container(composed, resolve=True, throw_on_missing=True)
    except (HydraException, OmegaConfBaseException, yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(_explain(error, recipe)) from error
    assert isinstance(resolved, dict)
    found = {str(key): value for key, value in resolved.items()}
    expand_paths(found)
    return found


def parse(cls: type[C], values: Mapping[str, Any]) -> C:
    """Turns a nested mapping into the frozen dataclass `cls`, naming the key of whatever does not fit."""
    _check_keys(cls, values, "")
    try:
        return _adapter(cls).validate_python(values)
    except ValidationError as error:
        for item in error.errors():
            cause = item.get("ctx", {}).get("error")
            if isinstance(cause, Exception) and not isinstance(cause, UserError):
                raise cause from None  # of a class's own check: a bug in it, and no value that the user can mend
        # Where a key may be of two types, pydantic names each of them in a problem of its own; one says enough.
        problems = {_key(item): _problem(item) for item in reversed(error.errors())}
        raise ConfigError("\n".join(reversed(problems.values()))) from error


def flat_keys(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yields every leaf of a nested mapping as ("algo.loss.kl_coef", 0.001)."""
    for key, value in values.items():
        if isinstance(value, Mapping) and value:
            yield from flat_keys(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def known_keys(cls: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yields every key that can be set in a run of class `cls`, with its type.

    Groups that may be null are opened as well; a dictionary that belongs to somebody else counts as one key.
    """
    hints = get_type_hints(cls)
    for field in fields(cls):
        hint, key = hints[field.name], f"{prefix}{field.name}"
        kinds = [kind for kind in (hint, *get_args(hint)) if is_dataclass(kind)]
        for group in kinds:
            yield from known_keys(group, f"{key}[]." if Ellipsis in get_args(hint) else f"{key}.")
        if not kinds:
            yield key, hint


def grpo_keys() -> list[str]:
    """Returns all keys of a GRPO run, sorted, the optional ones and all of the model's shape included."""
    return sorted(key for key, _ in known_keys(GrpoRun))


def to_yaml(cfg: BaseRun) -> str:
    """Returns the resolved configuration as YAML, in the order of its dataclass."""
    return yaml.safe_dump(_adapter(type(cfg)).dump_python(cfg, mode="json"), sort_keys=False, width=120)


@contextmanager
def clear_errors() -> Iterator[None]:
    """Prints what the user can mend as one paragraph and leaves with exit code 2; a bug keeps its traceback."""
    try:
        yield
    except (UserError, RewardError) as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2) from None


@cache
def _adapter(cls: type[C]) -> TypeAdapter[C]:
    """Returns what pydantic derives from a class; it takes longer than to read a configuration with it."""
    return TypeAdapter(cls)


def _compose(recipe: str | Path, groups: Mapping[str, str], with_hydra: bool = False) -> DictConfig:
    """Lets Hydra merge the recipe's file and the chosen groups; `with_hydra` adds what Hydra knows of them."""
    overrides = [f"{group}={option}" for group, option in groups.items()]
    file = _own_file(recipe)
    if file is None:
        return deepcopy(_compose_ours(str(recipe), tuple(overrides), with_hydra))
    GlobalHydra.instance().clear()
    # The user's file is read from a folder where it is alone, and ours come before others beside it: a run.yaml or a
    # folder model/ there must not take the place of what its defaults list means.
    with TemporaryDirectory() as alone:
        shutil.copyfile(file, Path(alone) / "recipe_file.yaml")
        places = ", ".join(json.dumps(f"file://{place}", ensure_ascii=False) for place in _folders(file))
        with initialize_config_dir(alone, version_base="1.3"):
            overrides.append(f"hydra.searchpath=[{places}]")
            return compose("recipe_file", overrides=overrides, return_hydra_config=with_hydra)


@cache  # Hydra takes a seventh of a second, and the checks of a pipeline compose a recipe for every stage and word
def _compose_ours(recipe: str, overrides: tuple[str, ...], with_hydra: bool) -> DictConfig:
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(FILES), version_base="1.3"):
        return compose(recipe, overrides=list(overrides), return_hydra_config=with_hydra)


def _own_file(recipe: str | Path) -> Path | None:
    """Returns the absolute path of a user's YAML file; None where `recipe` is the name of one of ours."""
    if isinstance(recipe, str) and not recipe.endswith((".yaml", ".yml")):
        return None
    file = Path(recipe).expanduser().absolute()
    if not file.is_file():
        raise ConfigError(f"{recipe}: there is no such file; a recipe's YAML file stands beside it")
    return file


def _folders(recipe: str | Path) -> list[Path]:
    file = _own_file(recipe)
    return [FILES] if file is None else [FILES, file.parent]


def _sorted(places: Sequence[Path], overrides: Sequence[Override]) -> tuple[dict[str, str], list[Override]]:
    """Separates choices of a group's file, as `engine=torch`, from settings of a key."""
    groups: dict[str, str] = {}
    values = []
    for override in overrides:
        options = _options(places, override.key)
        if not options or override.remove:
            values.append(override)
        elif override.text in options:
            groups[override.key] = override.text
        else:
            file, open_key = FREE_GROUPS.get(override.key, ("", ""))
            if override.key != "reward" and not (open_key and ("/" in override.text or "." in override.text)):
                raise ConfigError(
                    f"{override.key}={override.text} is unknown; there are {', '.join(options)}"
                    f"{suggestion(override.text, options)}" + (f", or set {open_key} to a file" if open_key else "")
                )
            groups[override.key] = file
            values.append(Override(key=open_key, text=override.text, remove=False))
    return groups, values


def _set(composed: DictConfig, override: Override, recipe: str | Path, groups: Mapping[str, str]) -> None:
    """Puts one value in its place; refuses a key that the recipe does not have."""
    key = override.key
    parent_key, _, name = key.rpartition(".")
    opened = next((whole for whole in NOT_ALL_LISTED if key.startswith(f"{whole}.")), "")
    if opened == "model.architecture" and groups.get("model") == "hf":
        raise ConfigError(f"{key}={override.text}: model=hf takes the model's sizes from its folder; remove it")
    parent = OmegaConf.select(composed, parent_key, throw_on_missing=False) if parent_key else composed
    if override.remove:
        if opened not in OPEN_DICTS or not isinstance(parent, DictConfig) or name not in parent:
            raise ConfigError(f"~{key} takes nothing away: only keys that are set below {' and '.join(OPEN_DICTS)} can")
        del parent[name]
        return
    is_list = isinstance(parent, ListConfig) and name.isdigit() and int(name) < len(parent)
    there = is_list or (isinstance(parent, DictConfig) and name in set(parent))  # `in parent` passes over ???
    if not there and not opened:
        raise ConfigError(_unknown(key, recipe, composed))
    is_text = there and not is_list and opened not in OPEN_DICTS and _is_text(parent, name)
    value = read_text(override.text) if is_text else read_value(key, override.text)
    if is_text and value.lower() == "null" and value == override.text:
        value = None
    OmegaConf.update(composed, key, value, merge=key not in OPEN_DICTS)


def _is_text(parent: Any, name: str) -> bool:
    """Says whether a key holds text in the YAML files: then any value is text, as it is written."""
    return (
        OmegaConf.is_interpolation(parent, name) or OmegaConf.is_missing(parent, name) or isinstance(parent[name], str)
    )


def _unknown(key: str, recipe: str | Path, composed: DictConfig) -> str:
    values = OmegaConf.to_container(composed, resolve=False)
    assert isinstance(values, dict)
    known = [name for name, _ in flat_keys({str(name): value for name, value in values.items()})]
    return f"{key} is not a key of recipe {Path(recipe).stem}{suggestion(key, known)}; see --cfg job for all keys"


def _explain(error: Exception, recipe: str | Path) -> str:
    message = str(error).strip()
    if group := re.match(r"Could not override '([^']+)'", message):
        return f"{group[1]}: recipe {Path(recipe).stem} has no such group; see --help for those it has"
    key = error.full_key if isinstance(error, OmegaConfBaseException) else ""
    if isinstance(error, MissingMandatoryValue):
        return f"{key} has no value; set {key}=..."
    if isinstance(error, GrammarParseError | InterpolationResolutionError):
        return f"{key}: {message.splitlines()[0]}; write \\${{ where a dollar and a brace are text"
    return message if isinstance(error, HydraException) else f"recipe {recipe}: {message}"


def _key(item: Any) -> str:
    """Returns the key of a problem; the types that pydantic tried follow behind it, as `int` or `tuple[int, ...]`."""
    parts = [str(part) for part in item["loc"]]
    return ".".join(part for part in parts if part not in ("int", "str") and part.replace("_", "a").isalnum())


def _problem(item: Any) -> str:
    key = _key(item)
    if item["type"] == "value_error":
        message = item["msg"].removeprefix("Value error, ")
        # Groups that stand in several places name only their own key.
        return message if not item["loc"] or message.startswith(str(item["loc"][0])) else f"{key}.{message}"
    if item["type"] == "missing":
        return f"{key} is missing; give it a value"
    fix = FIXES.get(item["type"].split("_")[0], "")
    words = item["msg"].removeprefix("Input ")
    given = item["input"]
    value = repr(given) if isinstance(given, str) else shown(given)
    return f"{key}={value} has the wrong type: {words}" + (f"; {fix}" if fix else "")


def _check_keys(cls: Any, values: Mapping[str, Any], prefix: str) -> None:
    """Refuses keys that a class does not have, at any depth, and true or false where a number belongs."""
    hints = get_type_hints(cls)
    names = [field.name for field in fields(cls)]
    for key, value in values.items():
        if key not in names:
            raise ConfigError(f"{prefix}{key} is not a key{suggestion(key, names)}; there are {', '.join(names)}")
        kinds = (hints[key], *get_args(hints[key]))
        if isinstance(value, bool) and {int, float} & set(kinds):
            raise ConfigError(f"{prefix}{key}={str(value).lower()} is no number; give a number")
        group = next((kind for kind in kinds if is_dataclass(kind)), None)
        if group is None or (value is None and type(None) in kinds):
            continue
        items = list(enumerate(value)) if isinstance(value, list) else [("", value)]
        for place, item in items:
            name = f"{prefix}{key}" + (f"[{place}]" if items[0][0] == 0 else "")
            if not isinstance(item, Mapping):
                null = ", or null for none" if type(None) in kinds else ""
                raise ConfigError(f"{name}={item!r} is a group of keys; set one of them, as {name}.KEY=VALUE{null}")
            _check_keys(group, item, f"{name}.")


def _help(recipe: str | Path) -> str:
    file = recipe if _own_file(recipe) else f"configs/{recipe}.yaml"
    name, places = Path(recipe).stem, _folders(recipe)
    groups = sorted(group for group in _compose(recipe, {}, with_hydra=True).hydra.runtime.choices if "/" not in group)
    width = max(40, shutil.get_terminal_size().columns - 2)
    lines = [f"{group}={{{', '.join(_options(places, group))}}}" for group in groups]
    wrapped = [
        textwrap.fill(
            line,
            width,
            initial_indent="  ",
            subsequent_indent=" " * 6,
            break_long_words=False,
            break_on_hyphens=False,
        )
        for line in lines
    ]
    return "\n".join(
        [
            f"usage: rlkit run {name} [key=value ...] [--cfg job] [--help]",
            "",
            *textwrap.wrap(f"Recipe {name}. Every key of {file} and its groups can be set as key=value.", width),
            "",
            "  key=value   set a key, as algo.steps=10; text with spaces in quotes",
            "  --cfg job   print the configuration and what follows from it; start nothing",
            "  --help      this text",
            "",
            "Groups:",
            *wrapped,
        ]
    )


def _options(places: Sequence[Path], group: str) -> list[str]:
    """Returns the files that can be chosen for a group of ours, also those beside a user's own; [] if it is none."""
    if not group.isidentifier() or not (FILES / group).is_dir():
        return []
    return sorted({file.stem for place in places for file in (place / group).glob("*.yaml")})
