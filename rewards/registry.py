"""Finding reward functions by name, import path, file or entry point."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Callable, Mapping
from difflib import get_close_matches
from pathlib import Path
from types import ModuleType
from typing import Any

from rewards.base import RewardError, RewardFunction

BUILT_IN = {"number": "rewards.number:number"}
ENTRY_POINTS = "rlkit.rewards"
"""Group under which an installed package can name its own rewards."""


def load(name: str | Callable[..., Any], **kwargs: Any) -> RewardFunction:
    """Find a reward and bind `kwargs` to it.

    `name` is a registered name ("number"), "package.module:function", "file.py:function", or a function itself.
    Raises RewardError if it cannot be found or imported, or does not have a reward's signature.
    """
    if not isinstance(name, str):
        return RewardFunction(name, name, kwargs)
    target = name if ":" in name else BUILT_IN.get(name) or _installed().get(name)
    if target is None:
        near = get_close_matches(name, names(), n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"there are {', '.join(names())}"
        raise RewardError(
            f"no reward is called {name!r}; {hint} (your own: 'package.module:function', 'file.py:function')"
        )
    place, _, attribute = target.rpartition(":")
    if place.endswith(".py"):
        place = str(Path(place).resolve())  # the pickled form must mean the same file in another directory
        name = f"{place}:{attribute}"
    module = _import(place)
    if attribute not in vars(module):
        near = get_close_matches(attribute, vars(module), n=1)
        hint = f"did you mean {near[0]!r}?" if near else "check the part after ':'"
        raise RewardError(f"reward {name!r}: {place} has no function {attribute!r}; {hint}")
    return RewardFunction(vars(module)[attribute], name, kwargs)


def names() -> tuple[str, ...]:
    """The registered names: the built-in rewards and those of installed packages."""
    return tuple(sorted(_installed()))


def reload(name: str | Callable[..., Any], kwargs: Mapping[str, Any]) -> RewardFunction:
    """`load` with the settings in one mapping: what a pickled reward calls."""
    return load(name, **kwargs)


def _installed() -> dict[str, str]:
    from importlib.metadata import entry_points  # here: it costs more than the rest of the package

    return {point.name: point.value for point in entry_points(group=ENTRY_POINTS)} | BUILT_IN


def _import(place: str) -> ModuleType:
    try:
        return _import_file(Path(place)) if place.endswith(".py") else importlib.import_module(place)
    except FileNotFoundError as error:
        raise RewardError(f"reward file {place} does not exist; correct the path") from error
    except Exception as error:  # whatever the user's module does while it is imported
        raise RewardError(f"reward module {place} cannot be imported: {type(error).__name__}: {error}") from error


def _import_file(path: Path) -> ModuleType:
    name = "reward_file_" + "".join(letter if letter.isalnum() else "_" for letter in str(path))
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None, "a path ending in .py always has a loader"
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses and pickle look their module up here
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module
