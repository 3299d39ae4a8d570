"""The `rlkit` command."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib import import_module

from rlkit.compose import RECIPES
from rlkit.config import suggestion

USAGE = f"""usage: rlkit run RECIPE [key=value ...] [--cfg job] [--help]

  RECIPE      {", ".join(RECIPES)}
  key=value   any key of the recipe's configuration
  --cfg job   print the configuration and what follows from it; start nothing
  --help      the recipe's groups of settings"""


def main(argv: Sequence[str] | None = None) -> None:
    """Run a recipe by name; the rest of the line belongs to the recipe."""
    words = list(sys.argv[1:] if argv is None else argv)
    if not words or words[0] in ("-h", "--help"):
        print(USAGE)
        return
    if words[0] != "run" or len(words) < 2:
        raise SystemExit(f"error: {' '.join(words)!r} is not a command\n\n{USAGE}")
    recipe = words[1]
    if recipe not in RECIPES:
        raise SystemExit(
            f"error: recipe {recipe!r} is unknown{suggestion(recipe, list(RECIPES))}; there are {', '.join(RECIPES)}"
        )
    import_module(f"recipes.{recipe}").main(words[2:])
