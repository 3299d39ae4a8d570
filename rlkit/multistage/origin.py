"""What a stage is made from: its settings, and the files that it reads by path, those of earlier stages among them.

A stage that is done is taken as done while both are the same. Of settings those count that may not change when a run
goes on. What an earlier stage makes has its name in them, and its files say what it is: a folder may lie elsewhere.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rewards.model_score import PREFIX
from rlkit.checks import shown
from rlkit.config.compose import compose_dict, flat_keys
from rlkit.data.sources import FILE_ENDINGS, NAMED, files_of
from rlkit.errors import UserError
from rlkit.run.inputs import MAY_CHANGE, MODEL_FILES, digest, function_files, texts_of, without_caches

SELECTION = "selection."
"""May change when a data job goes on, which then writes its rows again; one that is done has the rows of the old."""
SOURCES = ("data.source", "data.eval_source", "cleaning.tests")
LISTS = ("data.mixture", "stages")
"""Lists whose entries have a `source`."""
MODELS = ("model.path", "model.tokenizer", "teacher.path")
CODE = ("reward.fn", "algo.loss_fn")
MAX_NAMES = 4
"""Changes that a message names."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Origin:
    """What a stage is made from.

    Example: `Origin(settings={"seed": 1}, files={"model.path config.json": "sha256:..."})`
    """

    settings: Mapping[str, Any]
    """The settings that make it what it is, under their flat keys."""
    files: Mapping[str, str]
    """The fingerprint of every file that it reads, under the key that names it, and its own name."""


def origin_of(recipe: str, words: Sequence[str], named_words: Sequence[str]) -> Origin:
    """Reads what a stage with these words is made from; in `named_words` names stand for what earlier stages make."""
    settings = without_caches(compose_dict(recipe, named_words))
    passed_over = tuple(key for key in MAY_CHANGE if key != SELECTION)
    kept = {key: value for key, value in flat_keys(settings) if not key.startswith(passed_over)}
    files: dict[str, str] = {}
    for key, text in _named(compose_dict(recipe, words)):
        for file in _files(key, text):
            name, mark = f"{key} {file.name}", digest(file, sampled=key not in SOURCES)
            files[name] = f"{files[name]} {mark}" if name in files else mark  # two folders of one key
    return Origin(settings=json.loads(json.dumps(kept)), files=files)


def check_origin(folder: Path, before: Origin, now: Origin) -> None:
    """Raises UserError if the stage in a folder was made from something else than it would be now."""
    keys = sorted(before.settings.keys() | now.settings.keys())
    old, new = ({key: json.dumps(origin.settings.get(key)) for key in keys} for origin in (before, now))
    changed = [
        f"{key} was {shown(before.settings.get(key))}, now {shown(now.settings.get(key))}"
        for key in keys
        if old[key] != new[key]
    ]
    if changed:
        raise UserError(
            f"{folder} is done, but with other settings ({_listed(changed)}); use another output_dir, or remove that "
            "folder and those behind it"
        )
    ways = {
        "changed": [name for name in before.files if now.files.get(name, before.files[name]) != before.files[name]],
        "gone": sorted(before.files.keys() - now.files.keys()),
        "new": sorted(now.files.keys() - before.files.keys()),
    }
    if other := [f"{name} is {way}" for way, names in ways.items() for name in names]:
        raise UserError(
            f"{folder} is done, but was made from other files ({_listed(other)}); put them back, or remove that folder "
            "and those behind it, or use another output_dir"
        )


def check_places(stage: str, recipe: str, words: Sequence[str], made: Sequence[Path]) -> None:
    """Raises UserError for a file or a folder of the user's that is not there; `made` are those of earlier stages."""
    for key, text in _named(compose_dict(recipe, words)):
        is_made = any(Path(text.removeprefix(PREFIX)).is_relative_to(path) for path in made)
        place = None if is_made else _must_be(key, text)
        if place is not None and not place.exists():
            raise UserError(
                f"in stage {stage}: {key}={text}: there is no such file or folder (looked at {place.absolute()}); "
                "correct the path"
            )


def _named(settings: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Yields the key and the text of every setting that may name a file or a folder."""
    for key, value in flat_keys(without_caches(settings)):
        if key in LISTS and isinstance(value, list):
            for i, part in enumerate(value):
                yield from ((f"{key}[{i}].source", text) for text in texts_of(part.get("source")))
        elif key in (*SOURCES, *MODELS, *CODE) or key.startswith("reward.kwargs"):
            yield from ((key, text) for text in texts_of(value))


def _files(key: str, text: str) -> list[Path]:
    """Returns the files that are read for a setting; [] where it names none."""
    if _is_source(key):
        return [] if text in NAMED else files_of(text)
    if folder := _model(key, text):
        return sorted(file for file in folder.glob("*") if file.is_file() and file.suffix in MODEL_FILES)
    return list(function_files(key, text))


def _must_be(key: str, text: str) -> Path | None:
    """Returns what has to be there for a setting; None for a name that may be something else, as that of a hub."""
    if _is_source(key):
        is_path = text.removesuffix(".gz").endswith(FILE_ENDINGS) or text.startswith(("/", "."))
        return Path(text) if is_path else None
    return _model(key, text) or (_code(text) if key in CODE else None)


def _is_source(key: str) -> bool:
    return key in SOURCES or key.endswith("].source")


def _model(key: str, text: str) -> Path | None:
    """Returns the folder of a model, of the run's own or of one that scores; None for a text that names none."""
    if key in MODELS:
        return Path(text) if text else None
    return Path(text.removeprefix(PREFIX)).expanduser() if text.startswith(PREFIX) else None


def _code(text: str) -> Path | None:
    """Returns the file of "file.py:function"; None for other texts."""
    place = text.rpartition(":")[0]
    return Path(place) if place.endswith(".py") else None


def _listed(changes: Sequence[str]) -> str:
    more = f", and {len(changes) - MAX_NAMES} more" if len(changes) > MAX_NAMES else ""
    return f"{', '.join(changes[:MAX_NAMES])}{more}"
