"""Supervised fine-tuning on worked solutions.

python -m recipes.sft key=value ...      (or: rlkit run sft key=value ...)
"""

from __future__ import annotations

from collections.abc import Sequence

from rlkit.assemble import started
from rlkit.config import SftRun
from rlkit.run.open import open_run
from rlkit.run.progress import Run
from rlkit.sft import finetune


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the recipe with the command line's overrides."""
    if opened := open_run("sft", SftRun, argv):
        fine_tune(*opened)


def fine_tune(cfg: SftRun, run: Run) -> None:
    """Evaluates, trains on the demonstrations, evaluates again, writes the model."""
    with run, started(cfg, run) as parts:
        run.evaluate("before SFT", 0, parts)
        steps = finetune(
            parts.trainer,
            run.task.demonstrations,
            cfg.sft,
            max_tokens=cfg.trainer.max_tokens,
            seed=cfg.seed,
            start=run.steps_done("sft", cfg.sft.steps),
        )
        run.follow("sft", cfg.sft.steps, steps, parts)
        run.sync(parts, 0)
        run.evaluate("after SFT", cfg.sft.steps, parts)
        run.export(parts)


if __name__ == "__main__":
    main()
