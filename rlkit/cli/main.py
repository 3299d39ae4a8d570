"""The `rlkit` command."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import NoReturn

from rewards import RewardError
from rlkit.checks import suggestion
from rlkit.cli.run import find_recipe, recipe_names
from rlkit.errors import UserError

USAGE = """usage: rlkit run RECIPE [key=value ...] [--cfg job] [--help]
       rlkit reward test|score|verify-dataset ... [--help]
       rlkit checkpoint verify|convert ... [--help]

  RECIPE      {recipes}, or your own: ./file.py, package.module
  key=value   any key of the recipe's configuration
  --cfg job   print the configuration and what follows from it; start nothing
  --help      of a recipe: its groups of settings"""
COMMANDS = ("run", "reward", "checkpoint")


def main(argv: Sequence[str] | None = None) -> None:
    """Runs a recipe, or looks at a reward or a checkpoint; the rest of the line belongs to that."""
    words = list(sys.argv[1:] if argv is None else argv)
    forget_current_folder()
    command, rest = (words[0], words[1:]) if words else ("--help", [])
    try:
        if command in ("-h", "--help") or (command == "run" and rest[:1] in (["-h"], ["--help"])):
            print(_usage())
        elif command == "run" and rest:
            find_recipe(rest[0]).main(rest[1:])
        elif command in COMMANDS and command != "run":
            _look(command, rest)
        elif command == "run":
            _refuse(f"'rlkit run' needs a recipe\n\n{_usage()}")
        else:
            near = suggestion(command, COMMANDS)
            _refuse(f"{' '.join(words)!r} is not a command{near}\n\n{_usage()}")
    except (UserError, RewardError) as error:
        _refuse(str(error))


def _look(command: str, words: Sequence[str]) -> None:
    try:
        import_module(f"rlkit.cli.{command}").main(words)
    except ValueError as error:
        _refuse(str(error))


def forget_current_folder() -> None:
    """Takes the current folder out of Python's search path, where PYTHONPATH may have put it.

    A file there would be imported in place of the installed module of its name. Rewards and recipes of the user's own
    are found all the same (`rewards.own_files`). Where rlkit itself runs from this folder, it moves to the end.
    """
    here, ours = Path.cwd().resolve(), Path(__file__).resolve().parents[2]
    others = [place for place in sys.path if Path(place).resolve() != here]
    moved = [str(here)] if here == ours and len(others) < len(sys.path) else []
    sys.path[:] = [*others, *moved]


def _usage() -> str:
    return USAGE.format(recipes=", ".join(recipe_names()))


def _refuse(message: str) -> NoReturn:
    print(f"error: {message}", file=sys.stderr)
    raise SystemExit(2)
