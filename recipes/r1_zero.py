"""R1-Zero: reinforcement learning from a base model, by rules alone (arXiv:2501.12948, section 2.2).

rlkit run r1_zero [size=tiny|paper] [base=FOLDER] key=value ...
"""

from __future__ import annotations

from collections.abc import Sequence

from recipes import grpo, sft
from rlkit.multistage.course import run_pipeline
from rlkit.multistage.stage import Pipeline


def story(pipeline: Pipeline) -> None:
    """Runs the stages in order."""
    base = pipeline.base(sft)
    pipeline.run("rl", grpo, {"model.path": base.model})


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the recipe with the command line's overrides."""
    run_pipeline("r1_zero", story, argv)


if __name__ == "__main__":
    main()
