"""DeepSeek-V3's post-training: an expert makes the data that the model learns from (arXiv:2412.19437, section 5).

rlkit run v3_post [size=tiny|paper] [base=FOLDER] key=value ...
"""

from __future__ import annotations

from collections.abc import Sequence

from recipes import distill_generate, grpo, reward_model, sft
from rlkit.multistage.course import run_pipeline
from rlkit.multistage.stage import Pipeline


def story(pipeline: Pipeline) -> None:
    """Runs the stages in order."""
    base = pipeline.base(sft)
    taught = pipeline.run("expert_sft", sft, {"model.path": base.model})
    expert = pipeline.run("expert_rl", grpo, {"model.path": taught.model})
    kept = pipeline.run("rejection_sampling", distill_generate, {"model.path": expert.model})
    shown = pipeline.run("general_sft", sft, {"model.path": base.model, "kept": kept.dataset})
    asked = pipeline.run("preferences", distill_generate, {"model.path": shown.model})
    scorer = pipeline.run("reward_model", reward_model, {"model.path": shown.model, "data.source": asked.preferences})
    pipeline.run("rl", grpo, {"model.path": shown.model, "scorer": scorer.model})


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the recipe with the command line's overrides."""
    run_pipeline("v3_post", story, argv)


if __name__ == "__main__":
    main()
