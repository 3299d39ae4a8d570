"""From a command line to a checked configuration: Hydra composes, `rlkit.config` says what is allowed."""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields, is_dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any, TypeVar, get_args, get_type_hints

import yaml
from hydra import compose, initialize_config_module
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import HydraException
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from pydantic import TypeAdapter, ValidationError

from rlkit.config import GrpoRun, RunConfig, SftRun, SftThenGrpoRun, suggestion
from rlkit.config.runs import ExtendContextRun

C = TypeVar("C")
R = TypeVar("R", bound=RunConfig)
RECIPES: dict[str, type[RunConfig]] = {
    "sft": SftRun,
    "grpo": GrpoRun,
    "sft_then_grpo": SftThenGrpoRun,
    "extend_context": ExtendContextRun,
}
OPEN_DICTS = ("reward.kwargs", "data.tasks", "algo.loss_settings")
"""Below these any key may be set, and `data.tasks={...}` replaces the whole: they belong to the reward function and to
the reasoning-gym tasks."""
NOT_ALL_LISTED = (*OPEN_DICTS, "model.architecture")
"""Here keys that the YAML leaves at their default can be set as well; what an architecture does not have is refused."""
FREE_GROUPS = {"reward": ("number", "reward.fn"), "data": ("file", "data.source")}
"""`reward=my_file.py:fn` and `data=rows.jsonl`: when the value is not one of the group's files, the general file of the
group is taken and this key set to the value."""


class ConfigError(ValueError):
    """A configuration that cannot work; the message names the key, the value and the fix."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Command:
    """What a command line asks for: a run, or only a look at its configuration."""

    overrides: tuple[str, ...]
    print_only: bool


def parse_command(recipe: str, argv: Sequence[str]) -> Command:
    """Split `key=value ... [--cfg job]` into overrides and flags; `--help` prints the groups and leaves."""
    parser = argparse.ArgumentParser(
        prog=f"rlkit run {recipe}",
        description=f"Recipe {recipe}. Every key of configs/{recipe}.yaml and its groups can be set as key=value.",
        epilog="Groups: " + "; ".join(f"{group}={{{','.join(_options(group))}}}" for group in _groups()),
    )
    parser.add_argument("overrides", nargs="*", metavar="key=value")
    parser.add_argument("--cfg", choices=("job",), help="print the resolved configuration and leave")
    args = parser.parse_intermixed_args(argv)
    return Command(overrides=tuple(args.overrides), print_only=args.cfg is not None)


def load_config(recipe: str, cls: type[R], overrides: Sequence[str] = ()) -> R:
    """Compose `configs/<recipe>.yaml` with the overrides and check it.

    Raises:
        ConfigError: for an unknown or misspelt key, a wrong type, or values that do not go together.
    """
    return parse(cls, compose_dict(recipe, overrides))


def compose_dict(recipe: str, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """Compose `configs/<recipe>.yaml` with the overrides, all interpolations resolved, nothing checked but the keys."""
    GlobalHydra.instance().clear()
    if "model=hf" in overrides and (own := [word for word in overrides if word.startswith("model.architecture.")]):
        raise ConfigError(f"{own[0]}: model=hf takes the model's sizes from its folder; remove it")
    whole = {key: value for key, _, value in (word.partition("=") for word in overrides) if key in OPEN_DICTS}
    overrides = [word for word in overrides if word.partition("=")[0] not in OPEN_DICTS]
    try:
        with initialize_config_module("configs", version_base="1.3"):
            composed = compose(recipe, overrides=[word for override in overrides for word in _normalised(override)])
            resolved = OmegaConf.to_container(composed, resolve=True, throw_on_missing=True)
    except (HydraException, OmegaConfBaseException) as error:
        raise ConfigError(_explain(str(error), recipe)) from error
    assert isinstance(resolved, dict)
    composed_values = {str(key): value for key, value in resolved.items()}
    for key, value in whole.items():
        group, _, name = key.partition(".")
        composed_values[group][name] = yaml.safe_load(value)
    return composed_values


def parse(cls: type[C], values: Mapping[str, Any]) -> C:
    """Turn a nested mapping into the frozen dataclass `cls`, naming the key of whatever does not fit."""
    _refuse_unknown_keys(cls, values, "")
    try:
        return TypeAdapter(cls).validate_python(values)
    except ValidationError as error:
        raise ConfigError("\n".join(_problem(item) for item in error.errors())) from error


def flat_keys(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Every leaf of a nested mapping as ("algo.loss.kl_coef", 0.001)."""
    for key, value in values.items():
        if isinstance(value, Mapping) and value:
            yield from flat_keys(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def grpo_keys() -> list[str]:
    """All keys of a GRPO run, sorted; a dictionary that is not rlkit's own counts as one."""
    keys = {key for key, _ in flat_keys(compose_dict("grpo"))}
    return sorted({next((whole for whole in OPEN_DICTS if key.startswith(f"{whole}.")), key) for key in keys})


def to_yaml(cfg: RunConfig) -> str:
    """The resolved configuration as YAML, in the order of its dataclass."""
    return yaml.safe_dump(TypeAdapter(type(cfg)).dump_python(cfg, mode="json"), sort_keys=False, width=120)


@contextmanager
def clear_errors() -> Iterator[None]:
    """Print a configuration or input error as one paragraph and leave with exit code 2, without a traceback."""
    try:
        yield
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2) from None


