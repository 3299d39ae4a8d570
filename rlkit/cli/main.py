"""The `rlkit` command."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import NoReturn

USAGE = """usage: rlkit run RECIPE [key=value ...] [--cfg job] [--help]
       rlkit reward test|score|verify-dataset ... [--help]
       rlkit checkpoint verify|convert ... [--help]

  RECIPE      {recipes}
  key=value   any key of the recipe's configuration
  --cfg job   print the configuration and what follows from it; start nothing
  --help      the recipe's groups of settings"""


def main(argv: Sequence[str] | None = None) -> None:
    """Run a recipe by name, or look at a reward or a checkpoint; the rest of the line belongs to that.

    Modules of the current folder can be imported from then on, as under `python -m`.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    # An installed script has its own folder there, not the current one. Last, so that no file of yours hides a module.
    if (here := str(Path.cwd())) not in sys.path:
        sys.path.append(here)
    if words[:1] in (["reward"], ["checkpoint"]):
        _command(words[0], words[1:])
        return
    from rlkit.checks import suggestion

    RECIPES = ["sft", "grpo", "sft_then_grpo", "extend_context"]

    usage = USAGE.format(recipes=", ".join(RECIPES))
    if not words or words[0] in ("-h", "--help"):
        print(usage)
        return
    if words[0] != "run" or len(words) < 2:
        _refuse(f"{' '.join(words)!r} is not a command\n\n{usage}")
    recipe = words[1]
    if recipe not in RECIPES:
        _refuse(f"recipe {recipe!r} is unknown{suggestion(recipe, list(RECIPES))}; there are {', '.join(RECIPES)}")
    import_module(f"recipes.{recipe}").main(words[2:])


def _command(name: str, words: Sequence[str]) -> None:
    try:
        import_module(f"rlkit.cli.{name}").main(words)
    except ValueError as error:
        _refuse(str(error))


def _refuse(message: str) -> NoReturn:
    print(f"error: {message}", file=sys.stderr)
    raise SystemExit(2)
