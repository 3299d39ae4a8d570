"""Group relative policy optimisation of a model that can already solve some of the problems.

python -m recipes.grpo model.path=outputs/sft/model key=value ...      (or: rlkit run grpo ...)
"""

from __future__ import annotations

from collections.abc import Sequence

from rlkit.assemble import started
from rlkit.config import GrpoRun
from rlkit.loop import train
from rlkit.run.open import open_run


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the recipe with the command line's overrides."""
    opened = open_run("grpo", GrpoRun, argv)
    if opened is None:
        return
    cfg, run = opened
    if not cfg.model.path:
        run.console.warn(
            "the model starts from random weights, and GRPO can only strengthen what it already does at times; run "
            "recipes.sft first and set model.path to its model folder, or use recipes.sft_then_grpo"
        )
    with run, started(cfg, run) as parts:
        run.evaluate("before GRPO", 0, parts)
        steps = train(
            parts,
            run.task.prompts,
            cfg.algo,
            max_tokens=cfg.trainer.max_tokens,
            seed=cfg.seed,
            start=run.steps_done("grpo", cfg.algo.steps),
        )
        run.follow("grpo", cfg.algo.steps, steps, parts)
        run.evaluate("after GRPO", cfg.algo.steps, parts)
        run.export(parts)


if __name__ == "__main__":
    main()