def _normalised(override: str) -> list[str]:
    key, separator, value = override.partition("=")
    if not separator and key.startswith("~"):
        return [override]
    if not separator:
        raise ConfigError(f"{override!r} is not an override; write key=value")
    bare = key.lstrip("+~")
    if bare in _groups() and value not in _options(bare):
        file, open_key = FREE_GROUPS.get(bare, ("", ""))
        if bare == "reward" or (open_key and ("/" in value or "." in value)):
            return [f"{bare}={file}", f"{open_key}={value}"]
        options = _options(bare)
        raise ConfigError(
            f"{bare}={value} is unknown; there are {', '.join(options)}{suggestion(value, options)}"
            + (f", or set {open_key} to a file" if open_key else "")
        )
    return [f"++{bare}={value}"] if bare.startswith(tuple(f"{name}." for name in NOT_ALL_LISTED)) else [override]


def _explain(message: str, recipe: str) -> str:
    unknown = re.search(r"Could not override '([^']+)'|Key '([^']+)' is not in struct", message)
    if unknown:
        key = next(group for group in unknown.groups() if group)
        known = [name for name, _ in flat_keys(compose_dict(recipe))]
        return f"{key} is not a key of recipe {recipe}{suggestion(key, known)}; see --cfg job for all keys"
    return message


def _problem(item: Any) -> str:
    key = ".".join(str(part) for part in item["loc"])
    if item["type"] == "value_error":
        message = item["msg"].removeprefix("Value error, ")
        # Groups that stand in several places name only their own key.
        return message if not item["loc"] or message.startswith(str(item["loc"][0])) else f"{key}.{message}"
    if item["type"] == "missing":
        return f"{key} is missing; give it a value"
    return f"{key}={item['input']!r} has the wrong type: {item['msg'].removeprefix('Input ')}"


def _refuse_unknown_keys(cls: Any, values: Mapping[str, Any], prefix: str) -> None:
    hints = get_type_hints(cls)
    names = [field.name for field in fields(cls)]
    for key, value in values.items():
        if key not in names:
            raise ConfigError(f"{prefix}{key} is not a key{suggestion(key, names)}; there are {', '.join(names)}")
        group = next((kind for kind in (hints[key], *get_args(hints[key])) if is_dataclass(kind)), None)
        if group is None or (value is None and type(None) in get_args(hints[key])):
            continue
        items = list(enumerate(value)) if isinstance(value, list) else [("", value)]
        for place, item in items:
            name = f"{prefix}{key}" + (f"[{place}]" if items[0][0] == 0 else "")
            if not isinstance(item, Mapping):
                raise ConfigError(f"{name}={item!r} is a group of keys; set one of them, as {name}.KEY=")
            _refuse_unknown_keys(group, item, f"{name}.")


def _groups() -> list[str]:
    return sorted(entry.name for entry in files("configs").iterdir() if entry.is_dir() and entry.name[0] != "_")


def _options(group: str) -> list[str]:
    return sorted(
        Path(entry.name).stem for entry in (files("configs") / group).iterdir() if entry.name.endswith("yaml")
    )
