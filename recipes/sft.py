"""Supervised fine-tuning on worked solutions.

python -m recipes.sft key=value ...      (or: rlkit run sft key=value ...)
"""

from __future__ import annotations

from collections.abc import Sequence

from rlkit.cluster.start import start
from rlkit.config import SftRun
from rlkit.run.open import Run, open_run
from rlkit.sft import finetune


def main(argv: Sequence[str] | None = None) -> None:
    """Run the recipe with the command line's overrides."""
    opened = open_run("sft", SftRun, argv)
    if opened is None:
        return
    fine_tune(*opened)


def fine_tune(cfg: SftRun, run: Run) -> None:
    """Evaluate, train on the demonstrations, evaluate again, write the model."""
    with run, start(cfg, run) as parts:
        run.evaluate("before SFT", 0, parts)
        done = run.position.steps_done("sft", cfg.sft.steps)
        with run.bar("SFT", cfg.sft.steps) as bar:
            for step, stats in finetune(
                parts.trainer, run.task.demonstrations, cfg.sft, max_tokens=parts.max_tokens, seed=cfg.seed, start=done
            ):
                run.record(step, cfg.sft.steps, stats, parts)
                bar.set(step)
        run.sync(parts, 0)
        run.evaluate("after SFT", cfg.sft.steps, parts)
        run.export(parts)


if __name__ == "__main__":
    main()
