"""A dataset for distillation: a teacher answers questions, and verified answers are kept.

python -m recipes.distill_generate model.path=TEACHER data=questions.jsonl      (or: rlkit run distill_generate ...)
"""

from __future__ import annotations

from collections.abc import Sequence

from rlkit.assemble import reward, teacher
from rlkit.distill.generate import generate
from rlkit.run.job import open_job


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the recipe with the command line's overrides."""
    opened = open_job(argv)
    if opened is None:
        return
    cfg, job = opened
    with job, reward(cfg.reward) as judge:
        answers = generate(
            job.journal, lambda: teacher(cfg, job.prepared.checkpoint), judge, job.prepared.asked_as, cfg
        )
        job.follow(answers)
        job.write()


if __name__ == "__main__":
    main()
