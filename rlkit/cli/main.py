"""The `rlkit` command."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path

from rlkit.interrupt import INTERRUPTED, end_silently, raise_again

USAGE = """usage: rlkit run RECIPE [key=value ...] [--cfg job] [--help]
       rlkit eval MODEL suite=NAME,... [key=value ...] [--rescore REWARD]   |   compare DIR_A DIR_B ...
       rlkit plan RECIPE [key=value ...] [--json]
       rlkit reward test|score|verify-dataset ... [--help]
       rlkit checkpoint verify|convert ... [--help]

  RECIPE      {recipes}, or your own: ./file.py, package.module
  key=value   any key of the recipe's configuration
  --cfg job   print the configuration and what follows from it; start nothing
  --help      of a recipe: its groups of settings"""
COMMANDS = ("run", "eval", "plan", "reward", "checkpoint")
HELP = ("-h", "--help")


def main(argv: Sequence[str] | None = None) -> None:
    """Runs or plans a recipe, evaluates a model, looks at a reward or a checkpoint; each reads the rest of the line."""
    if argv is None:  # a program of its own: from here on, while it imports as well, Ctrl-C ends it without a traceback
        end_silently()
    # Imported here and not above, because an interrupted import is what the line before is for.
    from rewards import RewardError
    from rlkit.cli.run import find_recipe
    from rlkit.errors import UserError

    words = list(sys.argv[1:] if argv is None else argv)
    forget_current_folder()
    try:
        if not words or words[0] in HELP or (words[0] == "run" and words[1:2] and words[1] in HELP):
            print(_usage())
        elif words[0] == "run" and len(words) > 1:
            find_recipe(words[1]).main(words[2:])
        else:
            _look(words)
        sys.stdout.flush()
    except (UserError, RewardError) as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2) from None
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        raise SystemExit(INTERRUPTED) from None
    except BrokenPipeError:  # whoever read the output has seen enough; what Python still holds back goes nowhere
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def forget_current_folder() -> None:
    """Takes the current folder out of Python's search path, where PYTHONPATH may have put it.

    A file there would be imported in place of the installed module of its name. Rewards and recipes of the user's own
    are found all the same (`rewards.own_files`). Where rlkit itself runs from this folder, it moves to the end.
    """
    here, ours = Path.cwd().resolve(), Path(__file__).resolve().parents[2]
    others = [place for place in sys.path if Path(place).resolve() != here]
    moved = [str(here)] if here == ours and len(others) < len(sys.path) else []
    sys.path[:] = [*others, *moved]


def _look(words: Sequence[str]) -> None:
    """Runs a command that has a module of its own; raises UserError with the usage for what is no command."""
    from rlkit.checks import suggestion
    from rlkit.errors import UserError

    command = words[0]
    if command == "run":
        raise UserError(f"'rlkit run' needs a recipe\n\n{_usage()}")
    if command not in COMMANDS:
        raise UserError(f"{' '.join(words)!r} is not a command{suggestion(command, COMMANDS)}\n\n{_usage()}")
    module = import_module(f"rlkit.cli.{command}")
    raise_again()
    module.main(words[1:])


def _usage() -> str:
    from rlkit.cli.run import recipe_names

    return USAGE.format(recipes=", ".join(recipe_names()))
