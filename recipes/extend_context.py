"""Longer contexts by YaRN: supervised fine-tuning in stages of rising length, each from the last one's model.

python -m recipes.extend_context model.path=outputs/sft/model key=value ...      (or: rlkit run extend_context ...)
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

from recipes.sft import fine_tune
from rlkit.config.compose import clear_errors, load_config, parse_command
from rlkit.config.runs import ExtendContextRun
from rlkit.errors import UserError
from rlkit.extend_context import stage_folder, stage_run, write_extended
from rlkit.run.plan import show
from rlkit.run.prepare import INITIAL
from rlkit.run.progress import MODEL, Run


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the recipe with the command line's overrides."""
    with clear_errors(), TemporaryDirectory() as scratch:
        command = parse_command("extend_context", sys.argv[1:] if argv is None else argv)
        cfg = load_config("extend_context", ExtendContextRun, command.overrides)
        if not cfg.model.path:
            raise UserError("model.path is empty, and only a trained model has a context to extend; set model.path")
        for number, stage in enumerate(cfg.stages):  # all stages are checked before the first one starts
            checkpoint = Path(scratch) / str(number)
            write_extended(Path(cfg.model.path), checkpoint, stage.factor)
            show(stage_run(cfg, number, checkpoint), print_only=command.print_only)
    if command.print_only or cfg.dry_run:
        return
    start = Path(cfg.model.path)
    for number, stage in enumerate(cfg.stages):
        with clear_errors():
            checkpoint = stage_folder(cfg, number) / INITIAL
            write_extended(start, checkpoint, stage.factor)
            opened = stage_run(cfg, number, checkpoint)
            task = show(opened, print_only=False)
            assert task is not None
            run = Run(opened, task)
        fine_tune(opened, run)
        start = run.folder / MODEL


if __name__ == "__main__":
    main()
