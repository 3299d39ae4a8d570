"""From a command line to a run: its configuration checked, its folder opened, nothing started yet."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TypeVar

from rlkit.config import TrainingRun
from rlkit.config.compose import clear_errors, load_config, parse_command
from rlkit.run.fit import check_shape
from rlkit.run.plan import show
from rlkit.run.progress import Run

R = TypeVar("R", bound=TrainingRun)


def open_run(recipe: str | Path, cls: type[R], argv: Sequence[str] | None) -> tuple[R, Run] | None:
    """Opens the run that a command line asks for; None when it only asked for a look.

    `recipe` names a file in `configs/`, or is the path of the YAML file beside a recipe of the user's own.

    Every mistake that can be seen now ends here, before anything is started: `clear_errors`.
    """
    with clear_errors():
        command = parse_command(recipe, sys.argv[1:] if argv is None else argv)
        cfg = load_config(recipe, cls, command.overrides)
        check_shape(cfg, command.overrides)
        task = show(cfg, print_only=command.print_only)
        if task is None:
            return None
        cfg = cfg.counted(task.demonstrations.size)
        return cfg, Run(cfg, task)
