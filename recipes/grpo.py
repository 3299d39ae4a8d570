"""Group relative policy optimisation of a model that can already solve some of the problems.

python -m recipes.grpo model.path=outputs/sft/model key=value ...      (or: rlkit run grpo ...)
"""

from __future__ import annotations

from collections.abc import Sequence

from rlkit.cluster.start import start
from rlkit.config import GrpoRun
from rlkit.loop import train
from rlkit.run.open import open_run


def main(argv: Sequence[str] | None = None) -> None:
    """Run the recipe with the command line's overrides."""
    opened = open_run("grpo", GrpoRun, argv)
    if opened is None:
        return
    cfg, run = opened
    if not cfg.model.path:
        run.console.warn(
            "the model starts from random weights, and GRPO can only strengthen what it already does at times; run "
            "recipes.sft first and set model.path to its model folder, or use recipes.sft_then_grpo"
        )
    with run, start(cfg, run) as parts:
        run.evaluate("before GRPO", 0, parts)
        done = run.position.steps_done("grpo", cfg.algo.steps)
        with run.bar("GRPO", cfg.algo.steps) as bar:
            for step, stats in train(parts, run.task.prompts, cfg.algo, seed=cfg.seed, start=done):
                run.record(step, cfg.algo.steps, stats, parts)
                bar.set(step)
        run.evaluate("after GRPO", cfg.algo.steps, parts)
        run.export(parts)


if __name__ == "__main__":
    main()
