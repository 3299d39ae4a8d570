"""A reward model, trained from an SFT checkpoint on preferences that include the chain of thought.

python -m recipes.reward_model model.path=outputs/sft/model key=value ...      (or: rlkit run reward_model ...)
"""

from __future__ import annotations

from collections.abc import Sequence

from rlkit.assemble import learning
from rlkit.reward_model import STAGE, learn_preferences
from rlkit.run.reward_model import open_reward_model


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the recipe with the command line's overrides."""
    opened = open_reward_model(argv)
    if opened is None:
        return
    cfg, run = opened
    with run, learning(cfg, run, run.initial()) as parts:
        run.judge("before training", 0, parts)
        steps = learn_preferences(
            parts.trainer,
            run.task.train,
            cfg.reward_model,
            max_tokens=cfg.trainer.max_tokens,
            seed=cfg.seed,
            start=run.steps_done(STAGE, cfg.reward_model.steps),
        )
        run.follow(STAGE, cfg.reward_model.steps, steps, parts)
        run.judge("after training", cfg.reward_model.steps, parts)
        run.export(parts)


if __name__ == "__main__":
    main()
