"""`rlkit run RECIPE`: find a recipe by name, by import path or by file.

A recipe is a module with a function `main(argv)`, which gets the rest of the command line.
"""

from __future__ import annotations

import os
import pkgutil
from importlib import import_module
from pathlib import Path
from types import ModuleType

from rewards.own_files import import_file, import_name
from rlkit.checks import suggestion
from rlkit.errors import UserError

PACKAGE = "recipes"


def recipe_names() -> list[str]:
    """Returns the names of the recipes that come with rlkit: the modules of the package `recipes`."""
    modules = pkgutil.iter_modules(import_module(PACKAGE).__path__)
    return sorted(module.name for module in modules if not module.name.startswith("_"))


def find_recipe(word: str) -> ModuleType:
    """Returns the module of a recipe: one of ours ("grpo"), "package.module", or a file ("./my_recipe.py").

    Raises:
        UserError: if there is none, or if it has no function `main`. What the user's own module raises while it is
            imported comes with its traceback.
    """
    names = recipe_names()
    if word in names:
        module = import_module(f"{PACKAGE}.{word}")
    elif word.endswith(".py") or os.sep in word:
        module = _import_file(word)
    else:
        module = _import_name(word, names)
    if not callable(getattr(module, "main", None)):
        raise UserError(f"recipe {word}: it has no function main; define main(argv), which gets the key=value words")
    return module


def _import_file(word: str) -> ModuleType:
    path = Path(word).expanduser()
    if path.suffix != ".py":
        raise UserError(f"recipe {word} is no Python file; give the path of one, as ./my_recipe.py")
    if not path.is_file():
        near = suggestion(path.name, [file.name for file in path.parent.glob("*.py")])
        raise UserError(f"recipe {word}: there is no such file{near}; correct the path")
    return import_file(path, "recipe_file_")


def _import_name(word: str, names: list[str]) -> ModuleType:
    beside = f"; the file here is ./{word}.py" if Path(f"{word}.py").is_file() else ""
    unknown = UserError(
        f"recipe {word!r} is unknown{suggestion(word, names)}; there are {', '.join(names)}, and your own as "
        f"./file.py or package.module{beside}"
    )
    if "." not in word or not all(part.isidentifier() for part in word.split(".")):
        raise unknown
    try:
        return import_name(word)
    except ModuleNotFoundError as error:
        if error.name and (word == error.name or word.startswith(f"{error.name}.")):
            raise unknown from None
        raise
