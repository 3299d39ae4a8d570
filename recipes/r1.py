"""DeepSeek-R1, from a base model to reinforcement on all scenarios (arXiv:2501.12948, section 2.3).

rlkit run r1 [size=tiny|paper] [base=FOLDER] key=value ...
"""

from __future__ import annotations

from collections.abc import Sequence

from recipes import distill_generate, grpo, reward_model, sft
from rlkit.multistage.course import run_pipeline
from rlkit.multistage.stage import Pipeline


def story(pipeline: Pipeline) -> None:
    """Runs the stages in order."""
    base = pipeline.base(sft)
    cold = pipeline.run("cold_start", sft, {"model.path": base.model})
    reasoner = pipeline.run("reasoning_rl", grpo, {"model.path": cold.model})
    kept = pipeline.run("rejection_sampling", distill_generate, {"model.path": reasoner.model})
    again = pipeline.run("sft_again", sft, {"model.path": base.model, "kept": kept.dataset})
    asked = pipeline.run("preferences", distill_generate, {"model.path": again.model})
    scorer = pipeline.run("reward_model", reward_model, {"model.path": again.model, "data.source": asked.preferences})
    pipeline.run("all_scenarios_rl", grpo, {"model.path": again.model, "scorer": scorer.model})


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the recipe with the command line's overrides."""
    run_pipeline("r1", story, argv)


if __name__ == "__main__":
    main()
