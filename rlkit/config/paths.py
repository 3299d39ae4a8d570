"""Names of files and folders in a configuration: a leading ~ is the home folder."""

from __future__ import annotations

import os
from typing import Any

from rlkit.overrides import ConfigError

PATHS = (
    *("output_dir", "model.path", "model.tokenizer", "teacher.path", "data.source", "data.eval_source"),
    *("reward.fn", "algo.loss_fn", "suite_dir", "data.mixture[].source", "stages[].source"),
)
"""Keys in which a leading ~ is the home folder, as in a shell; a shell leaves it alone behind the `=`."""


def expand_paths(values: dict[str, Any]) -> None:
    """Writes a leading ~ out in all keys that name files; raises ConfigError for names that nothing can have."""
    for key in PATHS:
        _expand(values, key)


def _expand(values: dict[str, Any], key: str) -> None:
    """Writes a leading ~ out, and refuses names that nothing can have; `[]` stands for every entry of a list."""
    *groups, name = key.split(".")
    tables = [values]
    for group in groups:
        below = [table.get(group.removesuffix("[]")) for table in tables]
        entries = [entry for found in below for entry in (found if isinstance(found, list) else [found])]
        tables = [entry for entry in entries if isinstance(entry, dict)]  # others are refused where types are checked
    for table in tables:
        value = table.get(name)
        if key == "output_dir" and value == "":
            raise ConfigError("output_dir= is empty; name the folder of the run, as output_dir=outputs/first")
        if isinstance(value, str) and "\0" in value:
            raise ConfigError(f"{key}={value!r} holds a zero byte, which is in no name of a file; take it out")
        if isinstance(value, str) and value.startswith("~"):
            table[name] = os.path.expanduser(value)
            if table[name] == value:
                raise ConfigError(f"{key}={value}: there is no such user; write ./{value} for a file of that name")
