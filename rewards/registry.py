"""Find rewards by name, import path, file or entry point.

A file is loaded by its path, under a name that no module has, so it may be called like any module: `rewards.py` too.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from difflib import get_close_matches
from pathlib import Path
from types import ModuleType
from typing import Any

from rewards.adapters import OPENRLHF, TRL, TRL_CHAT, VERL
from rewards.base import RewardError
from rewards.failure import described
from rewards.function import RewardFunction
from rewards.model_score import PREFIX, ModelScore
from rewards.own_files import import_file, import_name

BUILT_IN = {
    "number": "rewards.number:number",
    "math": "rewards.math:MathVerifier",
    "code": "rewards.code:CodeVerifier",
    "format": "rewards.format:think_answer",
    "language": "rewards.language:LanguageShare",
    "length": "rewards.length:SoftOverlong",
    "cosine": "rewards.length:Cosine",
    "repetition": "rewards.repetition:Repetition",
    "words": "rewards.words:Words",
    "composite": "rewards.composite:Composite",
    "judge": "rewards.judge.reward:Judge",
}
ENTRY_POINTS = "rlkit.rewards"
"""The group of entry points under which an installed package names its own rewards."""


def load(name: str | Callable[..., Any], /, **kwargs: Any) -> RewardFunction:
    """Finds a reward and binds `kwargs` to it.

    `name` is a registered name ("math"), "package.module:function", "file.py:function", "model:FOLDER" for a reward
    model (`rewards.model_score`), or a function itself; in place of a function it may be a class, which is constructed
    with `kwargs`. Raises RewardError if it cannot be found, imported or constructed, or does not have a reward's
    signature.
    """
    return reload(name, kwargs)


def from_trl(name: str | Callable[..., Any], /, *, conversational: bool = False, **kwargs: Any) -> RewardFunction:
    """Loads a function that is called as in TRL, even if its parameters (`**kwargs` alone) do not say so.

    `conversational` gives it chat messages, `completion[0]["content"]`, whatever the prompt is.
    """
    return reload(name, kwargs, (TRL_CHAT if conversational else TRL).name)


def from_verl(name: str | Callable[..., Any], /, **kwargs: Any) -> RewardFunction:
    """Loads a function that is called as in verl: data_source, solution_str, ground_truth, extra_info.

    Its gold is the row's `reward_model.ground_truth`, else `ground_truth`, else `answer`.
    """
    return reload(name, kwargs, VERL.name)


def from_openrlhf(name: str | Callable[..., Any], /, **kwargs: Any) -> RewardFunction:
    """Loads a function that is called as in OpenRLHF: queries, prompts, labels (the row's `label`, else `answer`)."""
    return reload(name, kwargs, OPENRLHF.name)


def reload(name: str | Callable[..., Any], kwargs: Mapping[str, Any], shape: str = "") -> RewardFunction:
    """Does what `load` does, with the settings in one mapping and a forced shape; a pickled reward calls this."""
    kwargs = {key: _absolute(value) for key, value in kwargs.items()}
    if not isinstance(name, str):
        return RewardFunction(name, name, kwargs, shape)
    if name.startswith(PREFIX):
        return RewardFunction(ModelScore, name, {**kwargs, "folder": name.removeprefix(PREFIX)}, shape)
    target = name if ":" in name else _target(name)
    place, _, attribute = target.rpartition(":")
    if place.endswith(".py"):
        name = _absolute(target)
        place = str(_path(place))
    module = _import(place)
    if attribute not in vars(module):
        raise RewardError(f"reward {name!r}: {place} has no function {attribute!r}; {_nearest(attribute, module)}")
    return RewardFunction(vars(module)[attribute], name, kwargs, shape)


def names() -> tuple[str, ...]:
    """Returns the registered names: the built-in rewards and those of installed packages."""
    return tuple(sorted(_registered()))


def _target(name: str) -> str:
    """Returns what a registered name stands for, as "module:function"; raises RewardError if that is not one thing.

    Two packages may give one name to different rewards, or a package may take the name of a built-in one. Whichever of
    them we took, somebody would train on a reward that he does not mean, so the user has to say.
    """
    found = _registered()
    if name not in found:
        near = get_close_matches(name, found, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"there are {', '.join(names())}"
        raise RewardError(
            f"no reward is called {name!r}; {hint} (your own: 'package.module:function', 'file.py:function')"
        )
    (target, owner), *others = found[name].items()
    if others:
        listed = ", ".join(f"{value!r} of {owner}" for value, owner in found[name].items())
        raise RewardError(f"{name!r} is the name of several rewards; in its place give the one you mean: {listed}")
    if not all(target.partition(":")):
        raise RewardError(
            f"reward {name!r} of {owner} is {target!r} in its entry points, which is not 'package.module:function'; "
            "correct it there"
        )
    return target


def _nearest(attribute: str, module: ModuleType) -> str:
    """Says what a user may have meant by an attribute that a module does not have."""
    file = Path(*module.__name__.split(".")).with_suffix(".py")
    if _is_file(str(file)) and file.resolve() != Path(module.__file__ or "").resolve():
        return f"that is an installed module; for the file in the current folder write '{file}:{attribute}'"
    near = get_close_matches(attribute, vars(module), n=1)
    return f"did you mean {near[0]!r}?" if near else "check the part after ':'"


def _absolute(value: Any) -> Any:
    """Gives rewards that are named as file.py:function the file's full path, also inside lists and tables.

    The pickled form must mean the same file in another directory. Other text stays as it is.
    """
    match value:
        case str():
            place, _, attribute = value.rpartition(":")
            is_reward = place.endswith(".py") and attribute.isidentifier() and _is_file(place)
            return f"{_path(place)}:{attribute}" if is_reward else value
        case Mapping():
            return {key: _absolute(entry) for key, entry in value.items()}
        case list() | tuple():
            return [_absolute(entry) for entry in value]
    return value


def _is_file(place: str) -> bool:
    try:
        return _path(place).is_file()
    except (OSError, ValueError):  # text that no path can have
        return False


def _path(place: str) -> Path:
    """Returns the full path; in `reward=~/mine.py:f` the shell leaves the `~` as it is."""
    try:
        return Path(place).expanduser().resolve()
    except RuntimeError:  # a user who has no home
        return Path(place).resolve()


def _registered() -> dict[str, dict[str, str]]:
    """Returns, under each name, what it may stand for ("module:function") and whose that is."""
    from importlib.metadata import entry_points  # here: it costs more than the rest of the package

    found = {name: {target: "rlkit"} for name, target in BUILT_IN.items()}
    for point in entry_points(group=ENTRY_POINTS):
        owner = f"the package {point.dist.name}" if point.dist else "an installed package"
        found.setdefault(point.name, {}).setdefault(point.value.partition("[")[0].strip(), owner)
    return found


def _import(place: str) -> ModuleType:
    path = Path(place)
    if place.endswith(".py") and not path.is_file():
        raise RewardError(f"reward file {place} does not exist; correct the path")
    try:
        return import_file(path, "reward_file_") if place.endswith(".py") else import_name(place)
    except RewardError:
        raise
    except (Exception, SystemExit) as error:  # whatever the user's module does while it is imported
        missing = error.name or "" if isinstance(error, ModuleNotFoundError) else ""
        if missing and f"{place}.".startswith(f"{missing}."):  # and not something that the user's module imports
            why = f"{error}; start in the folder it is in, install it, or use file.py:function"
        else:
            why = described(error)
        raise RewardError(f"reward module {place} cannot be imported: {why}") from error
