"""Distillation: a smaller model learns a teacher's verified answers by SFT alone (arXiv:2501.12948, section 2.4).

rlkit run distill [size=tiny|paper] [base=TEACHER] key=value ...
"""

from __future__ import annotations

from collections.abc import Sequence

from recipes import distill_generate, sft
from rlkit.multistage.course import run_pipeline
from rlkit.multistage.stage import Pipeline


def story(pipeline: Pipeline) -> None:
    """Runs the stages in order."""
    teacher = pipeline.base(sft)
    kept = pipeline.run("generate", distill_generate, {"model.path": teacher.model})
    pipeline.run("student", sft, {"kept": kept.dataset})


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the recipe with the command line's overrides."""
    run_pipeline("distill", story, argv)


if __name__ == "__main__":
    main()
