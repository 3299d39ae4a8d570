"""Finding rewards by name, import path, file or entry point."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Callable, Mapping
from difflib import get_close_matches
from pathlib import Path
from types import ModuleType
from typing import Any

from rewards.adapters import OPENRLHF, TRL, TRL_CHAT, VERL
from rewards.base import RewardError
from rewards.function import RewardFunction

BUILT_IN = {
    "number": "rewards.number:number",
    "math": "rewards.math:MathVerifier",
    "code": "rewards.code:CodeVerifier",
    "format": "rewards.format:think_answer",
    "language": "rewards.language:LanguageShare",
    "length": "rewards.length:SoftOverlong",
    "cosine": "rewards.length:Cosine",
    "repetition": "rewards.repetition:Repetition",
    "composite": "rewards.composite:Composite",
}
ENTRY_POINTS = "rlkit.rewards"
"""Group under which an installed package can name its own rewards."""


def load(name: str | Callable[..., Any], /, **kwargs: Any) -> RewardFunction:
    """Find a reward and bind `kwargs` to it.

    `name` is a registered name ("math"), "package.module:function", "file.py:function", or a function itself; in place
    of a function it may be a class, which is constructed with `kwargs`. Raises RewardError if it cannot be found,
    imported or constructed, or does not have a reward's signature.
    """
    return reload(name, kwargs)


def from_trl(name: str | Callable[..., Any], /, *, conversational: bool = False, **kwargs: Any) -> RewardFunction:
    """`load` a function that is called as in TRL, even if its parameters (`**kwargs` alone) do not say so.

    `conversational` gives it chat messages, `completion[0]["content"]`, whatever the prompt is.
    """
    return reload(name, kwargs, (TRL_CHAT if conversational else TRL).name)


def from_verl(name: str | Callable[..., Any], /, **kwargs: Any) -> RewardFunction:
    """`load` a function that is called as in verl: data_source, solution_str, ground_truth, extra_info.

    Its gold is the row's `reward_model.ground_truth`, else `ground_truth`, else `answer`.
    """
    return reload(name, kwargs, VERL.name)


def from_openrlhf(name: str | Callable[..., Any], /, **kwargs: Any) -> RewardFunction:
    """`load` a function that is called as in OpenRLHF: queries, prompts, labels (the row's `label`, else `answer`)."""
    return reload(name, kwargs, OPENRLHF.name)


def reload(name: str | Callable[..., Any], kwargs: Mapping[str, Any], shape: str = "") -> RewardFunction:
    """`load` with the settings in one mapping and, where it is forced, the shape: what a pickled reward calls."""
    kwargs = {key: _absolute(value) for key, value in kwargs.items()}
    if not isinstance(name, str):
        return RewardFunction(name, name, kwargs, shape)
    target = name if ":" in name else BUILT_IN.get(name) or _installed().get(name)
    if target is None:
        near = get_close_matches(name, names(), n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"there are {', '.join(names())}"
        raise RewardError(
            f"no reward is called {name!r}; {hint} (your own: 'package.module:function', 'file.py:function')"
        )
    place, _, attribute = target.rpartition(":")
    if place.endswith(".py"):
        name = _absolute(target)
        place = str(Path(place).resolve())
    module = _import(place)
    if attribute not in vars(module):
        near = get_close_matches(attribute, vars(module), n=1)
        hint = f"did you mean {near[0]!r}?" if near else "check the part after ':'"
        raise RewardError(f"reward {name!r}: {place} has no function {attribute!r}; {hint}")
    return RewardFunction(vars(module)[attribute], name, kwargs, shape)


def names() -> tuple[str, ...]:
    """The registered names: the built-in rewards and those of installed packages."""
    return tuple(sorted(_installed()))


def _absolute(value: Any) -> Any:
    """Rewards named as file.py:function, also inside lists and tables, with the file's full path.

    The pickled form must mean the same file in another directory. Other text stays as it is.
    """
    match value:
        case str():
            place, _, attribute = value.rpartition(":")
            is_reward = place.endswith(".py") and attribute.isidentifier() and _is_file(place)
            return f"{Path(place).resolve()}:{attribute}" if is_reward else value
        case Mapping():
            return {key: _absolute(entry) for key, entry in value.items()}
        case list() | tuple():
            return [_absolute(entry) for entry in value]
    return value


def _is_file(place: str) -> bool:
    try:
        return Path(place).is_file()
    except (OSError, ValueError):  # text that no path can have
        return False


def _installed() -> dict[str, str]:
    from importlib.metadata import entry_points  # here: it costs more than the rest of the package

    return {point.name: point.value for point in entry_points(group=ENTRY_POINTS)} | BUILT_IN


def _import(place: str) -> ModuleType:
    try:
        return _import_file(Path(place)) if place.endswith(".py") else importlib.import_module(place)
    except FileNotFoundError as error:
        raise RewardError(f"reward file {place} does not exist; correct the path") from error
    except ModuleNotFoundError as error:
        missing = error.name or ""
        if place != missing and not place.startswith(f"{missing}."):  # something that the user's module imports
            raise RewardError(f"reward module {place} cannot be imported: {type(error).__name__}: {error}") from error
        raise RewardError(
            f"reward module {place} cannot be imported: {error}; start in the folder it is in, install it, or use "
            "file.py:function"
        ) from error
    except (Exception, SystemExit) as error:  # whatever the user's module does while it is imported
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
